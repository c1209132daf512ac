"""The receiving end: listens, lets nobody in but the sender of this migration, and writes what it sends."""

from __future__ import absolute_import, division

import errno
import hmac
import socket
import ssl
import sys
import threading
import time
from collections import deque

from cvm_migrate.agent import digests
from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.pump import compression, frames, slots, tls
from cvm_migrate.agent.pump.channel import ALIVE_INTERVAL, Channel, Waker, tune
from cvm_migrate.agent.pump.tls import Cut
from cvm_migrate.agent.verbs import AgentError, from_os_error, integer, text, texts

assert sys.platform != "win32", "pumps run on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, List, Optional, Text, Tuple

    from cvm_migrate.agent.pump.target import TargetDisk

HANDSHAKE_SECONDS = 10.0
#: How many connections may be on their way to a WELCOME.
HALF_OPEN = 32
# How long a refused peer gets to read why: closing at once would destroy the words on their way.
_LINGER = 2.0
_SLOTS = 4
_SLOT = 1 << 20
# Frames without bytes that wait for the writer.
_QUEUE = 256


class Receiver(object):
    """All that one receiving pump has.

    Args:
        disks: By their number.
        context: TLS for the end that listens.
        peer: The name in the sender's certificate.
        session: What the sender must know.
        streams: How many connections it may have.
    """

    def __init__(self, disks, context, peer, session, streams):
        # type: (Dict[int, TargetDisk], ssl.SSLContext, Text, Text, int) -> None
        self.disks = disks
        self._context = context
        self._peer = peer
        self._session = session.encode("ascii")
        self.streams = streams
        self._listener = None  # type: Optional[socket.socket]
        self._lock = threading.Lock()
        self._admitting = threading.Lock()
        self._half_open = []  # type: List[socket.socket]
        self._connections = {}  # type: Dict[int, Connection]
        self._sender = None  # type: Optional[Text]
        # Senders whose place another has taken; one that still runs somewhere must not take it back.
        self._replaced = deque(maxlen=256)  # type: Deque[Text]
        self.bytes = 0
        self.wire = 0
        self.refused = 0

    def listen(self, bind, port):
        # type: (Text, int) -> int
        """Listen and return the port.

        Raises:
            AgentError: The address is none of this host's, or in use.
        """
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                bind, port, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, socket.AI_PASSIVE
            )[0]
        except EnvironmentError as error:
            raise AgentError("bad-request", "cannot listen on %s: %s" % (bind, error))
        try:
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(HALF_OPEN)
        except EnvironmentError as error:
            raise from_os_error(
                "bad-request", error, doing="listening on %s port %d" % (bind, port)
            )
        self._listener = listener
        thread = threading.Thread(target=self._accept, args=(listener,))
        thread.daemon = True
        thread.start()
        return int(listener.getsockname()[1])

    def counts(self):
        # type: () -> Dict[str, int]
        """Return the RESULT of ``received``."""
        with self._lock:
            live = list(self._connections.values())
            return {
                "bytes": self.bytes + sum(one.bytes for one in live),
                "wire": self.wire + sum(one.wire for one in live),
                "connections": len(live),
                "refused": self.refused,
            }

    # -- letting in

    def _accept(self, listener):
        # type: (socket.socket) -> None
        while True:
            try:
                sock, _ = listener.accept()
            except EnvironmentError as error:
                if error.errno == errno.EBADF:
                    return
                # The connection is gone already, or descriptors are short: neither lasts.
                time.sleep(0.05)
                continue
            with self._lock:
                self._half_open.append(sock)
                if len(self._half_open) > HALF_OPEN:
                    # Under the lock, as its own thread takes it out before it closes it.
                    _shut(self._half_open.pop(0))
            thread = threading.Thread(target=self._meet, args=(sock,))
            thread.daemon = True
            try:
                thread.start()
            except RuntimeError:
                # No more threads can be had now.
                self._no_longer(sock)
                sock.close()

    def _no_longer(self, sock):
        # type: (Any) -> None
        with self._lock:
            if sock in self._half_open:
                self._half_open.remove(sock)

    def _meet(self, sock):
        # type: (socket.socket) -> None
        """Find out who has connected, and serve it if it is the sender."""
        end = monotonic() + HANDSHAKE_SECONDS
        waker = Waker()
        held = sock  # type: Any
        connection = None  # type: Optional[Connection]
        try:
            tune(sock)
            secure = tls.wrap(self._context, sock, server=True)
            # The connection is in the TLS socket now: there the oldest can be shut.
            with self._lock:
                if sock in self._half_open:
                    self._half_open[self._half_open.index(sock)] = secure
            held = secure
            tls.shake(secure, end)
            tls.check_peer(secure, self._peer)
            channel = Channel(secure, waker)
            hello = _await_hello(channel, waker, end)
            connection = self._judge(channel, waker, hello)
            self._admit(connection)
        except (AgentError, frames.FrameError, Cut, EnvironmentError, ValueError) as error:
            with self._lock:
                self.refused += 1
            _dismiss(held, error)
            self._no_longer(held)
            held.close()
            waker.close()
            return
        self._no_longer(held)
        try:
            connection.run()
        finally:
            with self._lock:
                if self._connections.get(connection.lane) is connection:
                    del self._connections[connection.lane]
                self.bytes += connection.bytes
                self.wire += connection.wire
            connection.ended.set()
            held.close()
            waker.close()

    def _judge(self, channel, waker, hello):
        # type: (Channel, Waker, Dict[str, Any]) -> Connection
        """Return the connection that a HELLO asks for.

        Raises:
            AgentError: It is refused, and why.
        """
        session = hello.get("session")
        known = hmac.compare_digest(self._session, ("%s" % (session,)).encode("utf-8", "replace"))
        if not known:
            raise AgentError("peer", "the session is of another migration")
        if hello.get("protocol") != frames.PROTOCOL:
            raise AgentError("unsupported", "the data protocol is %d here" % frames.PROTOCOL)
        algorithm = hello.get("algorithm")
        if algorithm not in digests.NAMES:
            raise AgentError("unsupported", "there are no %.40r digests here" % (algorithm,))
        lane = integer(hello, "lane", 0, self.streams - 1)
        sender = text(hello, "sender")
        sizes = {}  # type: Dict[int, int]
        wanted = _object(hello, "disks")
        for name in wanted:
            number = int(name) if len(name) <= 5 and name.isdigit() else -1
            if number not in self.disks:
                raise AgentError("bad-request", "there is no disk %.20r here" % (name,))
            sizes[number] = integer(wanted, name, 1)
        common = [
            codec for codec in texts(hello, "codecs", 16) if codec in compression.available()
        ]
        for number in sizes:
            self.disks[number].use(algorithm)
        return Connection(channel, waker, self.disks, sizes, lane, sender, common)

    def _admit(self, connection):
        # type: (Connection) -> None
        """Let a connection in, once nothing of those before it is under way any more."""
        with self._admitting:
            with self._lock:
                if connection.sender in self._replaced:
                    raise AgentError("peer", "another sender has taken this one's place")
                if self._sender is not None and self._sender != connection.sender:
                    self._replaced.append(self._sender)
                self._sender = connection.sender
                old = [
                    one
                    for one in self._connections.values()
                    if one.lane == connection.lane or one.sender != connection.sender
                ]
                # While they are in the table, their descriptors are theirs; after that, the numbers may be others'.
                for one in old:
                    one.end()
            for one in old:
                # A write that hangs in the kernel would hang here too, and nothing can go on then anyway.
                one.ended.wait()
            with self._lock:
                self._connections[connection.lane] = connection
        connection.welcome()


