"""A real HTTP server that answers as a script says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs


@attrs.define
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def params(self) -> Any:
        return json.loads(self.body)


@attrs.define
class Answer:
    """What is sent back; ``hang_up`` closes the connection without an answer."""

    body: bytes = b"{}"
    status: int = 200
    headers: Mapping[str, str] = attrs.Factory(lambda: {"Content-Type": "application/json"})
    hang_up: bool = False
    cut: int | None = None


def ok(**response: Any) -> Answer:
    return Answer(json.dumps({"Response": {"RequestId": "r-1", **response}}).encode())


def refused(code: str, message: str = "no", **changes: Any) -> Answer:
    response = {"Error": {"Code": code, "Message": message}, "RequestId": "r-1"}
    return Answer(json.dumps({"Response": response}).encode(), **changes)


@attrs.define
class Scripted:
    url: str
    asked: list[Asked]
    answer: Callable[[Asked], Answer]


@contextmanager
def scripted(answer: Callable[[Asked], Answer]) -> Generator[Scripted]:
    state = Scripted("", [], answer)

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, dict(self.headers), body)
            state.asked.append(asked)
            made = state.answer(asked)
            self.close_connection = True
            if made.hang_up:
                return
            self.send_response(made.status)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(made.body)))
            self.end_headers()
            self.wfile.write(made.body if made.cut is None else made.body[: made.cut])

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
