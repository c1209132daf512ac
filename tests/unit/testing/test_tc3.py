"""Signatures: known answers, and what the service refuses."""

from __future__ import annotations

import attrs
import pytest

from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._tc3 import (
    ALLOWED_SKEW,
    Key,
    SignedRequest,
    canonical_request,
    date_of,
    sign,
    verify,
)

# The example of the documentation, whose keys are published there and open nothing.
_TIME = 1551113065
_KEY = Key("AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE", "Gu5t9xGARNpq86cd98joQYCN3EXAMPLE")
_BODY = (
    b'{"Limit": 1, "Filters": [{"Values": ["\\u672a\\u547d\\u540d"], "Name": "instance-name"}]}'
)


def _signed(
    request: SignedRequest | None = None,
    *,
    key: Key = _KEY,
    service: str = "cvm",
    time: int = _TIME,
) -> SignedRequest:
    if request is None:
        headers = {
            "content-type": "application/json; charset=utf-8",
            "host": "cvm.tencentcloudapi.com",
        }
        request = SignedRequest("POST", "/", "", headers, _BODY)
    if key.token is not None:
        request = attrs.evolve(request, headers={**request.headers, "x-tc-token": key.token})
    names = "content-type;host"
    signature = sign(key.secret_key, service, time, canonical_request(request, names))
    scope = f"{key.secret_id}/{date_of(time)}/{service}/tc3_request"
    authorization = (
        f"TC3-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={signature}"
    )
    stamped = {**request.headers, "authorization": authorization, "x-tc-timestamp": str(time)}
    return attrs.evolve(request, headers=stamped)


def _code(request: SignedRequest, *, key: Key | None = _KEY, now: float = _TIME) -> str:
    known = {} if key is None else {key.secret_id: key}
    with pytest.raises(ApiError) as caught:
        verify(request, known.get, now)
    return caught.value.code


def test_the_example_of_the_documentation_has_the_documented_signature() -> None:
    request = _signed()

    assert request.headers["authorization"].endswith(
        "Signature=72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168"
    )


def test_the_date_of_the_scope_is_that_of_utc() -> None:
    assert date_of(_TIME) == "2019-02-25"


def test_a_right_signature_tells_whose_request_it_is_and_for_which_service() -> None:
    signer = verify(_signed(service="cbs"), {_KEY.secret_id: _KEY}.get, _TIME)

    assert signer.key is _KEY
    assert signer.service == "cbs"


@pytest.mark.parametrize("offset", [-ALLOWED_SKEW, ALLOWED_SKEW])
def test_five_minutes_of_skew_are_allowed(offset: int) -> None:
    assert verify(_signed(), {_KEY.secret_id: _KEY}.get, _TIME + offset).key is _KEY


@pytest.mark.parametrize("offset", [-ALLOWED_SKEW - 1, ALLOWED_SKEW + 1])
def test_more_than_five_minutes_of_skew_is_an_expired_signature(offset: int) -> None:
    assert _code(_signed(), now=_TIME + offset) == "AuthFailure.SignatureExpire"


def test_an_id_that_is_not_known_is_said_to_be_so() -> None:
    assert _code(_signed(), key=None) == "AuthFailure.SecretIdNotFound"


def test_a_signature_by_another_key_is_refused() -> None:
    other = attrs.evolve(_KEY, secret_key="another")

    assert _code(_signed(key=other)) == "AuthFailure.SignatureFailure"


@pytest.mark.parametrize(
    "change",
    [
        {"body": _BODY + b" "},
        {"query": "a=b"},
        {"path": "/other"},
        {"method": "GET"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_request_that_was_changed_after_signing_is_refused(change: dict[str, object]) -> None:
    changed = attrs.evolve(_signed(), **change)  # type: ignore[arg-type]

    assert _code(changed) == "AuthFailure.SignatureFailure"


@pytest.mark.parametrize("name", ["host", "content-type"])
def test_a_header_that_was_changed_after_signing_is_refused(name: str) -> None:
    request = _signed()
    changed = attrs.evolve(request, headers={**request.headers, name: "another"})

    assert _code(changed) == "AuthFailure.SignatureFailure"


def test_the_host_must_be_among_the_signed_headers() -> None:
    request = _signed()
    narrowed = request.headers["authorization"].replace("content-type;host", "content-type")
    changed = attrs.evolve(request, headers={**request.headers, "authorization": narrowed})

    assert _code(changed) == "AuthFailure.SignatureFailure"


def test_the_date_of_the_scope_must_be_that_of_the_timestamp() -> None:
    request = _signed(time=_TIME)
    moved = request.headers["authorization"].replace("2019-02-25", "2019-02-26")
    changed = attrs.evolve(request, headers={**request.headers, "authorization": moved})

    assert _code(changed) == "AuthFailure.SignatureFailure"


@pytest.mark.parametrize(
    "value", ["", "Basic abc", "TC3-HMAC-SHA256 Credential=a/b/c, Signature=x"]
)
def test_an_authorization_of_another_form_is_said_to_be_invalid(value: str) -> None:
    request = _signed()
    changed = attrs.evolve(request, headers={**request.headers, "authorization": value})

    assert _code(changed) == "AuthFailure.InvalidAuthorization"


def test_a_payload_that_is_declared_unsigned_is_not_looked_at() -> None:
    base = _signed()
    headers = {**base.headers, "x-tc-content-sha256": "UNSIGNED-PAYLOAD"}
    request = _signed(attrs.evolve(base, headers=headers))
    changed = attrs.evolve(request, body=b"anything")

    assert verify(changed, {_KEY.secret_id: _KEY}.get, _TIME).key is _KEY


class TestTemporaryKeys:
    """A token belongs to them, and they end."""

    key = attrs.evolve(_KEY, token="the-token", expires=_TIME + 10.0)

    def test_they_work_with_their_token(self) -> None:
        assert verify(_signed(key=self.key), {_KEY.secret_id: self.key}.get, _TIME).key == self.key

    def test_they_are_refused_without_it(self) -> None:
        assert _code(_signed(key=_KEY), key=self.key) == "AuthFailure.TokenFailure"

    def test_they_are_refused_with_another(self) -> None:
        other = attrs.evolve(self.key, token="another")

        assert _code(_signed(key=other), key=self.key) == "AuthFailure.TokenFailure"

    def test_they_are_refused_from_the_second_they_expire(self) -> None:
        assert (
            _code(_signed(key=self.key), key=self.key, now=_TIME + 10)
            == "AuthFailure.TokenFailure"
        )

    def test_a_token_with_keys_that_have_none_is_refused(self) -> None:
        assert _code(_signed(key=self.key), key=_KEY) == "AuthFailure.TokenFailure"


def test_keys_are_not_shown_when_printed() -> None:
    key = attrs.evolve(_KEY, token="the-token")

    assert key.secret_key not in repr(key)
    assert "the-token" not in repr(key)
