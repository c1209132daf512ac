"""One call of `stream`: which chunks are still to be sent, and what became of those that were."""

from __future__ import absolute_import, division

import struct
import sys
import threading

from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.pump import frames
from cvm_migrate.agent.verbs import AgentError

assert sys.platform != "win32", "pumps run on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, Optional, Tuple

    from cvm_migrate.agent.blockio import OpenHandle
    from cvm_migrate.agent.pump.channel import Waker
    from cvm_migrate.agent.pump.compression import Chooser

_PAIR = struct.Struct(">QQ")


def check_ranges(blob, handle, room):
    # type: (bytes, OpenHandle, int) -> int
    """Return the number of bytes in a blob of ranges, of which there can be half a million.

    Args:
        blob: Pairs of offset and length.
        handle: The disk they are on.
        room: Bytes of the disk that they go to.

    Raises:
        AgentError: ``bad-request``: they are not ascending, or not on the disk.
    """
    if len(blob) % _PAIR.size:
        raise AgentError("bad-request", "a list of ranges of %d bytes" % len(blob))
    block = handle.logical_block_size
    last = -1
    total = 0
    for offset, length in _pairs(blob):
        end = offset + length
        fault = None
        if length == 0 or offset <= last:
            fault = "a range is empty, or not after the one before it"
        elif end > handle.size:
            fault = "a range ends after the %d bytes of %s" % (handle.size, handle.path)
        elif offset % block or (end % block and end != handle.size):
            fault = "a range is not made of whole %d-byte blocks of %s" % (block, handle.path)
        elif end > room:
            fault = "a range ends after the %d bytes of the target's disk" % room
        if fault is not None:
            raise AgentError(
                "bad-request", fault, device=handle.path, offset=offset, length=length
            )
        last = end
        total += length
    return total


def _pairs(blob):
    # type: (bytes) -> Iterator[Tuple[int, int]]
    for at in range(0, len(blob), _PAIR.size):
        yield _PAIR.unpack_from(blob, at)


class Job(object):
    """What the lanes work on together.

    Args:
        disk: Its number.
        handle: The disk.
        blob: The ranges.
        chunk: Largest chunk in bytes. Chunks end at its multiples.
        chooser: What is compressed.
        waker: Wakes the thread that called `stream`.
    """

    kind = frames.DATA

    def __init__(self, disk, handle, blob, chunk, chooser, waker):
        # type: (int, OpenHandle, bytes, int, Chooser, Waker) -> None
        self.disk = disk
        self.handle = handle
        self.chunk = chunk
        self.chooser = chooser
        self.begin = monotonic()
        self._waker = waker
        self._chunks = _cut(blob, chunk)
        self._next = next(self._chunks, None)
        self._lock = threading.Lock()
        self._outstanding = 0
        self._acked = 0
        self._zero = 0
        self._read = 0
        self._wire = 0
        self.flushed = None  # type: Optional[float]
        self.error = None  # type: Optional[AgentError]
        self.reconnects = 0

    def take(self):
        # type: () -> Optional[Tuple[int, int]]
        """Take the next chunk; None when there is none, or the job has failed."""
        with self._lock:
            if self.error is not None or self._next is None:
                return None
            found = self._next
            self._next = next(self._chunks, None)
            self._outstanding += 1
            return found

    @property
    def settled(self):
        # type: () -> bool
        """Whether nothing is under way, and nothing more will be."""
        with self._lock:
            return self._outstanding == 0 and (self._next is None or self.error is not None)

    def read(self, count):
        # type: (int) -> None
        """Note that bytes were read."""
        with self._lock:
            self._read += count

    def sent(self, count):
        # type: (int) -> None
        """Note that bytes were sent."""
        with self._lock:
            self._wire += count

    def confirmed(self, length, zero):
        # type: (int, bool) -> None
        """Note that the receiver has written a chunk."""
        with self._lock:
            self._acked += length
            if zero:
                self._zero += length
        self.dropped()

    def dropped(self):
        # type: () -> None
        """Note that a chunk that was taken is not under way any more."""
        with self._lock:
            self._outstanding -= 1
            over = self._outstanding == 0 and (self._next is None or self.error is not None)
        if over:
            self._waker.wake()

    def flush_done(self, seconds):
        # type: (float) -> None
        """Note that all of it is durable."""
        self.flushed = seconds
        self._waker.wake()

    def fail(self, error):
        # type: (AgentError) -> None
        """Give up; the first error stays."""
        with self._lock:
            if self.error is None:
                self.error = error
        self._waker.wake()

    def cut(self):
        # type: () -> None
        """Note that a lane had to connect anew."""
        with self._lock:
            self.reconnects += 1

    def figures(self):
        # type: () -> Dict[str, Any]
        """Return a PART."""
        with self._lock:
            return {
                "acked": self._acked,
                "wire": self._wire,
                "zero": self._zero,
                "read": self._read,
                "seconds": monotonic() - self.begin,
            }


def _cut(blob, chunk):
    # type: (bytes, int) -> Iterator[Tuple[int, int]]
    for offset, length in _pairs(blob):
        end = offset + length
        at = offset
        while at < end:
            stop = min(end, (at // chunk + 1) * chunk)
            yield at, stop - at
            at = stop
