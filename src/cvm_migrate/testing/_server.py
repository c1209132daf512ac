"""The HTTP side: one address for all services of the API, and the metadata service beside it."""

from __future__ import annotations

import email.utils
import http.server
import json
import logging
import select
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, cast

import attrs

from cvm_migrate.errors import ConditionError
from cvm_migrate.testing import _cbs, _cvm, _msp, _parameters, _sts, _vpc
from cvm_migrate.testing._actions import Action
from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._faults import FaultKind, Faults
from cvm_migrate.testing._tc3 import Key, SignedRequest, verify
from cvm_migrate.testing._world import REGIONS, Call, World, utc

_log: Final = logging.getLogger("cvm_migrate.testing")

# The service's own limit is 10 MB with this signature.
_MOST: Final = 10_000_000
METADATA: Final = "/metadata"

_SECRET: Final = frozenset({"Password", "TokenCode"})

SERVICES: Final[Mapping[tuple[str, str], Mapping[str, Action]]] = MappingProxyType(
    {
        ("cvm", "2017-03-12"): _cvm.ACTIONS,
        ("cbs", "2017-03-12"): _cbs.ACTIONS,
        ("vpc", "2017-03-12"): _vpc.ACTIONS,
        ("sts", "2018-08-13"): _sts.ACTIONS,
        ("msp", "2018-03-19"): _msp.ACTIONS,
    }
)


@attrs.frozen
class RecordedRequest:
    """A request that came.

    Attributes:
        action: Such as ``DescribeInstances``; empty where the header was missing.
        params: Its parameters; passwords are ``***``.
        code: The answer's error code; ``None`` for a success.
        fault: The effect of the fault that struck it.
        request_id: The answer's.
        region: Of the header.
        time: Seconds since 1970.
    """

    action: str
    params: Mapping[str, Any]
    code: str | None
    fault: str | None
    request_id: str
    region: str
    time: float


