"""One connection of a sender: a thread that owns it, and threads that read what it sends."""

from __future__ import absolute_import, division

import random
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
from cvm_migrate.agent.verbs import AgentError

assert sys.platform != "win32", "pumps run on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, List, Optional, Tuple, Union

    from cvm_migrate.agent.pump.job import Job
    from cvm_migrate.agent.pump.probe import Probe
    from cvm_migrate.agent.pump.sender import Sender

    Work = Union[Job, Probe]

_CONNECT_SECONDS = 10.0
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 2.0
# What may be unanswered on one connection.
_WINDOW_FRAMES = 4096
_WINDOW_BYTES = 64 << 20
# With a limit, so much is sent at a time, so that the rate is even.
_SLICE = 64 << 10

CONNECTING = "connecting"
UP = "up"


class _Renewal(Exception):
    """The connection has carried so much that it needs new keys."""


class Item(object):
    """Something to send: a chunk in a slot, a fact about zeroes, or a flush."""

    __slots__ = ("codec", "digest", "job", "kind", "length", "offset", "payload", "slot")

    def __init__(self, job, kind, offset, length):
        # type: (Work, int, int, int) -> None
        self.job = job
        self.kind = kind
        self.offset = offset
        self.length = length
        self.codec = frames.RAW
        self.digest = b""
        self.payload = None  # type: Optional[bytes]
        self.slot = None  # type: Optional[slots.Slot]


