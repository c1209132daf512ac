"""The agent as a process under any Python, spoken to in frames: for tests of the agent itself.

The library's own client is typed and forgiving; this one sends and shows exactly what is on the line.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import cvm_migrate.agent
from cvm_migrate.agent import wire

SECONDS = 60.0


def build_zip(folder: Path) -> Path:
    """Put the agent into a zip file as it is delivered, without the library around it."""
    path = folder / "agent.zip"
    root = Path(cvm_migrate.agent.__file__).parent
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("cvm_migrate/__init__.py", "")
        for source in sorted(root.rglob("*.py")):
            file.write(source, "cvm_migrate/agent/" + source.relative_to(root).as_posix())
        file.write(root / "__main__.py", "__main__.py")
    return path


class RawError(Exception):
    """An ERROR frame."""

    def __init__(self, header: dict[str, Any]) -> None:
        super().__init__(f"{header['code']}: {header['message']}")
        self.header = header
        self.code = header["code"]


class RawAgent:
    """One running agent. Every wait is bounded by ``SECONDS``."""

    def __init__(self, python: Path, path: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [str(python), "-E", "-s", "-B", str(path), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.errors = b""
        self.unanswered: queue.Queue[wire.Frame | None] = queue.Queue()
        self._answers: dict[int, queue.Queue[wire.Frame | None]] = {}
        self._last_id = 0
        self._lock = threading.Lock()
        self._readers = [
            threading.Thread(target=target, daemon=True) for target in (self._read, self._listen)
        ]
        for reader in self._readers:
            reader.start()
        hello = self.unanswered.get(timeout=SECONDS)
        assert hello is not None, self.errors
        assert hello.kind == wire.HELLO
        self.hello = hello.header

    def _read(self) -> None:
        decoder = wire.Decoder()
        assert self.process.stdout is not None
        while data := self.process.stdout.read(1 << 16):
            for frame in decoder.feed(data):
                with self._lock:
                    answers = self._answers.get(frame.id, self.unanswered)
                answers.put(frame)
        with self._lock:
            waiting = [*self._answers.values(), self.unanswered]
        for answers in waiting:
            answers.put(None)

    def _listen(self) -> None:
        assert self.process.stderr is not None
        while data := self.process.stderr.read(1 << 16):
            self.errors = (self.errors + data)[-(1 << 16) :]

    def write(self, data: bytes) -> None:
        """Send bytes, whether they are a frame or not."""
        assert self.process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self.process.stdin.fileno(), view) :]

    def ask(self, verb: str, blob: bytes = b"", **args: Any) -> int:
        """Send a request and return its number."""
        with self._lock:
            self._last_id += 1
            number = self._last_id
            self._answers[number] = queue.Queue()
            frame = wire.encode(wire.REQUEST, number, {"verb": verb, "args": args}, blob)
        self.write(frame)
        return number

    def cancel(self, number: int) -> None:
        self.write(wire.encode(wire.CANCEL, number, {}))

    def frames(self, number: int) -> Iterator[wire.Frame]:
        """Yield the answers to a request, the RESULT last; an ERROR is raised."""
        while True:
            frame = self._answers[number].get(timeout=SECONDS)
            if frame is None:
                raise EOFError(f"the agent has ended: {self.errors.decode(errors='replace')}")
            if frame.kind == wire.ERROR:
                raise RawError(frame.header)
            yield frame
            if frame.kind == wire.RESULT:
                return

    def call(self, verb: str, blob: bytes = b"", **args: Any) -> wire.Frame:
        """Send a request and return its RESULT."""
        *_, last = self.frames(self.ask(verb, blob, **args))
        return last

    def open(self, path: Path | str, mode: str = "read", **args: Any) -> dict[str, Any]:
        return self.call("open", path=str(path), mode=mode, **args).header

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Close its standard input and return its exit code."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        return code

    def close(self) -> None:
        """End it, by force if need be, and release our ends."""
        try:
            self.end()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def raw_agent(python: Path, path: Path, *options: str) -> Generator[RawAgent]:
    """An agent that is ended afterwards."""
    agent = RawAgent(python, path, *options)
    try:
        yield agent
    finally:
        agent.close()
