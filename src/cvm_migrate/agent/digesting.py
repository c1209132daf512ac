"""The verb ``digest``: reads ranges of a disk with several reads in flight and tells the digests in order."""

from __future__ import absolute_import, division

import sys
import threading

from cvm_migrate.agent import blockio, clock, digests
from cvm_migrate.agent.verbs import AgentError, integer, ranges, text

assert sys.platform != "win32", "the agent runs on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterator, List, Optional, Tuple

    from cvm_migrate.agent.blockio import OpenHandle
    from cvm_migrate.agent.verbs import Context, Header, Reply, Verb

MIN_CHUNK = 4096
MAX_CHUNK = 4 << 20
# One read: large enough for the disk's full speed.
_READ = 1 << 20
# While one thread digests, the other's read is under way.
_READERS = 2
# How far readers run ahead of the caller, in reads.
_AHEAD = 16
# A PART is full at one of these, so that progress is seen.
_PART_DIGESTS = 4096
_PART_SECONDS = 0.5


class _Readers(object):
    """Threads that read and digest pieces; :meth:`results` gives them back in order."""

    def __init__(self, handle, pieces, chunk, algorithm):
        # type: (OpenHandle, Iterator[Tuple[int, int]], int, str) -> None
        self._handle = handle
        self._pieces = pieces
        self._chunk = chunk
        self._algorithm = algorithm
        self._changed = threading.Condition()
        self._taken = 0
        self._given = 0
        self._exhausted = False
        self._done = {}  # type: Dict[int, Tuple[int, int, List[bytes]]]
        self._error = None  # type: Optional[Exception]
        self._threads = []  # type: List[threading.Thread]

    def start(self):
        # type: () -> None
        for _ in range(_READERS):
            thread = threading.Thread(target=self._work)
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def stop(self):
        # type: () -> None
        """End the threads and wait for the reads that are under way."""
        with self._changed:
            self._exhausted = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _take(self):
        # type: () -> Optional[Tuple[int, int, int]]
        with self._changed:
            while not self._exhausted and self._taken - self._given >= _AHEAD:
                self._changed.wait()
            piece = None if self._exhausted else next(self._pieces, None)
            if piece is None:
                self._exhausted = True
                self._changed.notify_all()
                return None
            self._taken += 1
            return self._taken - 1, piece[0], piece[1]

    def _work(self):
        # type: () -> None
        try:
            buffer = blockio.Buffer(max(_READ, self._chunk))
            while True:
                taken = self._take()
                if taken is None:
                    return
                number, offset, length = taken
                self._handle.pread_into(buffer, offset, length)
                found = [
                    digests.digest(self._algorithm, buffer.view(at, min(self._chunk, length - at)))
                    for at in range(0, length, self._chunk)
                ]
                with self._changed:
                    self._done[number] = (offset, length, found)
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - raised again in the request's thread
            with self._changed:
                self._error = self._error or error
                self._exhausted = True
                self._changed.notify_all()

    def results(self):
        # type: () -> Iterator[Tuple[int, int, List[bytes]]]
        """Yield ``(offset, length, digests)`` of the pieces, in order."""
        while True:
            with self._changed:
                while self._given not in self._done:
                    if self._error is not None:
                        raise self._error
                    if self._exhausted and self._given == self._taken:
                        return
                    self._changed.wait()
                piece = self._done.pop(self._given)
                self._given += 1
                self._changed.notify_all()
            yield piece


def _pieces(wanted, chunk):
    # type: (List[Tuple[int, int]], int) -> Iterator[Tuple[int, int]]
    """Cut ranges into reads of whole chunks."""
    step = max(_READ // chunk, 1) * chunk
    for offset, length in wanted:
        # No range(): Python 2 would make a list of it.
        at = 0
        while at < length:
            yield offset + at, min(step, length - at)
            at += step


def _digest(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    handle = context.handle(args)
    chunk = integer(args, "chunk", MIN_CHUNK, MAX_CHUNK)
    algorithm = text(args, "algorithm", digests.NAMES)
    if chunk % MIN_CHUNK:
        raise AgentError("bad-request", "a chunk of %d bytes is no multiple of 4096" % chunk)
    wanted = ranges(blob, handle.size, multiple=chunk)
    begin = part_begin = clock.monotonic()
    total = 0
    part = []  # type: List[bytes]
    part_offset = part_end = 0
    readers = _Readers(handle, _pieces(wanted, chunk), chunk, algorithm)
    readers.start()
    try:
        for offset, length, found in readers.results():
            reply.check()
            full = (
                len(part) + len(found) > _PART_DIGESTS
                or clock.monotonic() - part_begin > _PART_SECONDS
            )
            if part and (offset != part_end or full):
                reply.part({"offset": part_offset, "count": len(part)}, b"".join(part))
                part = []
            if not part:
                part_begin = clock.monotonic()
                part_offset = offset
            part.extend(found)
            part_end = offset + length
            total += length
    finally:
        readers.stop()
    if part:
        reply.part({"offset": part_offset, "count": len(part)}, b"".join(part))
    return {"bytes": total, "seconds": clock.monotonic() - begin}, b""


VERBS = {"digest": _digest}  # type: Dict[str, Verb]