class Lane(object):
    """One connection. :attr:`state`, :attr:`refusal` and :attr:`reason` are for others to look at.

    Args:
        sender: What it belongs to.
        number: Its number, which the receiver knows it by.
        readers: How many threads read ahead for it.
    """

    def __init__(self, sender, number, readers):
        # type: (Sender, int, int) -> None
        self.number = number
        self.state = CONNECTING
        self.reason = "nothing was tried yet"
        self.refusal = None  # type: Optional[AgentError]
        self.channel = None  # type: Optional[Channel]
        self.facts = {}  # type: Dict[str, Any]
        self._sender = sender
        self._waker = Waker()
        self._cond = threading.Condition(threading.Lock())
        self._free = readers + 2
        self._slots = []  # type: List[slots.Slot]
        self._redo = deque()  # type: Deque[Tuple[Work, int, int]]
        self._ready = deque()  # type: Deque[Item]
        self._in_flight = deque()  # type: Deque[Tuple[int, Item]]
        self._in_flight_bytes = 0
        self._sequence = 0
        # When the connection was lost; answers end it.
        self._lost = monotonic()
        self._answered = True
        self._was_up = False
        self._retry = threading.Event()
        for target in [self._run] + [self._read] * readers:
            thread = threading.Thread(target=target)
            thread.daemon = True
            thread.start()

    # -- for other threads

    def kick(self):
        # type: () -> None
        """Look for work, or try to connect at once, with the whole patience before it."""
        with self._cond:
            self._lost = monotonic()
            self.refusal = None
            self._cond.notify_all()
        self._retry.set()
        self._waker.wake()

    def flush(self, job):
        # type: (Work) -> None
        """Have the receiver make the job's disk durable."""
        self._ready.append(Item(job, frames.FLUSH, 0, 0))
        self._waker.wake()

    def path(self):
        # type: () -> Tuple[Optional[int], Optional[int]]
        """Return the path's MTU and the segment size, None for what is not known."""
        with self._cond:
            return (None, None) if self.channel is None else self.channel.path()

    def cut(self):
        # type: () -> None
        """End the connection, so that what is under way is known to be over when the next one is welcome."""
        with self._cond:
            channel = self.channel
            if channel is None:
                return
            # At once: the next job must not take it for connected until it is welcome again.
            self.state = CONNECTING
            channel.shut()

    # -- the readers

    def _read(self):
        # type: () -> None
        compressors = {}  # type: Dict[Tuple[str, int], compression.Compress]
        while True:
            job, offset, length, slot = self._next()
            item = Item(job, job.kind, offset, length)
            item.slot = slot
            try:
                if job.kind == frames.DATA:
                    self._wait_for_turn(job, length)
                job.handle.pread_into(slot.buffer, offset, length, slots.DATA)
                job.read(length)
                if job.kind == frames.DATA:
                    self._prepare(item, slot, compressors)
            except AgentError as error:
                self._drop(item, error)
                continue
            except MemoryError:
                self._drop(item, AgentError("internal", "there is no memory for a chunk"))
                continue
            except Exception as error:  # noqa: BLE001 - a thread that ended would hang the job
                self._drop(item, AgentError("internal", "%s: %s" % (type(error).__name__, error)))
                continue
            self._ready.append(item)
            self._waker.wake()

    def _next(self):
        # type: () -> Tuple[Work, int, int, slots.Slot]
        """Wait for a chunk to read and room for it."""
        with self._cond:
            while True:
                if self._free:
                    while self._redo:
                        job, offset, length = self._redo.popleft()
                        if job.error is None:
                            return job, offset, length, self._take_slot(job.chunk)
                        job.dropped()
                    current = self._sender.job
                    found = None if current is None else current.take()
                    if current is not None and found is not None:
                        return current, found[0], found[1], self._take_slot(current.chunk)
                self._cond.wait()

    def _take_slot(self, chunk):
        # type: (int) -> slots.Slot
        self._free -= 1
        slot = self._slots.pop() if self._slots else None
        return slot if slot is not None and slot.size >= chunk else slots.Slot(chunk)

    def _give_slot(self, item):
        # type: (Item) -> None
        slot, item.slot, item.payload = item.slot, None, None
        if slot is not None:
            with self._cond:
                self._free += 1
                self._slots.append(slot)
                self._cond.notify()

    def _wait_for_turn(self, job, length):
        # type: (Work, int) -> None
        while job.error is None:
            wait = self._sender.reading.take(length)
            if not wait:
                return
            time.sleep(wait)

    def _prepare(self, item, slot, compressors):
        # type: (Item, slots.Slot, Dict[Tuple[str, int], compression.Compress]) -> None
        """Digest a chunk, and compress it where that is wanted."""
        view = slot.chunk(item.length)
        if slots.is_zero(view):
            item.kind = frames.ZERO
            self._give_slot(item)
            return
        item.digest = digests.digest(self._sender.algorithm, view)
        chooser = item.job.chooser
        if chooser.codec == "raw":
            return
        key = (chooser.codec, chooser.level)
        compress = compressors.get(key)
        if compress is None:
            compress = compressors[key] = compression.compressor(*key)
        if not chooser.wants(view, compress):
            return
        begin = monotonic()
        packed = compress(view)
        chooser.tried(item.length, len(packed), monotonic() - begin)
        if len(packed) < item.length:
            item.codec = frames.CODEC_NUMBERS[chooser.codec]
            item.payload = packed

    def _drop(self, item, error):
        # type: (Item, Optional[AgentError]) -> None
        """Forget something that was to be sent."""
        self._give_slot(item)
        if error is not None:
            item.job.fail(error)
        if item.kind != frames.FLUSH:
            item.job.dropped()

    # -- the connection's thread

    def _run(self):
        # type: () -> None
        wait = _FIRST_WAIT
        while True:
            channel = self._try_to_connect()
            if channel is not None:
                wait = _FIRST_WAIT
                self._use(channel)
            # Who refuses will not think again soon.
            self._after_cut(wait if self.refusal is None else _LONGEST_WAIT)
            wait = min(_LONGEST_WAIT, wait * 2)

    def _try_to_connect(self):
        # type: () -> Optional[Channel]
        """Return a connection on which the receiver has said WELCOME; None, noting why, where there is none."""
        try:
            return self._connect()
        except AgentError as error:
            self._failed(error.message, error)
        except ssl.SSLError as error:
            message = "the receiver refuses the TLS connection, or is to be refused: %s" % (error,)
            self._failed(message, AgentError("peer", message))
        except (Cut, EnvironmentError) as error:
            self._failed("%s" % (error,), None)
        except frames.FrameError as error:
            message = "the receiver sent %s" % (error,)
            self._failed(message, AgentError("peer", message))
        except Exception as error:  # noqa: BLE001 - a thread that ended would hang all that wait for it
            self._defect("%s: %s" % (type(error).__name__, error))
        return None

    def _use(self, channel):
        # type: (Channel) -> None
        """Work over a connection until it ends, and note why it did."""
        try:
            self._serve(channel)
        except _Renewal:
            # Nothing was under way, so nothing is sent again.
            with self._cond:
                self.state = CONNECTING
                self._lost = monotonic()
                self._was_up = False
            self._retry.set()
        except Cut as error:
            self._failed("%s" % (error,), None)
        except frames.FrameError as error:
            self._defect("the receiver sent %s" % (error,))
        except AgentError as error:
            self._failed(error.message, error)
        except Exception as error:  # noqa: BLE001 - a thread that ended would hang all that wait for it
            self._defect("%s: %s" % (type(error).__name__, error))
        finally:
            # After that `cut` no longer finds it, whose descriptor's number may soon be another's.
            with self._cond:
                self.channel = None
            channel.close()

    def _failed(self, message, refusal):
        # type: (str, Optional[AgentError]) -> None
        with self._cond:
            if self.state == UP:
                self.state = CONNECTING
                if self._answered:
                    self._lost = monotonic()
            self.reason = message
            self.refusal = refusal
        self._requeue()
        job = self._sender.job
        if job is not None:
            if refusal is not None:
                job.fail(refusal)
            elif monotonic() - self._lost > self._sender.patience:
                job.fail(self.lost_error())
        self._sender.waker.wake()

    def _defect(self, message):
        # type: (str) -> None
        self._failed(message, AgentError("internal", message))

    def lost_error(self):
        # type: () -> AgentError
        """Return the error that says that patience is at its end."""
        return AgentError(
            "connection",
            "no connection to %s port %d for %g s: %s"
            % (self._sender.host, self._sender.port, self._sender.patience, self.reason),
        )

    def _after_cut(self, wait):
        # type: (float) -> None
        """Wait before the next attempt; one that was asked for is made at once."""
        end = monotonic() + wait * random.uniform(0.5, 1.0)  # noqa: S311 - spreads attempts
        while not self._retry.is_set():
            left = end - monotonic()
            if left <= 0:
                break
            # Woken by `kick`. Python 2's Event.wait would poll.
            self._waker.sleeping = True
            if self._retry.is_set():
                break
            self._waker.wait(left)
        self._retry.clear()

    def _requeue(self):
        # type: () -> None
        """Have everything that was not answered sent again."""
        with self._cond:
            for _, item in self._in_flight:
                if item.kind == frames.FLUSH:
                    self._ready.append(item)
                else:
                    self._redo.append((item.job, item.offset, item.length))
            self._in_flight.clear()
            self._in_flight_bytes = 0
            self._cond.notify_all()
        self.purge()

    def purge(self):
        # type: () -> None
        """Forget what belongs to a job that has failed; only while nothing is being sent."""
        for _ in range(len(self._ready)):
            item = self._ready.popleft()
            if item.job.error is None:
                self._ready.append(item)
            else:
                self._drop(item, None)

    def _connect(self):
        # type: () -> Channel
        sender = self._sender
        end = monotonic() + min(_CONNECT_SECONDS, max(1.0, sender.patience))
        sock, rtt = _dial(sender.addresses, end)
        # Python 2's TLS socket shares the descriptor: it is closed when nothing refers to either.
        secure = tls.wrap(sender.context, sock, server=False)
        del sock
        try:
            tls.shake(secure, end)
            tls.check_peer(secure, sender.peer)
            channel = Channel(secure, self._waker)
            channel.post(frames.encode_json(frames.HELLO, sender.hello(self.number)))
            welcome = self._await_welcome(channel, end)
            self._welcomed(secure, welcome, rtt)
        except BaseException:
            secure.close()
            raise
        return channel

    def _await_welcome(self, channel, end):
        # type: (Channel, float) -> Dict[str, Any]
        while True:
            self._waker.sleeping = True
            gone = channel.flush()
            found = channel.next_frame(from_sender=False)
            if found is not None:
                header, payload = found
                if header.kind == frames.ALIVE:
                    continue
                if header.kind == frames.REFUSED:
                    raise _refusal(payload)
                if header.kind != frames.WELCOME:
                    raise AgentError("peer", "the receiver answers HELLO with something else")
                return frames.decode_json(payload)
            left = end - monotonic()
            if left <= 0:
                raise Cut("the receiver does not answer")
            channel.wait(True, not gone, left)

    def _welcomed(self, secure, welcome, rtt):
        # type: (ssl.SSLSocket, Dict[str, Any], float) -> None
        codecs, disks = welcome.get("codecs"), welcome.get("disks")
        if (
            welcome.get("protocol") != frames.PROTOCOL
            or not isinstance(codecs, list)
            or not isinstance(disks, dict)
        ):
            raise AgentError("peer", "the receiver speaks another protocol")
        cipher = secure.cipher()
        version = getattr(secure, "version", lambda: None)()
        with self._cond:
            self.facts = {
                "codecs": [codec for codec in compression.available() if codec in codecs],
                "tls_version": version or (cipher[1] if cipher else None),
                "cipher": cipher[0] if cipher else None,
                "rtt": rtt,
                "disks": disks,
            }
            self._sequence = 0
            self._answered = False
            self.state = UP
            self.refusal = None
            job = self._sender.job
            if self._was_up and job is not None:
                job.cut()
            self._was_up = True
        self._sender.waker.wake()

    # -- while connected

    def _serve(self, channel):
        # type: (Channel) -> None
        self.channel = channel
        waker = self._waker
        item = None  # type: Optional[Item]
        rest = None  # type: Any
        paid = 0
        begin = 0.0
        waited = False
        try:
            while True:
                waker.sleeping = True
                self._hear(channel)
                channel.keep_alive(may_speak=item is None)
                blocked = not channel.flush()
                if item is None and not blocked:
                    if channel.wire >= self._sender.renew_after:
                        if not self._in_flight:
                            raise _Renewal
                    else:
                        item = self._next_item()
                    if item is not None:
                        rest = self._encode(item)
                        begin = monotonic()
                        waited = False
                wait = ALIVE_INTERVAL / 2
                if item is not None and not blocked:
                    # One slice, or all of it.
                    if not paid:
                        wanted = min(self._slice(), len(rest))
                        pause = self._sender.sending.take(wanted)
                        if pause:
                            waited = True
                            channel.wait(True, False, pause)
                            continue
                        paid = wanted
                    done = channel.write_some(rest[:paid])
                    item.job.sent(done)
                    rest = rest[done:]
                    paid -= done
                    blocked = paid > 0
                    waited = waited or blocked
                    if not len(rest):
                        self._sent(item, monotonic() - begin, waited)
                        item = None
                    if not blocked:
                        continue
                channel.wait(True, blocked, wait)
        finally:
            if item is not None:
                self._ready.appendleft(item)

    def _slice(self):
        # type: () -> int
        """Return how much may go at once: with a limit little, for an even rate and no long silences."""
        rate = self._sender.sending.rate
        return frames.MAX_CHUNK * 2 if rate is None else max(4096, min(_SLICE, int(rate / 4)))

    def _next_item(self):
        # type: () -> Optional[Item]
        if len(self._in_flight) >= _WINDOW_FRAMES or self._in_flight_bytes >= _WINDOW_BYTES:
            return None
        while self._ready:
            item = self._ready.popleft()
            if item.job.error is None:
                return item
            self._drop(item, None)
        return None

    def _encode(self, item):
        # type: (Item) -> Any
        """Give an item its number on this connection and return the bytes of its frame."""
        self._sequence += 1
        size = 0
        if item.payload is not None:
            size = len(item.payload)
        elif item.slot is not None:
            size = item.length
        header = frames.encode_header(
            item.kind,
            size=size,
            codec=item.codec,
            disk=item.job.disk,
            sequence=self._sequence,
            offset=item.offset,
            length=item.length,
            digest=item.digest if item.kind == frames.DATA else b"",
        )
        if item.payload is not None:
            return memoryview(header + item.payload)
        if item.slot is not None:
            return item.slot.frame(header, item.length)
        return memoryview(header)

    def _sent(self, item, seconds, waited):
        # type: (Item, float, bool) -> None
        if item.kind == frames.DATA:
            chooser = item.job.chooser
            raw = item.payload is None
            count = item.length if raw else len(item.payload or b"")
            chooser.sent(count, seconds, waited, raw)
            chooser.count(raw, item.length)
        self._in_flight.append((self._sequence, item))
        self._in_flight_bytes += 0 if item.kind == frames.ZERO else item.length
        self._give_slot(item)

    def _hear(self, channel):
        # type: (Channel) -> None
        """Take in what the receiver has answered."""
        while True:
            found = channel.next_frame(from_sender=False)
            if found is None:
                return
            header, payload = found
            if header.kind == frames.ALIVE:
                continue
            if header.kind == frames.REFUSED:
                raise _refusal(payload)
            if header.kind == frames.WELCOME:
                raise frames.FrameError("a second WELCOME")
            self._answer(header, payload)
            self._answered = True

    def _answer(self, header, payload):
        # type: (frames.Header, bytes) -> None
        if header.kind == frames.ACK:
            if not self._in_flight or not (
                self._in_flight[0][0] <= header.sequence <= self._in_flight[-1][0]
            ):
                raise frames.FrameError("an ACK of what was not sent")
            while self._in_flight and self._in_flight[0][0] <= header.sequence:
                item = self._pop()
                if item.kind == frames.FLUSH:
                    raise frames.FrameError("an ACK of a FLUSH")
                item.job.confirmed(item.length, item.kind == frames.ZERO)
            return
        if not self._in_flight or self._in_flight[0][0] != header.sequence:
            raise frames.FrameError("an answer out of order")
        facts = frames.decode_json(payload)
        flush = self._in_flight[0][1].kind == frames.FLUSH
        if header.kind == frames.FLUSHED and not flush:
            raise frames.FrameError("FLUSHED, where a chunk was sent")
        item = self._pop()
        if header.kind == frames.FLUSHED:
            seconds = facts.get("seconds")
            item.job.flush_done(float(seconds) if isinstance(seconds, (int, float)) else 0.0)
        else:
            self._drop(item, _remote_error(facts))

    def _pop(self):
        # type: () -> Item
        _, item = self._in_flight.popleft()
        self._in_flight_bytes -= 0 if item.kind == frames.ZERO else item.length
        return item


