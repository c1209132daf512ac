"""Tencent Cloud's request signature, TC3-HMAC-SHA256: made, and verified as the service verifies it.

Reference: https://cloud.tencent.com/document/api/213/30654 (the example there is a known answer of the tests).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import attrs

from cvm_migrate.testing._api_errors import ApiError

ALGORITHM: Final = "TC3-HMAC-SHA256"
# Seconds; beyond, the service answers AuthFailure.SignatureExpire.
ALLOWED_SKEW: Final = 300

_AUTHORIZATION: Final = re.compile(
    rf"{ALGORITHM} +Credential=(?P<id>[^/,\s]+)/(?P<date>\d{{4}}-\d\d-\d\d)/(?P<service>[a-z0-9]+)/tc3_request"
    r", *SignedHeaders=(?P<headers>[a-z0-9;-]+), *Signature=(?P<signature>[0-9a-f]{64})"
)
_REQUIRED: Final = frozenset({"content-type", "host"})


@attrs.frozen
class Key:
    """A pair of keys; *token* and *expires* (seconds since 1970) belong to temporary ones."""

    secret_id: str
    secret_key: str = attrs.field(repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    expires: float | None = None
    role: str | None = None


@attrs.frozen
class SignedRequest:
    """What the signature covers, and what says who signed; header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@attrs.frozen
class Signer:
    """Whose request it is, and for which service."""

    key: Key
    service: str


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def date_of(timestamp: int) -> str:
    """Return the UTC date that the credential scope of a request of this second carries."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d")


def canonical_request(request: SignedRequest, signed_headers: str, *, lower: bool = False) -> str:
    """Return the text whose hash is signed; *lower* writes header values in lower case."""
    values = ((name, request.headers.get(name, "").strip()) for name in signed_headers.split(";"))
    lines = "".join(f"{name}:{value.lower() if lower else value}\n" for name, value in values)
    payload = request.body
    if request.headers.get("x-tc-content-sha256") == "UNSIGNED-PAYLOAD":
        payload = b"UNSIGNED-PAYLOAD"
    return "\n".join(
        (
            request.method,
            request.path,
            request.query,
            lines,
            signed_headers,
            hashlib.sha256(payload).hexdigest(),
        )
    )


def sign(secret_key: str, service: str, timestamp: int, canonical: str) -> str:
    """Return the signature of a canonical request, in hex."""
    date = date_of(timestamp)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"{ALGORITHM}\n{timestamp}\n{date}/{service}/tc3_request\n{digest}"
    key = _hmac(_hmac(_hmac(f"TC3{secret_key}".encode(), date), service), "tc3_request")
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def verify(request: SignedRequest, find: Callable[[str], Key | None], now: float) -> Signer:
    """Find out who signed.

    Args:
        request: The request as it came.
        find: Returns the keys of an id, ``None`` where there are none.
        now: Seconds since 1970 on the service's clock.

    Raises:
        ApiError: With the code that the service answers.
    """
    match = _AUTHORIZATION.fullmatch(request.headers.get("authorization", "").strip())
    if match is None:
        raise ApiError(
            "AuthFailure.InvalidAuthorization", "The request header `Authorization` is invalid."
        )
    stamp = request.headers.get("x-tc-timestamp", "")
    if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 12:
        raise ApiError(
            "MissingParameter", "The request header `X-TC-Timestamp` is missing or invalid."
        )
    timestamp = int(stamp)
    if abs(timestamp - now) > ALLOWED_SKEW:
        raise ApiError(
            "AuthFailure.SignatureExpire",
            f"The provided credentials signature is expired: the request says {timestamp}, the server {int(now)}.",
        )
    key = find(match["id"])
    if key is None:
        raise ApiError(
            "AuthFailure.SecretIdNotFound", "The SecretId is not found, please ensure it exists."
        )
    names = set(match["headers"].split(";"))
    present = names.issubset(request.headers)
    if not (names >= _REQUIRED and present and match["date"] == date_of(timestamp)):
        raise _wrong_signature()
    expected = {
        sign(
            key.secret_key,
            match["service"],
            timestamp,
            canonical_request(request, match["headers"], lower=lower),
        )
        # The documentation writes values in lower case, the SDK signs them as they are sent.
        for lower in (False, True)
    }
    if not any(hmac.compare_digest(one, match["signature"]) for one in expected):
        raise _wrong_signature()
    _check_token(key, request.headers.get("x-tc-token"), now)
    return Signer(key, match["service"])


def _wrong_signature() -> ApiError:
    return ApiError(
        "AuthFailure.SignatureFailure",
        "The provided credentials could not be validated. Please check your signature is correct.",
    )


def _check_token(key: Key, token: str | None, now: float) -> None:
    if key.token is None and token is None:
        return
    wrong = key.token is None or token is None or not hmac.compare_digest(key.token, token)
    if wrong or (key.expires is not None and now >= key.expires):
        raise ApiError(
            "AuthFailure.TokenFailure", "The token is invalid, missing, or has expired."
        )
