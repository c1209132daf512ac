"""Sets of byte ranges, as two flat arrays: sixteen bytes a range, however large the disk."""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cvm_migrate.errors import InvalidRequestError, ProtocolError

# A disk offset fits 63 bits: off_t is signed.
_LIMIT = 1 << 63


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
        starts, ends = array("Q"), array("Q")
        for offset, length in sorted(extents):
            if offset < 0 or length < 0 or offset + length > _LIMIT:
                raise InvalidRequestError(
                    f"not a range of a disk: offset {offset}, length {length}",
                    offset=offset,
                    length=length,
                )
            _append(starts, ends, offset, offset + length)
        self._starts, self._ends = starts, ends

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
        pairs: list[tuple[int, int]] = []
        for blob in blobs:
            if len(blob) % 16:
                raise ProtocolError(f"a list of ranges has {len(blob)} bytes, no multiple of 16")
            pairs.extend(struct.iter_unpack(">QQ", blob))
        try:
            return cls(pairs)
        except InvalidRequestError as error:
            raise ProtocolError(error.message) from error

    def to_wire(self) -> bytes:
        """Return the form that :meth:`from_wire` reads."""
        flat = array("Q")
        for start, end in zip(self._starts, self._ends, strict=True):
            flat.append(start)
            flat.append(end - start)
        if sys.byteorder == "little":
            flat.byteswap()
        return flat.tobytes()

    def __iter__(self) -> Iterator[Extent]:
        """Iterate over the ranges, ascending."""
        for start, end in zip(self._starts, self._ends, strict=True):
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
        starts, ends = array("Q"), array("Q")
        i = j = 0
        while i < len(self) or j < len(other):
            if j >= len(other) or (i < len(self) and self._starts[i] <= other._starts[j]):
                _append(starts, ends, self._starts[i], self._ends[i])
                i += 1
            else:
                _append(starts, ends, other._starts[j], other._ends[j])
                j += 1
        return ExtentMap._of(starts, ends)

    def __and__(self, other: ExtentMap) -> ExtentMap:
        """Return the bytes that are in both."""
        starts, ends = array("Q"), array("Q")
        i = j = 0
        while i < len(self) and j < len(other):
            low = max(self._starts[i], other._starts[j])
            high = min(self._ends[i], other._ends[j])
            if low < high:
                starts.append(low)
                ends.append(high)
            if self._ends[i] <= other._ends[j]:
                i += 1
            else:
                j += 1
        return ExtentMap._of(starts, ends)

    def __sub__(self, other: ExtentMap) -> ExtentMap:
        """Return the bytes of this set that are not in *other*."""
        starts, ends = array("Q"), array("Q")
        j = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            low = start
            while j < len(other) and other._ends[j] <= low:
                j += 1
            k = j
            while k < len(other) and other._starts[k] < end:
                if other._starts[k] > low:
                    starts.append(low)
                    ends.append(other._starts[k])
                low = max(low, other._ends[k])
                k += 1
            if low < end:
                starts.append(low)
                ends.append(end)
        return ExtentMap._of(starts, ends)

    def clip(self, offset: int, length: int) -> ExtentMap:
        """Return the part that lies in one range."""
        return self & ExtentMap([(offset, length)])

    def align(self, block: int, size: int) -> ExtentMap:
        """Grow each range to whole blocks, but not past *size*.

        Args:
            block: Bytes of a block.
            size: Bytes of the disk, which may be no multiple of *block*.
        """
        starts, ends = array("Q"), array("Q")
        for start, end in zip(self._starts, self._ends, strict=True):
            low = start // block * block
            high = min(-(-end // block) * block, size)
            if low < high:
                _append(starts, ends, low, high)
        return ExtentMap._of(starts, ends)

    def batches(self, limit: int, *, most_extents: int = 1 << 16) -> Iterator[ExtentMap]:
        """Cut the set into parts of at most *limit* bytes and *most_extents* ranges, ascending."""
        if limit <= 0 or most_extents <= 0:
            raise InvalidRequestError(f"a batch of {limit} bytes holds nothing", length=limit)
        starts, ends = array("Q"), array("Q")
        room = limit
        for start, end in zip(self._starts, self._ends, strict=True):
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


def _append(starts: array[int], ends: array[int], start: int, end: int) -> None:
    """Add a range that begins at or after the last one's start."""
    if start >= end:
        return
    if ends and start <= ends[-1]:
        ends[-1] = max(ends[-1], end)
    else:
        starts.append(start)
        ends.append(end)