def _dial(addresses, end):
    # type: (List[Any], float) -> Tuple[socket.socket, float]
    """Connect to the first address that answers; return the socket and the seconds it took."""
    fault = None  # type: Optional[EnvironmentError]
    for family, kind, protocol, _, address in addresses:
        sock = None
        try:
            sock = socket.socket(family, kind, protocol)
            tune(sock)
            sock.settimeout(max(0.1, end - monotonic()))
            begin = monotonic()
            sock.connect(address)
            return sock, monotonic() - begin
        except EnvironmentError as error:
            fault = error
            if sock is not None:
                sock.close()
    raise fault if fault is not None else Cut("there is no address")


def _refusal(payload):
    # type: (bytes) -> AgentError
    try:
        facts = frames.decode_json(payload)
    except frames.FrameError:
        facts = {}
    error = _remote_error(facts)
    error.message = "the receiver refuses: %s" % error.message
    return error


_CODES = frozenset(
    ("bad-request", "internal", "no-room", "peer", "permission", "read", "unsupported", "write")
)


def _remote_error(facts):
    # type: (Dict[str, Any]) -> AgentError
    """Return an error that the other end has told; nothing of what it says is believed to be of a type."""
    code = facts.get("code")

    def whole(name):
        # type: (str) -> Optional[int]
        value = facts.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    device = facts.get("device")
    return AgentError(
        code if code in _CODES else "internal",
        "%.1000s" % (facts.get("message"),),
        errno=whole("errno"),
        device=("%.1000s" % (device,)) if device is not None else None,
        offset=whole("offset"),
        length=whole("length"),
    )