class Connection(object):
    """One lane: the thread that owns the channel takes frames in, another writes what is in them."""

    def __init__(self, channel, waker, disks, sizes, lane, sender, codecs):
        # type: (Channel, Waker, Dict[int, TargetDisk], Dict[int, int], int, Text, List[str]) -> None
        self.lane = lane
        self.sender = sender
        self.bytes = 0
        self.wire = 0
        self.ended = threading.Event()
        self._channel = channel
        self._waker = waker
        self._disks = disks
        self._sizes = sizes
        self._codecs = codecs
        self._ending = False
        self._free = deque([None] * _SLOTS)  # type: Deque[Optional[slots.Slot]]
        self._work = deque()  # type: Deque[Tuple[frames.Header, Optional[slots.Slot]]]
        self._more = threading.Condition(threading.Lock())
        # What the writer has to say; an ACK that was not sent yet grows.
        self._answers = deque()  # type: Deque[Tuple[int, Optional[bytes]]]
        self._head = bytearray(frames.HEADER.size)
        self._at = 0
        self._header = None  # type: Optional[frames.Header]
        self._slot = None  # type: Optional[slots.Slot]
        self._sequence = 0

    def welcome(self):
        # type: () -> None
        """Leave the WELCOME to be sent."""
        self._channel.post(
            frames.encode_json(
                frames.WELCOME,
                {
                    "protocol": frames.PROTOCOL,
                    "codecs": self._codecs,
                    "disks": dict(  # noqa: C402 - 2.6
                        (str(number), self._disks[number].handle.size) for number in self._sizes
                    ),
                },
            )
        )

    def end(self):
        # type: () -> None
        """End it, from any thread."""
        self._ending = True
        self._channel.shut()
        self._waker.sleeping = True
        self._waker.wake()

    def run(self):
        # type: () -> None
        """Serve it until it ends."""
        writer = threading.Thread(target=self._write)
        writer.daemon = True
        writer.start()
        try:
            self._serve()
        except Cut:
            pass
        except (frames.FrameError, AgentError) as error:
            self._refuse(error)
        finally:
            self._ending = True
            with self._more:
                self._work.clear()
                self._more.notify()
            # A chunk that is being written now will have been written when the lane is admitted again.
            writer.join()

    def _refuse(self, error):
        # type: (Exception) -> None
        if not isinstance(error, AgentError):
            error = AgentError("internal", "the sender sent %s" % (error,))
        try:
            _say_refused(self._channel, self._waker, error, monotonic() + _LINGER)
        except (Cut, EnvironmentError):
            pass  # it has gone, and cannot be told

    # -- the channel's thread

    def _serve(self):
        # type: () -> None
        channel, waker = self._channel, self._waker
        while not self._ending:
            waker.sleeping = True
            self._collect_answers()
            channel.keep_alive()
            gone = channel.flush()
            reading = len(self._work) < _QUEUE and (self._header is not None or bool(self._free))
            if reading and self._take_in():
                continue
            if not reading:
                # What is not listened to is not silent.
                channel.heard = monotonic()
            channel.wait(reading, not gone, ALIVE_INTERVAL / 2)

    def _collect_answers(self):
        # type: () -> None
        while self._answers:
            sequence, frame = self._answers.popleft()
            if frame is None:
                while self._answers and self._answers[0][1] is None:
                    sequence, _ = self._answers.popleft()
                frame = frames.encode_header(frames.ACK, sequence=sequence)
            self._channel.post(frame)

    def _take_in(self):
        # type: () -> bool
        """Take in what has come of one frame; return whether that was all of it."""
        if self._header is None:
            self._at += self._channel.read_some(memoryview(self._head)[self._at :])
            if self._at < frames.HEADER.size:
                return False
            self._header = self._check(frames.decode_header(bytes(self._head), from_sender=True))
            self._at = 0
            if self._header.kind in (frames.DATA, frames.PROBE):
                self._slot = self._take_slot(self._header.length)
        header = self._header
        if header.kind in (frames.DATA, frames.PROBE):
            assert self._slot is not None  # noqa: S101 - taken with the header
            self._at += self._channel.read_some(self._slot.chunk(header.size)[self._at :])
            if self._at < header.size:
                return False
        self.wire += frames.HEADER.size + header.size
        slot, self._slot, self._header, self._at = self._slot, None, None, 0
        if header.kind != frames.ALIVE:
            with self._more:
                self._work.append((header, slot))
                self._more.notify()
        return True

    def _check(self, header):
        # type: (frames.Header) -> frames.Header
        """Raise where a frame asks for what may not be."""
        if header.kind == frames.ALIVE:
            return header
        if header.kind == frames.HELLO:
            raise frames.FrameError("a second HELLO")
        self._sequence += 1
        if header.sequence != self._sequence:
            raise frames.FrameError(
                "frame %d where %d was next" % (header.sequence, self._sequence)
            )
        if header.kind == frames.PROBE:
            return header
        if header.disk not in self._sizes:
            raise frames.FrameError("a frame for disk %d, which was not named" % header.disk)
        if header.kind == frames.FLUSH:
            return header
        disk = self._disks[header.disk]
        if not disk.fits(header.offset, header.length, self._sizes[header.disk]):
            raise AgentError(
                "bad-request",
                "a range is not inside %s, or not made of whole blocks" % disk.handle.path,
                device=disk.handle.path,
                offset=header.offset,
                length=header.length,
            )
        return header

    def _take_slot(self, length):
        # type: (int) -> slots.Slot
        slot = self._free.popleft()
        if slot is None or slot.size < length:
            slot = slots.Slot(max(length, _SLOT))
        return slot

    # -- the writer's thread

    def _write(self):
        # type: () -> None
        while True:
            with self._more:
                while not self._work and not self._ending:
                    self._more.wait()
                if self._ending:
                    return
                header, slot = self._work.popleft()
            try:
                answer = self._do(header, slot)
            except Exception as error:  # noqa: BLE001 - a thread that ended would let the sender wait for ever
                answer = frames.encode_json(
                    frames.FAILED, self._report(header, error), sequence=header.sequence
                )
            if slot is not None:
                self._free.append(slot)
            self._answers.append((header.sequence, answer))
            self._waker.wake()

    def _report(self, header, error):
        # type: (frames.Header, Exception) -> Dict[str, Any]
        if isinstance(error, frames.FrameError):
            error = AgentError("internal", "%s" % (error,))
        elif not isinstance(error, AgentError):
            error = AgentError("internal", "%s: %s" % (type(error).__name__, error))
        if error.device is None:
            error.device = self._disks[header.disk].handle.path
        if error.offset is None and header.length:
            error.offset, error.length = header.offset, header.length
        return error.to_header()

    def _do(self, header, slot):
        # type: (frames.Header, Optional[slots.Slot]) -> Optional[bytes]
        if header.kind == frames.PROBE:
            return None
        disk = self._disks[header.disk]
        if header.kind == frames.FLUSH:
            seconds = disk.flush()
            return frames.encode_json(
                frames.FLUSHED, {"seconds": seconds}, sequence=header.sequence
            )
        if header.kind == frames.ZERO:
            disk.zero(header.offset, header.length)
        else:
            assert slot is not None  # noqa: S101 - every chunk has one
            if header.codec != frames.RAW:
                slot.buffer.put(
                    compression.decompress(header.codec, slot.chunk(header.size), header.length),
                    slots.DATA,
                )
            disk.write(slot, header.offset, header.length, header.digest)
        self.bytes += header.length
        return None


