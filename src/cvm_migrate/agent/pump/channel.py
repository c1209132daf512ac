"""One TLS connection that never blocks, for the one thread that owns it.

OpenSSL allows no two threads in one connection, so the thread that sends also receives. It sleeps in
:meth:`Channel.wait`, from which other threads wake it.
"""

from __future__ import absolute_import

import errno
import fcntl
import os
import select
import socket
import ssl

from cvm_migrate.agent import reach
from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.pump import frames
from cvm_migrate.agent.pump.tls import Cut, is_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Tuple

# Type checkers look at this module for Windows too, which lacks these.
_select = select  # type: Any
_fcntl = fcntl  # type: Any
_O_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # type: int

# An end that has sent nothing else for so long sends ALIVE; one that hears nothing for so long gives up.
ALIVE_INTERVAL = 2.0
DEAD_AFTER = 15.0

_BUFFER = 8 << 20
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_TCP_USER_TIMEOUT = 18
_TCP_NOTSENT_LOWAT = 25
_NOT_SENT = 512 << 10
_SCRATCH = 64 << 10


class Waker(object):
    """A pipe that ends another thread's wait."""

    def __init__(self):
        # type: () -> None
        self._read, self._write = os.pipe()
        for fd in (self._read, self._write):
            _fcntl.fcntl(fd, _fcntl.F_SETFD, _fcntl.fcntl(fd, _fcntl.F_GETFD) | _fcntl.FD_CLOEXEC)
            flags = _fcntl.fcntl(fd, _fcntl.F_GETFL)
            _fcntl.fcntl(fd, _fcntl.F_SETFL, flags | _O_NONBLOCK)
        self._poll = _select.poll()
        self._poll.register(self._read, _select.POLLIN)
        # Set before the sleeper looks a last time whether there is work, so that nobody's wake is missed.
        self.sleeping = False

    def wake(self):
        # type: () -> None
        """End the sleeper's wait, or its next one."""
        if self.sleeping:
            self.sleeping = False
            try:
                os.write(self._write, b"\0")
            except EnvironmentError as error:
                # A full pipe wakes as well.
                if error.errno != errno.EAGAIN:
                    raise

    def fileno(self):
        # type: () -> int
        """Return what a poll watches."""
        return self._read

    def clear(self):
        # type: () -> None
        """Forget the wakes so far."""
        try:
            os.read(self._read, 4096)
        except EnvironmentError as error:
            if error.errno != errno.EAGAIN:
                raise

    def wait(self, seconds):
        # type: (float) -> None
        """Sleep until woken, with no connection to watch; ``sleeping`` must be set before."""
        try:
            if self._poll.poll(int(seconds * 1000) + 1):
                self.clear()
        except select.error as error:
            if error.args[0] != errno.EINTR:
                raise
        self.sleeping = False

    def close(self):
        # type: () -> None
        """Close the pipe; nobody may wake it any more."""
        os.close(self._read)
        os.close(self._write)


