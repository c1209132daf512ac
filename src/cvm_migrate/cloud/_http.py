"""The way to the API and back: one request, one answer, and exactly what became of it.

It stands in the SDK's client in place of the SDK's own, which logs keys and passwords at DEBUG, treats an answer
with another content type as an empty success, sends through a proxy what is meant for this machine, and cannot tell a
request that was never sent from one whose answer was lost.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import os
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any, Final, Protocol

import attrs

from cvm_migrate.cloud._errors import CERTIFICATE, NO_JSON, NOT_SENT, REPLY_LOST, error_from
from cvm_migrate.errors import InvalidRequestError

# No answer of the calls we make comes near it.
_MOST: Final = 16 << 20

_SITES: Final = {
    "china": "tencentcloudapi.com",
    "international": "intl.tencentcloudapi.com",
    "intl": "intl.tencentcloudapi.com",
}


@attrs.frozen
class CloudEndpoint:
    """Where and how the API is reached; times in seconds.

    Attributes:
        url: One address for all services, such as ``http://127.0.0.1:8080``; ``{service}`` in it becomes the
            service's name. ``None`` means ``https://<service>.<domain>``.
        domain: What follows the service's name; ``intl.tencentcloudapi.com`` for accounts of the international site.
        proxy: An HTTP proxy, such as ``http://user:password@10.0.0.1:3128``; ``""`` for none; ``None`` takes
            ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY``. This machine's own addresses never go through one.
        ca_file: Certificates to trust; ``None`` takes ``REQUESTS_CA_BUNDLE``, or those that come with ``certifi``.
        connect_timeout: Until the connection stands.
        timeout: Until the whole answer is there.
    """

    url: str | None = None
    domain: str = "tencentcloudapi.com"
    proxy: str | None = attrs.field(default=None, repr=False)
    ca_file: str | None = None
    connect_timeout: float = 10.0
    timeout: float = 60.0

    @classmethod
    def of(cls, value: CloudEndpoint | str | None) -> CloudEndpoint:
        """Make the value from what callers write: nothing, ``international``, an address or a domain.

        Raises:
            InvalidRequestError: The text is none of these.
        """
        if value is None:
            return cls()
        if isinstance(value, CloudEndpoint):
            return value
        if value in _SITES:
            return cls(domain=_SITES[value])
        if value.startswith(("http://", "https://")):
            return cls(url=value.rstrip("/"))
        if "/" in value or not value.strip() or ":" in value:
            raise InvalidRequestError(
                f"not an endpoint: {value!r}",
                remedy="Write an address with http:// or https://, a domain, or international",
            )
        return cls(domain=value)

    def address(self, service: str) -> tuple[str, str]:
        """Return scheme, and host with port, for a service.

        Raises:
            InvalidRequestError: The url has no host, or more than a host.
        """
        if self.url is None:
            return "https", f"{service}.{self.domain}"
        parts = urllib.parse.urlsplit(self.url.replace("{service}", service))
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path.strip("/"):
            raise InvalidRequestError(
                f"not an endpoint: {self.url!r}",
                remedy="Write scheme, host and port only, such as https://cvm.example.com:8443",
            )
        return parts.scheme, parts.netloc


class SdkRequest(Protocol):
    """What the SDK hands over to be sent."""

    host: str
    method: str
    header: dict[str, str]
    data: str


class _Raw:
    version = 11


class SdkReply:
    """An answer as the SDK reads it: only ever a success, and nothing of it gets into the SDK's log."""

    status_code = 200
    reason = "OK"
    raw = _Raw()
    text = "(not shown)"

    def __init__(self, body: dict[str, Any]) -> None:
        self.headers = {"Content-Type": "application/json"}
        self.content = json.dumps({"Response": body}).encode()


