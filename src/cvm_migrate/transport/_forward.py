"""A port of another machine as a port of this one, through SSH: for data where the data port is closed."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import threading
from typing import Final

from cvm_migrate.closing import Closing
from cvm_migrate.errors import AgentLostError, InvalidRequestError
from cvm_migrate.transport._askpass import PasswordHelper
from cvm_migrate.transport._environment import inherited
from cvm_migrate.transport._ssh import SshTarget, explain

_WORDS: Final = 64 << 10
# One for each stream; sshd itself turns away beyond ten that have not logged in yet (MaxStartups).
_MOST: Final = 64


class SshForward(Closing):
    """A port on this machine's loopback that leads to a port on the other machine's.

    Each connection is an SSH connection of its own: streams do not wait for one another, and one whose SSH client
    is killed ends alone. Who used it connects anew, to the same port.

    Args:
        target: The machine.
        remote_port: A port there, on its loopback.
        remote_host: The address there that it belongs to.
        silence: Seconds without a sign from the other end after which a connection is given up.

    Raises:
        InvalidRequestError: That is no port.
    """

    def __init__(
        self,
        target: SshTarget,
        remote_port: int,
        *,
        remote_host: str = "127.0.0.1",
        silence: float = 120.0,
    ) -> None:
        if not 0 < remote_port < 1 << 16:
            raise InvalidRequestError(f"{remote_port} is no port", remedy="Give 1 to 65535")
        self._target = target
        self._silence = silence
        self._to = (
            f"[{remote_host}]:{remote_port}"
            if ":" in remote_host
            else f"{remote_host}:{remote_port}"
        )
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._threads: set[threading.Thread] = set()
        self._last_words = ""
        self._closed = False
        self._helper = PasswordHelper(target.password)
        try:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=_MOST)
        except BaseException:
            self._helper.close()
            raise
        self.port: int = self._listener.getsockname()[1]
        self._listener.settimeout(0)
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(
            target=self._accept, name=f"forward to {target.destination}", daemon=True
        )
        self._thread.start()

    @property
    def clients(self) -> tuple[int, ...]:
        """Process numbers of the SSH clients that run."""
        with self._lock:
            return tuple(self._running)

    def check(self) -> None:
        """Raise what the last connection ended with, if it ended badly.

        Raises:
            HostKeyError: The host key is unknown or has changed.
            PermissionDeniedError: The login is refused.
            ConnectionLostError: The machine, or the port there, cannot be reached.
            AgentLostError: The client ended for another reason.
        """
        with self._lock:
            words = self._last_words
        if words:
            raise explain(
                self._target,
                words,
                AgentLostError(f"the SSH connection to {self._target.destination} ended"),
            )

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._wake in ready:
                    return
                try:
                    connection, _ = self._listener.accept()
                except (BlockingIOError, ConnectionError):
                    continue
                with connection:
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        command = self._target.client("-W", self._to, silence=self._silence)
        with self._lock:
            if self._closed or len(self._running) >= _MOST:
                return
            try:
                process = subprocess.Popen(
                    command,
                    stdin=connection.fileno(),
                    stdout=connection.fileno(),
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    env=inherited(**self._helper.environment),
                )
            except OSError as error:
                self._last_words = f"OpenSSH's client could not be started: {error}"
                return
            self._running[process.pid] = process
            thread = threading.Thread(
                target=self._watch, args=(process,), name="forward's client", daemon=True
            )
            self._threads = {other for other in self._threads if other.is_alive()} | {thread}
        thread.start()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        words = bytearray()
        if process.stderr is not None:
            with process.stderr as stderr:
                while data := os.read(stderr.fileno(), 4096):
                    words += data
                    del words[:-_WORDS]
        status = process.wait()
        with self._lock:
            self._running.pop(process.pid, None)
            # 255 is the client's own failure; a signal is ours, or somebody else's.
            self._last_words = words.decode("utf-8", "replace") if status == 255 else ""

    def close(self) -> None:
        """End every connection and listen no more; can be called more than once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            running, threads = list(self._running.values()), list(self._threads)
        self._waker.send(b"!")
        self._thread.join()
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for thread in threads:
            thread.join(5.0)
        for process in running:
            if process.poll() is None:
                process.kill()
        for thread in threads:
            thread.join()
        for item in (self._listener, self._waker, self._wake):
            item.close()
        self._helper.close()
