"""A TCP proxy that can do to a connection what networks do: cut it, stall it, slow it down, lose its end."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Generator


class Proxy:
    """Passes connections on to *port*; every fault is one method. Use :func:`proxy`."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        self._stalled = threading.Event()
        self._refusing = False
        self._cut_after: int | None = None
        self.rate: float | None = None
        self.accepted = 0
        self.passed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection, as a firewall that has lost its state does."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for sock in (sock for pair in pairs for sock in pair):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Its own thread closes it, so that no number of a descriptor is reused under it.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def half_close(self) -> None:
        """Tell the receiver's end that the sender's has ended, and go on passing what comes back."""
        with self._lock:
            pairs = list(self._pairs)
        for _, server in pairs:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_WR)

    def cut_after(self, count: int) -> None:
        """Cut everything once, when *count* more bytes have passed."""
        with self._lock:
            self._cut_after = self.passed + count

    @property
    def cut_is_due(self) -> bool:
        """Whether :meth:`cut_after` is still to happen."""
        return self._cut_after is not None

    def stall(self) -> None:
        """Pass nothing on and say nothing, as a cable that was pulled."""
        self._stalled.set()

    def resume(self) -> None:
        """End :meth:`stall`."""
        self._stalled.clear()

    def refuse(self, *, refuse: bool = True) -> None:
        """Close new connections as soon as they come."""
        self._refusing = refuse

    def close(self) -> None:
        """End it."""
        self._closed = True
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._to), timeout=10)
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((client, server))
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        open_ends = {client, server}
        try:
            while open_ends and not self._closed:
                if self._stalled.is_set():
                    time.sleep(0.02)
                    continue
                ready, _, _ = select.select(list(open_ends), [], [], 0.1)
                if self._stalled.is_set():
                    continue
                for sock in ready:
                    data = sock.recv(1 << 16)
                    if not data:
                        open_ends.discard(sock)
                        with contextlib.suppress(OSError):
                            other[sock].shutdown(socket.SHUT_WR)
                        continue
                    if self.rate is not None:
                        time.sleep(len(data) / self.rate)
                    other[sock].sendall(data)
                    self._count(len(data))
        except OSError:
            pass
        finally:
            with self._lock:
                if (client, server) in self._pairs:
                    self._pairs.remove((client, server))
            client.close()
            server.close()

    def _count(self, count: int) -> None:
        with self._lock:
            self.passed += count
            now = self._cut_after is not None and self.passed >= self._cut_after
            if now:
                self._cut_after = None
        if now:
            self.cut()


@contextlib.contextmanager
def proxy(port: int) -> Generator[Proxy]:
    """A proxy in front of *port* of this machine."""
    made = Proxy(port)
    try:
        yield made
    finally:
        made.close()