def tune(sock):
    # type: (socket.socket) -> None
    """Set what a fast, long path needs, and that a dead peer is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        except EnvironmentError:
            # Without the right to pass the system's limit, the kernel's own sizing is better than that limit.
            break
    for option, value in (
        # Linux 2.6.37; ALIVE frames notice a dead peer as well.
        (_TCP_USER_TIMEOUT, int(DEAD_AFTER * 1000)),
        # Linux 3.12. What waits in a large buffer would make a slow path look fast, and delay what comes after it.
        (_TCP_NOTSENT_LOWAT, _NOT_SENT),
    ):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        except EnvironmentError:
            continue


class Channel(object):
    """A TLS connection after its handshake."""

    def __init__(self, secure, waker):
        # type: (ssl.SSLSocket, Waker) -> None
        self._secure = secure
        self._waker = waker
        self._fd = secure.fileno()
        # The TLS socket's own methods: those of any socket would only call them.
        self._read = secure.read  # type: Any # pyright: ignore[reportDeprecated]
        self._write = secure.write  # pyright: ignore[reportDeprecated]
        self._reading = _select.poll()
        self._writing = _select.poll()
        self._waking = _select.poll()
        self._reading.register(self._fd, _select.POLLIN)
        self._writing.register(self._fd, _select.POLLIN | _select.POLLOUT)
        self._waking.register(self._fd, _select.POLLOUT)
        for poll in (self._reading, self._writing, self._waking):
            poll.register(waker.fileno(), _select.POLLIN)
        self._scratch = bytearray(_SCRATCH)
        self._inbox = bytearray()
        self._outbox = bytearray()
        self.heard = self.spoke = monotonic()
        self.wire = 0

    # -- bytes

    def read_some(self, view):
        # type: (memoryview) -> int
        """Fill as much of *view* as has come; return the number of bytes.

        Raises:
            Cut: The connection has ended.
        """
        done = 0
        size = len(view)
        try:
            while done < size:
                count = self._read(size - done, view[done:])
                if count == 0:
                    raise Cut("the peer closed the connection")
                done += count
        except ssl.SSLWantReadError:
            pass
        except EnvironmentError as error:
            raise _broken(error)
        if done:
            self.heard = monotonic()
        return done

    def write_some(self, view):
        # type: (memoryview) -> int
        """Send as much of *view* as the connection takes now; return the number of bytes.

        Raises:
            Cut: The connection has ended.
        """
        done = 0
        size = len(view)
        try:
            while done < size:
                count = self._write(view[done:])
                if not count:
                    break  # what Python 2 does instead of raising
                done += count
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except EnvironmentError as error:
            raise _broken(error)
        if done:
            self.spoke = monotonic()
            self.wire += done
        return done

    # -- small frames

    def post(self, data):
        # type: (bytes) -> None
        """Leave a small frame for :meth:`flush`."""
        self._outbox += data

    def flush(self):
        # type: () -> bool
        """Send what was posted, as far as it goes; return whether all of it is gone.

        Raises:
            Cut: The connection has ended.
        """
        if self._outbox:
            # A copy, as a bytearray that is looked at cannot shrink.
            done = self.write_some(memoryview(bytes(self._outbox)))
            del self._outbox[:done]
        return not self._outbox

    def keep_alive(self, may_speak=True):
        # type: (bool) -> None
        """Post an ALIVE if nothing was sent for a while, unless half a frame was.

        Raises:
            Cut: Nothing was heard for too long.
        """
        now = monotonic()
        if now - self.heard > DEAD_AFTER:
            raise Cut("nothing was heard of the peer for %d s" % DEAD_AFTER)
        if may_speak and now - self.spoke > ALIVE_INTERVAL and not self._outbox:
            self.post(frames.encode_header(frames.ALIVE))

    def next_frame(self, from_sender):
        # type: (bool) -> Optional[Tuple[frames.Header, bytes]]
        """Return the next frame and its payload, None if none has come in whole; for frames without chunks.

        Raises:
            Cut: The connection has ended.
            FrameError: It is none that may come now.
        """
        while True:
            found = self._parse(from_sender)
            if found is not None:
                return found
            count = self.read_some(memoryview(self._scratch))
            if count == 0:
                return None
            self._inbox += self._scratch[:count]

    def _parse(self, from_sender):
        # type: (bool) -> Optional[Tuple[frames.Header, bytes]]
        start = frames.HEADER.size
        if len(self._inbox) < start:
            return None
        header = frames.decode_header(bytes(self._inbox[:start]), from_sender)
        if header.kind in (frames.DATA, frames.PROBE):
            raise frames.FrameError("a chunk before it may come")
        if len(self._inbox) < start + header.size:
            return None
        payload = bytes(self._inbox[start : start + header.size])
        del self._inbox[: start + header.size]
        return header, payload

    # -- waiting

    def wait(self, read, write, seconds):
        # type: (bool, bool, float) -> None
        """Sleep until the connection can be read or written, as asked for, or another thread wakes this one.

        The waker's ``sleeping`` must have been set, and work looked for, before.
        """
        if self._waker.sleeping and not (read and self._secure.pending()):
            poll = self._writing if read and write else self._waking if write else self._reading
            if not read and not write:
                self._waker.wait(seconds)
                return
            try:
                for fd, _ in poll.poll(int(seconds * 1000) + 1):
                    if fd != self._fd:
                        self._waker.clear()
            except select.error as error:
                if error.args[0] != errno.EINTR:
                    raise
        self._waker.sleeping = False

    def path(self):
        # type: () -> Tuple[Optional[int], Optional[int]]
        """Return the path's MTU and the segment size, None for what the system does not know; from any thread."""
        return reach.path_facts(self._secure)

    # -- the end

    def shut(self):
        # type: () -> None
        """End the connection from any thread: the owner gets a :class:`Cut`."""
        self._shutdown(socket.SHUT_RDWR)

    def half_close(self):
        # type: () -> None
        """Say that nothing more will be sent."""
        self._shutdown(socket.SHUT_WR)

    def _shutdown(self, how):
        # type: (int) -> None
        try:
            # Not the TLS socket's own method, which takes TLS away from under the thread that is in it.
            socket.socket.shutdown(self._secure, how)
        except EnvironmentError:
            pass  # it has ended already

    def close(self):
        # type: () -> None
        """Close it; only the owner may."""
        self._secure.close()


def _broken(error):
    # type: (EnvironmentError) -> Cut
    if not isinstance(error, ssl.SSLError):
        return Cut("the connection broke: %s" % (os.strerror(error.errno or 0),))
    if is_end(error):
        return Cut("the peer closed the connection")
    return Cut("the connection broke: %s" % (error,))
