"""Sets of byte ranges, as two flat arrays: sixteen bytes a range, however large the disk."""

from __future__ import annotations

import heapq
import itertools
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cvm_migrate.errors import InvalidRequestError, ProtocolError

# A disk offset fits 63 bits: off_t is signed.
_LIMIT = 1 << 63
# A range behind every other one.
_NOTHING = (1 << 64, 1 << 64)


class Extent(NamedTuple):
    """A range of bytes; *length* is never 0 in an :class:`ExtentMap`."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First byte after the range."""
        return self.offset + self.length


class ExtentMap:
    """An immutable set of byte positions, kept as ascending ranges that neither overlap nor touch.

    ``|``, ``&`` and ``-`` are union, intersection and difference; ``==`` compares the sets.

    Args:
        extents: Pairs of offset and length in any order, overlapping as they like; empty ones are
            dropped.

    Raises:
        InvalidRequestError: A pair is negative or ends past 2**63.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, extents: Iterable[tuple[int, int]] = ()) -> None:
        self._starts, self._ends = starts, ends = array("Q"), array("Q")
        pairs = iter(extents)
        for offset, length in pairs:
            _check(offset, length)
            if starts and offset < starts[-1]:
                # What comes in order, as most does, needs no list of everything for sorting.
                both = self | ExtentMap(sorted([(offset, length), *pairs]))
                self._starts, self._ends = both._starts, both._ends  # noqa: SLF001 - our own class
                return
            _append(starts, ends, offset, offset + length)

    @classmethod
    def _of(cls, starts: array[int], ends: array[int]) -> ExtentMap:
        made = cls.__new__(cls)
        made._starts, made._ends = starts, ends  # noqa: SLF001 - our own class
        return made

    @classmethod
    def whole(cls, size: int) -> ExtentMap:
        """Return the map of a whole disk of *size* bytes."""
        return cls([(0, size)])

    @classmethod
    def from_wire(cls, *blobs: bytes) -> ExtentMap:
        """Read the agent protocol's pairs of big-endian 64-bit numbers.

        Raises:
            ProtocolError: The bytes are no such pairs.
        """
        try:
            return cls(itertools.chain.from_iterable(_pairs(blob) for blob in blobs))
        except InvalidRequestError as error:
            raise ProtocolError(error.message) from error

    def to_wire(self) -> bytes:
        """Return the form that :meth:`from_wire` reads."""
        flat = array("Q")
        for start, end in self._ranges():
            flat.append(start)
            flat.append(end - start)
        if sys.byteorder == "little":
            flat.byteswap()
        return flat.tobytes()

    def __iter__(self) -> Iterator[Extent]:
        """Iterate over the ranges, ascending."""
        for start, end in self._ranges():
            yield Extent(start, end - start)

    def __len__(self) -> int:
        """Return the number of ranges (see :attr:`total` for bytes)."""
        return len(self._starts)

    def __bool__(self) -> bool:
        """Whether any byte is in the set."""
        return len(self._starts) > 0

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same bytes."""
        if not isinstance(other, ExtentMap):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    def __hash__(self) -> int:
        """Hash the set."""
        return hash((self._starts.tobytes(), self._ends.tobytes()))

    def __repr__(self) -> str:
        """Show the first few ranges."""
        shown = ", ".join(
            f"({e.offset}, {e.length})" for e, _ in zip(self, range(4), strict=False)
        )
        more = ", ..." if len(self) > 4 else ""
        return f"ExtentMap([{shown}{more}])"

    @property
    def total(self) -> int:
        """Number of bytes in the set."""
        return sum(self._ends) - sum(self._starts)

    @property
    def end(self) -> int:
        """First byte after the last range; 0 for the empty set."""
        return self._ends[-1] if self._ends else 0

    def __contains__(self, position: int) -> bool:
        """Whether the byte at *position* is in the set."""
        index = bisect_right(self._starts, position) - 1
        return index >= 0 and position < self._ends[index]

    def __or__(self, other: ExtentMap) -> ExtentMap:
        """Return the bytes that are in either."""
        if not other:
            return self
        if not self:
            return other
        starts, ends = array("Q"), array("Q")
        merged = heapq.merge(self._ranges(), other._ranges())
        low, high = next(merged)
        for start, end in merged:
            if start > high:
                starts.append(low)
                ends.append(high)
                low, high = start, end
            elif end > high:
                high = end
        starts.append(low)
        ends.append(high)
        return ExtentMap._of(starts, ends)

    def __and__(self, other: ExtentMap) -> ExtentMap:
        """Return the bytes that are in both."""
        starts, ends = array("Q"), array("Q")
        theirs = other._ranges()
        start, end = next(theirs, _NOTHING)
        for low, high in self._ranges():
            while end <= low:
                start, end = next(theirs, _NOTHING)
            while start < high:
                starts.append(max(start, low))
                if end > high:
                    ends.append(high)
                    break
                ends.append(end)
                start, end = next(theirs, _NOTHING)
        return ExtentMap._of(starts, ends)

    def __sub__(self, other: ExtentMap) -> ExtentMap:
        """Return the bytes of this set that are not in *other*."""
        if not other:
            return self
        starts, ends = array("Q"), array("Q")
        theirs = other._ranges()
        start, end = next(theirs, _NOTHING)
        for first, high in self._ranges():
            low = first
            while end <= low:
                start, end = next(theirs, _NOTHING)
            while start < high:
                if start > low:
                    starts.append(low)
                    ends.append(start)
                low = end
                if end >= high:
                    break
                start, end = next(theirs, _NOTHING)
            if low < high:
                starts.append(low)
                ends.append(high)
        return ExtentMap._of(starts, ends)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def clip(self, offset: int, length: int) -> ExtentMap:
        """Return the part that lies in one range."""
        return self & ExtentMap([(offset, length)])

    def align(self, block: int, size: int) -> ExtentMap:
        """Grow each range to whole blocks, but not past *size*.

        Args:
            block: Bytes of a block.
            size: Bytes of the disk, which may be no multiple of *block*.

        Raises:
            InvalidRequestError: *block* is not positive.
        """
        if block <= 0:
            raise InvalidRequestError(f"nothing can be aligned to {block} bytes", length=block)
        starts, ends = array("Q"), array("Q")
        for start, end in self._ranges():
            low = start // block * block
            high = min(-(-end // block) * block, size)
            if low < high:
                _append(starts, ends, low, high)
        return ExtentMap._of(starts, ends)

    def batches(self, limit: int, *, most_extents: int = 1 << 16) -> Iterator[ExtentMap]:
        """Cut the set into parts of at most *limit* bytes and *most_extents* ranges, ascending.

        Raises:
            InvalidRequestError: One of them is not positive.
        """
        if limit <= 0 or most_extents <= 0:
            raise InvalidRequestError(
                f"a batch of {limit} bytes and {most_extents} ranges holds nothing", length=limit
            )
        return self._batches(limit, most_extents)

    def _batches(self, limit: int, most_extents: int) -> Iterator[ExtentMap]:
        starts, ends = array("Q"), array("Q")
        room = limit
        for start, end in self._ranges():
            low = start
            while low < end:
                high = min(end, low + room)
                starts.append(low)
                ends.append(high)
                room -= high - low
                low = high
                if room == 0 or len(starts) == most_extents:
                    yield ExtentMap._of(starts, ends)
                    starts, ends = array("Q"), array("Q")
                    room = limit
        if starts:
            yield ExtentMap._of(starts, ends)


def _check(offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > _LIMIT:
        raise InvalidRequestError(
            f"not a range of a disk: offset {offset}, length {length}",
            offset=offset,
            length=length,
        )


def _pairs(blob: bytes) -> Iterator[tuple[int, int]]:
    if len(blob) % 16:
        raise ProtocolError(f"a list of ranges has {len(blob)} bytes, no multiple of 16")
    return struct.iter_unpack(">QQ", blob)


def _append(starts: array[int], ends: array[int], start: int, end: int) -> None:
    """Add a range that begins at or after the last one's start."""
    if start >= end:
        return
    if ends and start <= ends[-1]:
        ends[-1] = max(ends[-1], end)
    else:
        starts.append(start)
        ends.append(end)