class ApiServer(http.server.ThreadingHTTPServer):
    """Serves a world.

    Args:
        address: Where to listen.
        world: What it serves.
        faults: What goes wrong.
    """

    # Closing waits for the handlers: nothing of them is left behind.
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: str, world: World, faults: Faults) -> None:
        super().__init__((address, 0), _Handler)
        self.world = world
        self.faults = faults
        self.record: list[RecordedRequest] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, name="cvm-api", daemon=True
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End all connections and the server."""
        self.world.closing.set()
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                _cut(connection)
        self.server_close()

    def connected(self, connection: socket.socket) -> None:
        """Note a connection, so that it can be ended."""
        with self._lock:
            self._connections.add(connection)

    def disconnected(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._lock:
            self._connections.discard(connection)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log instead of printing: clients that go away are part of what is tested."""
        del request
        broken = isinstance(sys.exception(), OSError)
        _log.log(
            logging.DEBUG if broken else logging.ERROR,
            "%s: the connection ended",
            client_address,
            exc_info=True,
        )


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        _log.debug("already gone: %s", error)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "cvm-migrate"
    sys_version = ""

    @property
    def api(self) -> ApiServer:
        return cast("ApiServer", self.server)

    def setup(self) -> None:
        super().setup()
        self.api.connected(self.connection)

    def finish(self) -> None:
        self.api.disconnected(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        _log.debug(format, *args)

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Return the ``Date`` header on the cloud's clock."""
        moment = self.api.world.now() if timestamp is None else timestamp
        return email.utils.formatdate(moment, usegmt=True)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.startswith(METADATA):
            self._metadata(path.removeprefix(METADATA))
            return
        self._answer(path, query, b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MOST:
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"", "text/plain")
            self.close_connection = True
            return
        path, _, query = self.path.partition("?")
        self._answer(path, query, self.rfile.read(int(length)))

    def _answer(self, path: str, query: str, body: bytes) -> None:
        request_id = str(uuid.uuid4())
        headers = {name.lower(): value for name, value in self.headers.items()}
        action = headers.get("x-tc-action", "")
        fault = self.api.faults.strike(action)
        params: dict[str, Any] = {}
        code: str | None = None
        try:
            signer = verify(
                SignedRequest(self.command, path, query, headers, body),
                self.api.world.keys.get,
                self.api.world.now(),
            )
            _refuse(fault, after=False)
            declared = self._find(signer.service, action, headers)
            params = _read(self.command, query, body)
            checked = _parameters.check(
                params, declared.shape, declared.required, text=self.command == "GET"
            )
            call = Call(
                signer.service,
                action,
                checked,
                headers.get("x-tc-region", ""),
                signer.key,
                request_id,
                str(self.client_address[0]),
            )
            response = self._work(declared, call, fault)
            _refuse(fault, after=True)
        except ApiError as error:
            code = error.code
            response = {"Error": {"Code": error.code, "Message": error.message}}
        except ConditionError as error:
            # This machine's trouble (a full disk, say) is the cloud's.
            code = "InternalError"
            response = {"Error": {"Code": code, "Message": str(error)}}
        self.api.record.append(
            RecordedRequest(
                action,
                _without_secrets(params),
                code,
                fault.effect if fault is not None else None,
                request_id,
                headers.get("x-tc-region", ""),
                time.time(),
            )
        )
        self._reply(fault, {**response, "RequestId": request_id})

    def _work(self, declared: Action, call: Call, fault: FaultKind | None) -> dict[str, Any]:
        if fault is None or fault.after:
            return declared.handler(self.api.world, call)
        if fault.effect == "failed-operation":
            return (declared.failing or declared.handler)(self.api.world, call)
        return {}

    def _find(self, service: str, action: str, headers: Mapping[str, str]) -> Action:
        if not action:
            raise ApiError("MissingParameter", "The request header `X-TC-Action` is missing.")
        version = headers.get("x-tc-version", "")
        if not version:
            raise ApiError("MissingParameter", "The request header `X-TC-Version` is missing.")
        actions = SERVICES.get((service, version))
        if actions is None:
            raise ApiError(
                "NoSuchVersion", f"The version `{version}` of `{service}` does not exist."
            )
        declared = actions.get(action)
        if declared is None:
            raise ApiError("InvalidAction", f"The action `{action}` is not here.")
        region = headers.get("x-tc-region", "")
        if declared.regional and not region:
            raise ApiError("MissingParameter", "The request header `X-TC-Region` is missing.")
        if declared.regional and region not in REGIONS:
            raise ApiError("UnsupportedRegion", f"The region `{region}` is not supported.")
        return declared

    def _reply(self, fault: FaultKind | None, response: dict[str, Any]) -> None:
        body = json.dumps({"Response": response}).encode()
        effect = fault.effect if fault is not None else None
        if fault is not None and effect == "status":
            self._send(int(fault.value), b"The service is not available.\n", "text/html")
        elif effect == "hang":
            self._hang()
        elif effect == "drop":
            self._hang_up()
        elif effect == "garbage":
            self._send(HTTPStatus.OK, b"<html><body>Sign in</body></html>", "text/html")
        elif effect == "truncate":
            self._send(HTTPStatus.OK, body, "application/json", cut=len(body) // 2)
            self._hang_up()
        else:
            # Exactly this content type: with a charset the SDK takes an error for an empty success.
            self._send(HTTPStatus.OK, body, "application/json")

    def _send(
        self, status: int, body: bytes, content_type: str, *, cut: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        _cut(self.connection)

    def _hang(self) -> None:
        """Keep the caller waiting until it gives up or the cloud ends."""
        self.close_connection = True
        while not self.api.world.closing.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.1)
            if readable:
                # Nothing more is to come: it is the end of the connection.
                return

    def _metadata(self, path: str) -> None:
        world = self.api.world
        prefix = "/latest/meta-data/cam/security-credentials/"
        role = path.removeprefix(prefix)
        if path.rstrip("/") == prefix.rstrip("/") and world.roles:
            self._send(HTTPStatus.OK, "\n".join(sorted(world.roles)).encode(), "text/plain")
        elif path.startswith(prefix) and role in world.roles:
            body = json.dumps(_role_credentials(world.new_key(role=role, seconds=7200))).encode()
            self._send(HTTPStatus.OK, body, "application/json")
        else:
            self._send(HTTPStatus.NOT_FOUND, b"404 Not Found\n", "text/plain")


def _refuse(fault: FaultKind | None, *, after: bool) -> None:
    if fault is not None and fault.effect == "code" and fault.after is after:
        raise ApiError(fault.value, f"A fault that was asked for: {fault.meaning}.")


def _read(method: str, query: str, body: bytes) -> dict[str, Any]:
    if method == "GET":
        return _parameters.from_query(query)
    try:
        params: object = json.loads(body or b"{}")
    except ValueError:
        raise ApiError("InvalidRequest", "The body of the request is not JSON.") from None
    if not isinstance(params, dict):
        raise ApiError("InvalidRequest", "The body of the request is not a JSON object.")
    return cast("dict[str, Any]", params)


def _without_secrets(params: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(
        {name: "***" if name in _SECRET else value for name, value in params.items()}
    )


def _role_credentials(key: Key) -> dict[str, Any]:
    assert key.expires is not None  # noqa: S101 - temporary keys have an end
    return {
        "TmpSecretId": key.secret_id,
        "TmpSecretKey": key.secret_key,
        "ExpiredTime": int(key.expires),
        "Expiration": utc(key.expires),
        "Token": key.token,
        "Code": "Success",
    }