def _object(args, name):
    # type: (Dict[str, Any], str) -> Dict[str, Any]
    value = args.get(name)
    if not isinstance(value, dict):
        raise AgentError("bad-request", "%s is no object" % name)
    return value  # pyright: ignore[reportUnknownVariableType] - JSON


def _await_hello(channel, waker, end):
    # type: (Channel, Waker, float) -> Dict[str, Any]
    while True:
        waker.sleeping = True
        found = channel.next_frame(from_sender=True)
        if found is not None:
            header, payload = found
            if header.kind != frames.HELLO:
                raise frames.FrameError("a frame of kind %d before HELLO" % header.kind)
            return frames.decode_json(payload)
        left = end - monotonic()
        if left <= 0:
            raise Cut("no HELLO has come")
        channel.wait(True, False, left)


def _dismiss(sock, error):
    # type: (Any, Exception) -> None
    """Tell a peer why it is refused, where it can be told, and see that it can read it."""
    end = monotonic() + _LINGER
    if isinstance(error, (Cut, ValueError)):
        return
    try:
        if isinstance(error, (AgentError, frames.FrameError)) and isinstance(sock, ssl.SSLSocket):
            if not isinstance(error, AgentError):
                error = AgentError("peer", "%s" % (error,))
            waker = Waker()
            try:
                _say_refused(Channel(sock, waker), waker, error, end)
            finally:
                waker.close()
        elif isinstance(error, ssl.SSLError):
            # OpenSSL has sent an alert. With unread bytes left, closing would be a reset and overtake it.
            tls.linger(sock, end)
    except (Cut, EnvironmentError):
        pass  # it has gone, and cannot be told


def _say_refused(channel, waker, error, end):
    # type: (Channel, Waker, AgentError, float) -> None
    """Send a REFUSED after what was posted, then read and forget until the peer closes."""
    channel.post(
        frames.encode_json(frames.REFUSED, {"code": error.code, "message": error.message})
    )
    scratch = memoryview(bytearray(64 << 10))
    half = False
    while monotonic() < end:
        gone = channel.flush()
        if gone and not half:
            channel.half_close()
            half = True
        while channel.read_some(scratch):
            pass
        waker.sleeping = True
        channel.wait(True, not gone, 0.1)


def _shut(sock):
    # type: (Any) -> None
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except EnvironmentError:
        pass  # it has ended already
