"""What a receiver remembers of the pieces it wrote, so that it can prove them: compact, bounded, newest first.

Records have 28 bytes (44 with SHA-256) in one bytearray, as lists of tuples would take ten times as much.
"""

from __future__ import absolute_import, division

import array
import bisect
import struct
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

    Range = Tuple[int, int]
    Piece = Tuple[int, int, Optional[bytes]]

LIMIT = 262144
# How many are read back at once when the limit is near, and how near that is.
_BATCH = LIMIT // 4
# So many bytes are read back while more are written: for disks that seek this is long enough.
_BEHIND = 64 << 20
_ZERO = 1 << 31
# Zeroes that touch are one piece up to this size.
_LONGEST_ZERO = 256 << 20
_OPEN_RUNS = 64
# Python 2's arrays have no unsigned 64-bit numbers; doubles are exact up to 2**53, which is 8 PiB.
_NUMBERS = "Q" if sys.version_info[0] >= 3 else "d"


class Pieces(object):
    """The pieces of one disk. Methods can be called from several threads.

    Args:
        digest_size: Bytes of a digest.
        limit: How many pieces are held.
        behind: From how many bytes on it is time to read some back.
    """

    def __init__(self, digest_size, limit=LIMIT, behind=_BEHIND):
        # type: (int, int, int) -> None
        self._record = struct.Struct(">QI%ds" % digest_size)
        self._no_digest = b"\0" * digest_size
        self.limit = limit
        self._batch = min(_BATCH, max(1, limit // 4))
        self._behind = behind
        self._log = bytearray()
        self._bytes = 0
        self._writing = {}  # type: Dict[int, Range]
        self._token = 0
        # Runs of zeroes that may still grow: where they end, and where in the log they stand.
        self._runs = {}  # type: Dict[int, int]
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        #: Why no more pieces can be read back.
        self.failed = None  # type: Optional[BaseException]

    def __len__(self):
        # type: () -> int
        return len(self._log) // self._record.size

    @property
    def due(self):
        # type: () -> bool
        """Whether it is time to read a batch back."""
        return self._bytes >= self._behind or len(self) >= self.limit - self._batch

    def begin(self, offset, length):
        # type: (int, int) -> int
        """Note that a range is being written; returns what :meth:`end` wants. Waits while there is no room."""
        with self.lock:
            while len(self) >= self.limit and self.failed is None:
                self.changed.wait(1.0)
            self._token += 1
            self._writing[self._token] = (offset, length)
            return self._token

    def end(self, token, digest, written):
        # type: (int, Optional[bytes], bool) -> None
        """Note that the range was written, or not; without a digest it is zeroes."""
        with self.lock:
            offset, length = self._writing.pop(token)
            if not written or self.failed is not None:
                return
            self._bytes += length
            if digest is None:
                self._add_zeroes(offset, length)
            else:
                self._runs.clear()
                self._log += self._record.pack(offset, length, digest)
            if self.due:
                self.changed.notify_all()

    def _add_zeroes(self, offset, length):
        # type: (int, int) -> None
        at = self._runs.pop(offset, None)
        if at is not None:
            start, old, _ = self._record.unpack_from(self._log, at)
            if (old & ~_ZERO) + length <= _LONGEST_ZERO:
                self._record.pack_into(self._log, at, start, old + length, self._no_digest)
                self._runs[offset + length] = at
                return
        if len(self._runs) >= _OPEN_RUNS:
            self._runs.clear()
        self._runs[offset + length] = len(self._log)
        self._log += self._record.pack(offset, length | _ZERO, self._no_digest)

    def take(self, everything=True):
        # type: (bool) -> Log
        """Take all pieces out, or a batch of the oldest."""
        with self.lock:
            self._runs.clear()
            taken = Log(self._record, self._log)
            if not everything:
                taken = taken.head(self._batch, self._behind)
            self._bytes -= taken.total()
            self._log = self._log[len(taken.data) :]
            self.changed.notify_all()
            return taken

    def put_back(self, log):
        # type: (Log) -> None
        """Put pieces back that were taken and could not be read."""
        with self.lock:
            self._runs.clear()
            self._log[:0] = log.data
            self._bytes += log.total()

    def give_up(self, error):
        # type: (BaseException) -> None
        """Let writers go on though nothing makes room any more; pieces are forgotten, and `failed` says why."""
        with self.lock:
            self.failed = error
            self.changed.notify_all()

    def newer(self):
        # type: () -> RangeSet
        """Return the ranges that were written since, or are being written."""
        with self.lock:
            ranges = [(offset, offset + length) for offset, length in self._writing.values()]
            log = Log(self._record, self._log[:])
        return log.ranges().union(sorted(ranges))


class Log(object):
    """Pieces in the order in which they were written."""

    def __init__(self, record, data):
        # type: (struct.Struct, bytearray) -> None
        self._record = record
        self.data = data

    def __len__(self):
        # type: () -> int
        return len(self.data) // self._record.size

    def total(self):
        # type: () -> int
        """Return how many bytes were written, counting what was written twice twice."""
        return sum(self._get(index)[1] for index in range(len(self)))

    def head(self, count, length):
        # type: (int, int) -> Log
        """Return the oldest pieces: *length* bytes of them or somewhat more, and at most *count*."""
        total = index = 0
        while index < min(count, len(self)) and total < length:
            total += self._get(index)[1]
            index += 1
        return Log(self._record, self.data[: index * self._record.size])

    def _get(self, index):
        # type: (int) -> Tuple[int, int, bool, bytes]
        offset, length, digest = self._record.unpack_from(self.data, index * self._record.size)
        return offset, length & ~_ZERO, bool(length & _ZERO), digest

    def _by_offset(self):
        # type: () -> List[int]
        size = self._record.size
        data = self.data
        unpack = struct.Struct(">Q").unpack_from
        return sorted(range(len(self)), key=lambda index: unpack(data, index * size)[0])

    def ranges(self):
        # type: () -> RangeSet
        """Return what they cover."""
        result = RangeSet()
        for index in self._by_offset():
            offset, length, _, _ = self._get(index)
            result.append(offset, offset + length)
        return result

    def valid(self, unproven):
        # type: (List[Range]) -> Iterator[Piece]
        """Yield the pieces that nothing newer lies on, by offset; zeroes are cut to what is left of them.

        What remains of others is added to *unproven*, as ``(begin, end)``.
        """
        cluster = []  # type: List[int]
        cluster_end = 0
        for index in self._by_offset():
            offset, length, _, _ = self._get(index)
            if cluster and offset >= cluster_end:
                for piece in self._uncovered(cluster, unproven):
                    yield piece
                cluster = []
            cluster.append(index)
            cluster_end = max(cluster_end, offset + length)
        if cluster:
            for piece in self._uncovered(cluster, unproven):
                yield piece

    def _uncovered(self, cluster, unproven):
        # type: (List[int], List[Range]) -> List[Piece]
        """Return the valid ones of pieces that overlap one another."""
        pieces = []  # type: List[Piece]
        if len(cluster) == 1:
            offset, length, zero, digest = self._get(cluster[0])
            return [(offset, length, None if zero else digest)]
        covered = _Cover()
        for index in sorted(cluster, reverse=True):
            offset, length, zero, digest = self._get(index)
            gaps = covered.add(offset, offset + length)
            if zero:
                pieces += [(begin, end - begin, None) for begin, end in gaps]
            elif gaps == [(offset, offset + length)]:
                pieces.append((offset, length, digest))
            else:
                unproven += gaps
        return sorted(pieces, key=lambda piece: piece[0])


class _Cover(object):
    """Ranges that are covered, for adding one after another in any order."""

    def __init__(self):
        # type: () -> None
        self._begins = []  # type: List[int]
        self._ends = []  # type: List[int]

    def add(self, begin, end):
        # type: (int, int) -> List[Range]
        """Cover a range; return the parts of it that were not covered before."""
        low = bisect.bisect_left(self._ends, begin)
        high = bisect.bisect_right(self._begins, end)
        gaps = []  # type: List[Range]
        at = begin
        for index in range(low, high):
            if self._begins[index] > at:
                gaps.append((at, self._begins[index]))
            at = max(at, self._ends[index])
        if at < end:
            gaps.append((at, end))
        if low < high:
            begin = min(begin, self._begins[low])
            end = max(end, self._ends[high - 1])
        self._begins[low:high] = [begin]
        self._ends[low:high] = [end]
        return gaps


class RangeSet(object):
    """Ranges of bytes that do not touch, 16 bytes each, as ``(begin, end)`` in ascending order."""

    def __init__(self, pairs=()):
        # type: (Iterable[Range]) -> None
        self._numbers = array.array(_NUMBERS)  # type: Any
        for begin, end in pairs:
            self.append(begin, end)

    def append(self, begin, end):
        # type: (int, int) -> None
        """Add a range that begins at or after the beginning of the last one."""
        numbers = self._numbers
        if numbers and begin <= numbers[-1]:
            numbers[-1] = max(numbers[-1], end)
        elif begin < end:
            numbers.append(begin)
            numbers.append(end)

    def __iter__(self):
        # type: () -> Iterator[Range]
        numbers = self._numbers
        for at in range(0, len(numbers), 2):
            yield int(numbers[at]), int(numbers[at + 1])

    def __len__(self):
        # type: () -> int
        return len(self._numbers) // 2

    @property
    def total(self):
        # type: () -> int
        """Bytes in all of them."""
        return sum(end - begin for begin, end in self)

    def union(self, other):
        # type: (Iterable[Range]) -> RangeSet
        """Return the ranges in either; *other* is ascending too."""
        result = RangeSet()
        mine, theirs = iter(self), iter(other)
        one, two = next(mine, None), next(theirs, None)
        while one is not None or two is not None:
            if two is None or (one is not None and one[0] <= two[0]):
                assert one is not None  # noqa: S101 - tells type checkers
                result.append(*one)
                one = next(mine, None)
            else:
                result.append(*two)
                two = next(theirs, None)
        return result

    def minus(self, other):
        # type: (Iterable[Range]) -> RangeSet
        """Return what is in this and not in *other*, which is ascending and does not overlap itself."""
        result = RangeSet()
        theirs = iter(other)
        hole = next(theirs, None)
        for begin, end in self:
            at = begin
            while hole is not None and hole[1] <= at:
                hole = next(theirs, None)
            while hole is not None and hole[0] < end:
                if hole[0] > at:
                    result.append(at, hole[0])
                at = max(at, hole[1])
                if hole[1] > end:
                    break
                hole = next(theirs, None)
            if at < end:
                result.append(at, end)
        return result

    def coarse(self, most):
        # type: (int) -> RangeSet
        """Return at most so many ranges that cover these: small gaps are filled up."""
        result = self
        gap = 1 << 12
        while len(result) > most:
            wider = RangeSet()
            for begin, end in result:
                wider.append_near(begin, end, gap)
            result, gap = wider, gap * 2
        return result

    def append_near(self, begin, end, gap):
        # type: (int, int, int) -> None
        """Like :meth:`append`; a gap of at most *gap* bytes is filled up."""
        if self._numbers and begin - self._numbers[-1] <= gap:
            begin = int(self._numbers[-1])
        self.append(begin, end)

    def touches(self, begin, end):
        # type: (int, int) -> bool
        """Whether any range overlaps the one given."""
        at = bisect.bisect_right(self._numbers, begin)
        if at % 2:
            return True
        return at < len(self._numbers) and self._numbers[at] < end