class Transport:
    """Sends one signed request of the SDK, and reads its answer.

    Args:
        endpoint: Where and how.
        scheme: ``http`` or ``https``.
        action: The call, for messages.
        device: What it is about, for messages.
        secrets: What must be in no message.
    """

    def __init__(
        self,
        endpoint: CloudEndpoint,
        *,
        scheme: str,
        action: str,
        device: str | None,
        secrets: tuple[str, ...],
    ) -> None:
        self._endpoint = endpoint
        self._scheme = scheme
        self._action = action
        self._device = device
        self._secrets = secrets
        self.answered_at: float | None = None
        self.server_time: float | None = None

    def send_request(self, request: SdkRequest) -> SdkReply:
        """Do what the SDK's method of that name does.

        Raises:
            CvmMigrateError: The API refused the call, or no answer came.
        """
        status, body = self._exchange(request)
        return SdkReply(self._understand(status, body))

    def _exchange(self, request: SdkRequest) -> tuple[int, bytes]:
        import requests  # noqa: PLC0415 - only who calls the cloud pays for it

        host = request.host
        url = f"{self._scheme}://{host}/"
        end = time.monotonic() + self._endpoint.timeout
        try:
            # A connection of its own for each call: one that was kept may be dead, and a request lost on it is
            # one that may have been carried out.
            with requests.Session() as session:
                # Off, or a .netrc entry would replace the signature.
                session.trust_env = False
                with session.request(
                    request.method,
                    url,
                    data=request.data.encode(),
                    headers=request.header,
                    proxies=self._proxies(url, host),
                    verify=self._verify(),
                    timeout=(self._endpoint.connect_timeout, self._endpoint.timeout),
                    allow_redirects=False,
                    stream=True,
                ) as reply:
                    body = self._body(reply.iter_content(1 << 16), end)
                    self.answered_at = time.time()
                    self.server_time = _http_time(reply.headers.get("Date"))
                    return reply.status_code, body
        except requests.RequestException as error:
            raise self._error(*_what_happened(error, host)) from None

    def _body(self, pieces: Iterator[bytes], end: float) -> bytes:
        body = bytearray()
        for piece in pieces:
            body += piece
            if len(body) > _MOST or time.monotonic() > end:
                raise self._error(REPLY_LOST, "the answer does not end")
        return bytes(body)

    def _understand(self, status: int, body: bytes) -> dict[str, Any]:
        try:
            answer: Any = json.loads(body)
            made = dict[str, Any](answer["Response"])
        except (ValueError, KeyError, TypeError):
            if status != 200:
                raise self._error(f"HttpStatus.{status}", "no answer of the API") from None
            raise self._error(NO_JSON, "the answer is no JSON of the API") from None
        request_id = made.get("RequestId")
        if "Error" in made:
            raise error_from(
                str(made["Error"].get("Code", "Unknown")),
                str(made["Error"].get("Message", "")),
                action=self._action,
                request_id=request_id,
                device=self._device,
                secrets=self._secrets,
            )
        if status != 200:
            raise self._error(f"HttpStatus.{status}", "no answer of the API")
        # The SDK would switch on all warnings of the process on seeing it.
        made.pop("DeprecatedWarning", None)
        return made

    def _error(self, code: str, message: str) -> Exception:
        return error_from(
            code, message, action=self._action, device=self._device, secrets=self._secrets
        )

    def _proxies(self, url: str, host: str) -> dict[str, str]:
        import requests  # noqa: PLC0415 - as above

        if _is_here(host) or self._endpoint.proxy == "":
            return {}
        if self._endpoint.proxy is not None:
            return {"http": self._endpoint.proxy, "https": self._endpoint.proxy}
        found: dict[str, str] = dict(requests.utils.get_environ_proxies(url))
        return found

    def _verify(self) -> str | bool:
        return (
            self._endpoint.ca_file
            or os.environ.get("REQUESTS_CA_BUNDLE")
            or os.environ.get("CURL_CA_BUNDLE")
            or True
        )


def _what_happened(error: Exception, host: str) -> tuple[str, str]:
    """Say whether the request was sent, and why no answer came; no text that may hold a proxy's password."""
    import requests  # noqa: PLC0415 - as above

    code, text = REPLY_LOST, f"the connection to {host} broke before the answer came"
    never = _why_never_sent(error)
    if never is not None:
        code, text = NOT_SENT, never.format(host=host)
    elif any("CERTIFICATE_VERIFY_FAILED" in str(link) for link in _chain(error)):
        code, text = CERTIFICATE, f"the certificate of {host} is not to be trusted"
    elif isinstance(error, requests.exceptions.Timeout):
        text = f"{host} did not answer in time"
    return code, text


def _why_never_sent(error: Exception) -> str | None:
    """Return why nothing was sent; ``None`` where something may have been."""
    import requests  # noqa: PLC0415 - as above
    import urllib3.exceptions  # noqa: PLC0415 - as above

    chain = _chain(error)
    reason: str | None = None
    if isinstance(error, requests.exceptions.ProxyError):
        reason = "the proxy on the way to {host} refused"
    elif any(isinstance(link, urllib3.exceptions.NameResolutionError) for link in chain):
        reason = "the name {host} is not known here"
    elif isinstance(error, requests.exceptions.ConnectTimeout):
        reason = "{host} did not take the connection in time"
    elif any(isinstance(link, urllib3.exceptions.NewConnectionError) for link in chain):
        causes = [link.strerror for link in chain if isinstance(link, OSError) and link.strerror]
        reason = "{host} cannot be reached" + (f": {causes[-1]}" if causes else "")
    elif isinstance(
        error,
        requests.exceptions.InvalidURL
        | requests.exceptions.InvalidProxyURL
        | requests.exceptions.InvalidSchema,
    ):
        reason = "the address of {host} or of the proxy is not one"
    return reason


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error and what lies below it, outermost first."""
    found: list[BaseException] = []
    queue: list[object] = [error]
    while queue and len(found) < 20:
        link = queue.pop(0)
        if not isinstance(link, BaseException) or link in found:
            continue
        found.append(link)
        queue += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]
    return found


def _is_here(host: str) -> bool:
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _http_time(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None
