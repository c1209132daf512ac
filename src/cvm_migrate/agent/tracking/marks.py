"""Dirty maps: how large they are, how they are scanned, and the byte ranges they stand for.

A map has one mark for each block of a disk, as a byte (0 or 1) or as a bit (little-endian within each word, so
that bit n of the map is bit n % 8 of byte n // 8). Scanning works on pages and leaves the work to the C code of
`bytes` and `re`, as a map can have 32 MiB.
"""

from __future__ import absolute_import

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from typing import Iterable, Iterator, List, Optional, Sequence, Tuple, Union

    Memory = Union[bytearray, mmap.mmap]
    Span = Tuple[int, int]

BYTES = "bytes"
BITS = "bits"

PAGE = 4096
SMALLEST_BLOCK = 16 << 10
LARGEST_BLOCK = 64 << 20
# Discards come in large pieces, and what they touch is read or skipped by other rules than writes.
DISCARD_FACTOR = 16
# 16 MiB of bits (twice: two generations) or 32 MiB of bytes.
_MOST_BLOCKS = {BITS: 1 << 27, BYTES: 1 << 25}

_STEP = 1 << 18
_NOTHING = b"\0" * _STEP
_MARKED = re.compile(b"[^\\0]+")
_BITS_OF = {
    key: b"".join(b"\1" if value >> bit & 1 else b"\0" for bit in range(8))
    for value in range(256)
    # What iterating over bytes gives: numbers on Python 3, strings of one byte on Python 2.
    for key in (bytes(bytearray([value]))[:1], value)
}


def choose_block(sizes, form, block=None):
    # type: (Sequence[int], str, Optional[int]) -> int
    """Return the bytes that one mark stands for, so that the maps of all disks together stay bounded.

    Args:
        sizes: Of the disks tracked together.
        form: ``bytes`` or ``bits``.
        block: What the caller wants; None: the smallest that fits.

    Raises:
        ValueError: The wish is not a power of two from 4 KiB to 64 MiB, or needs too large a map.
    """
    total = sum(sizes)
    if block is not None:
        if block & (block - 1) or not 4096 <= block <= LARGEST_BLOCK:
            raise ValueError("block must be a power of two from 4 KiB to 64 MiB")
        if total > block * _MOST_BLOCKS[form]:
            raise ValueError("blocks of %d bytes need too large a map; use larger ones" % block)
        return block
    block = SMALLEST_BLOCK
    while total > block * _MOST_BLOCKS[form]:
        block *= 2
    return block


def pages_for(size, block, form):
    # type: (int, int, str) -> int
    """Return how many pages of 4096 bytes the map of a disk has."""
    per_page = PAGE * (8 if form == BITS else 1) * block
    return max(1, -(-size // per_page))


class Snapshot(object):
    """The marked pages of a map at one moment; its ranges can be walked more than once."""

    def __init__(self, block, form, pages):
        # type: (int, str, List[Tuple[int, bytes]]) -> None
        self._block = block
        self._form = form
        self._pages = pages

    def ranges(self, size):
        # type: (int) -> Iterator[Span]
        """Yield ``(start, end)`` in bytes, ascending, not touching, inside a disk of that size."""
        per_page = PAGE * (8 if self._form == BITS else 1)
        start = end = 0
        for number, page in self._pages:
            marks = expanded(page) if self._form == BITS else page
            base = number * per_page
            for found in _MARKED.finditer(marks):
                first = (base + found.start()) * self._block
                if first != end:
                    if end > start:
                        yield start, min(end, size)
                    start = first
                end = (base + found.end()) * self._block
        if end > start and start < size:
            yield start, min(end, size)


def take(memory, offset, pages, block, form, clear):
    # type: (Memory, int, int, int, str, bool) -> Snapshot
    """Copy the marked pages of the map at *offset* of *memory*; if *clear*, store 0 where the copy has a mark.

    A byte that has no mark in the copy is never stored to: it may be marked at this very moment. With bits, a
    word holds many marks, so nobody may mark the map meanwhile.
    """
    found = []  # type: List[Tuple[int, bytes]]
    length = pages * PAGE
    for step in range(0, length, _STEP):
        until = min(step + _STEP, length)
        content = bytes(memory[offset + step : offset + until])
        if content == _NOTHING[: until - step]:
            continue
        for at in range(0, until - step, PAGE):
            page = content[at : at + PAGE]
            if page == _NOTHING[:PAGE]:
                continue
            found.append(((step + at) // PAGE, page))
            if not clear:
                continue
            where = offset + step + at
            for run in _MARKED.finditer(page):
                memory[where + run.start() : where + run.end()] = _NOTHING[
                    : run.end() - run.start()
                ]
    return Snapshot(block, form, found)


def expanded(page):
    # type: (bytes) -> bytes
    """Return a byte for each bit."""
    return b"".join([_BITS_OF[value] for value in page])


def union(one, other):
    # type: (Iterable[Span], Iterable[Span]) -> Iterator[Span]
    """Merge two ascending sequences of ranges; what overlaps or touches becomes one."""
    pending = None  # type: Optional[Span]
    for span in _by_start(iter(one), iter(other)):
        if pending is None:
            pending = span
        elif span[0] <= pending[1]:
            pending = (pending[0], max(pending[1], span[1]))
        else:
            yield pending
            pending = span
    if pending is not None:
        yield pending


def _by_start(one, other):
    # type: (Iterator[Span], Iterator[Span]) -> Iterator[Span]
    left = next(one, None)
    right = next(other, None)
    while left is not None and right is not None:
        if left <= right:
            yield left
            left = next(one, None)
        else:
            yield right
            right = next(other, None)
    while left is not None:
        yield left
        left = next(one, None)
    while right is not None:
        yield right
        right = next(other, None)


def subtract(these, without):
    # type: (Iterable[Span], Iterable[Span]) -> Iterator[Span]
    """Yield what is in the first ascending sequence of ranges and not in the second."""
    holes = iter(without)
    hole = next(holes, None)
    for start, end in these:
        at = start
        while at < end:
            while hole is not None and hole[1] <= at:
                hole = next(holes, None)
            if hole is None or hole[0] >= end:
                yield at, end
                break
            if hole[0] > at:
                yield at, hole[0]
            at = hole[1]


def lengths(spans):
    # type: (Iterable[Span]) -> Iterator[Tuple[int, int]]
    """Turn ``(start, end)`` into ``(offset, length)``."""
    for start, end in spans:
        yield start, end - start


def total(spans):
    # type: (Iterable[Span]) -> int
    """Return how many bytes ranges have."""
    return sum(end - start for start, end in spans)
