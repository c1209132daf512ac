"""A child process with which bytes are exchanged: never blocking, and never left as a zombie."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from cvm_migrate.transport._environment import inherited

_TAIL: Final = 64 << 10
_READ: Final = 256 << 10


class Child:
    """A process whose standard streams are pipes that never block this side.

    Args:
        command: Program and arguments.
        environment: Its environment; ``None``: what children inherit.
        pass_fds: File descriptors that it inherits under the same number.

    Raises:
        OSError: It could not be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        # A session of its own: Ctrl-C in a terminal goes to the caller, who ends the agent in order.
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=inherited() if environment is None else environment,
            pass_fds=pass_fds,
        )
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, self._stdout, self._stderr = (
            pipe.fileno() for pipe in pipes if pipe is not None
        )
        if sys.platform != "win32":
            for fd in (self._stdin, self._stdout, self._stderr):
                os.set_blocking(fd, False)
        self._tail = bytearray()
        self._output_open = self._errors_open = self._input_open = True

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal, once it has been waited for."""
        return self._process.returncode

    @property
    def output_open(self) -> bool:
        """Whether standard output has not ended yet."""
        return self._output_open

    @property
    def errors(self) -> str:
        """Return the last 64 KiB of its standard error."""
        return self._tail.decode("utf-8", "replace")

    def exchange(
        self, outgoing: memoryview | None, seconds: float, wake: int | None = None
    ) -> tuple[int, bytes]:
        """Write and read what is possible now, or wait for it.

        Standard error is read too, for :attr:`errors`.

        Args:
            outgoing: What is to be written; ``None`` if nothing.
            seconds: How long to wait at most.
            wake: A file descriptor that ends the waiting when it can be read.

        Returns:
            How many bytes were written, and which were read.
        """
        writing = outgoing is not None and len(outgoing) > 0 and self._input_open
        with selectors.DefaultSelector() as selector:
            if self._output_open:
                selector.register(self._stdout, selectors.EVENT_READ)
            if self._errors_open:
                selector.register(self._stderr, selectors.EVENT_READ)
            if wake is not None:
                selector.register(wake, selectors.EVENT_READ)
            if writing:
                selector.register(self._stdin, selectors.EVENT_WRITE)
            ready = {key.fd for key, _ in selector.select(max(0.0, seconds))}
        if self._stderr in ready:
            self._read_errors()
        received = self._read_output() if self._stdout in ready else b""
        written = 0
        if writing and outgoing is not None and self._stdin in ready:
            written = self._write(outgoing)
        return written, received

    def _read_output(self) -> bytes:
        try:
            data = os.read(self._stdout, _READ)
        except BlockingIOError:
            return b""
        if not data:
            self._output_open = False
        return data

    def _read_errors(self) -> None:
        try:
            data = os.read(self._stderr, _READ)
        except BlockingIOError:
            return
        if not data:
            self._errors_open = False
        self._tail += data
        del self._tail[:-_TAIL]

    def _write(self, outgoing: memoryview) -> int:
        try:
            return os.write(self._stdin, outgoing[:_READ])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            # The other side reads no more: what it still has to say comes on its output.
            self._input_open = False
            return 0

    def close_input(self) -> None:
        """Tell it that nothing more will come."""
        self._input_open = False
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def wait(self, seconds: float) -> bool:
        """Wait for its end, reading on so that it is not held up; return whether it has ended."""
        end = time.monotonic() + seconds
        while self._process.poll() is None:
            left = end - time.monotonic()
            if left <= 0:
                return False
            if self._output_open or self._errors_open:
                self.exchange(None, min(left, 0.05))
            else:
                time.sleep(min(left, 0.01))
        return True

    def end(self, *, patience: float) -> int | None:
        """End it in order, or else by force, and take everything down.

        Args:
            patience: Seconds that it has to end by itself once its input has ended; as many again
                after it was asked by a signal.

        Returns:
            Its exit status; ``None`` if even a kill did not end it, as when its disk holds it.
        """
        self.close_input()
        ended = self.wait(patience)
        # sudo runs as root: a signal may be refused. Then the end of its input must do.
        if not ended:
            with contextlib.suppress(PermissionError):
                self._process.terminate()
            ended = self.wait(patience)
        if not ended:
            with contextlib.suppress(PermissionError):
                self._process.kill()
            ended = self.wait(5.0)
        self._drain()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._output_open = self._errors_open = False
        return self._process.returncode

    def _drain(self) -> None:
        """Take what it wrote last; grandchildren may hold the pipes open, so never wait for the end."""
        for _ in range(16):
            if self._output_open or self._errors_open:
                self.exchange(None, 0.0)
