"""How much one request may carry, and how longer work is cut for several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cvm_migrate.model import ExtentMap
from cvm_migrate.units import MiB

TRANSFER: Final = 4 * MiB
"""Bytes that one request reads or writes."""
RANGES: Final = 1 << 19
"""Ranges of one request: 16 bytes each, in a blob of at most 8 MiB."""
DIGESTS: Final = 1 << 16
"""Digests of one request, so that a caller who takes them slowly costs at most about 20 MiB."""

_ANY_BYTES: Final = 1 << 62


def pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range into what one request may carry; an empty one stays one request."""
    if length <= 0:
        yield offset, length
    for at in range(offset, offset + length, TRANSFER):
        yield at, min(TRANSFER, offset + length - at)


def range_batches(ranges: ExtentMap) -> Iterator[ExtentMap]:
    """Cut a list of ranges so that each part fits a frame."""
    return ranges.batches(_ANY_BYTES, most_extents=RANGES)


def digest_batches(ranges: ExtentMap, chunk: int) -> Iterator[ExtentMap]:
    """Cut ranges at chunk borders, so that a request has at most :data:`DIGESTS` digests."""
    batch: list[tuple[int, int]] = []
    room = DIGESTS
    for offset, length in _chunked(ranges, chunk):
        count = -(-length // chunk)
        if count > room:
            yield ExtentMap(batch)
            batch, room = [], DIGESTS
        batch.append((offset, length))
        room -= count
    if batch:
        yield ExtentMap(batch)


def _chunked(ranges: Iterable[tuple[int, int]], chunk: int) -> Iterator[tuple[int, int]]:
    most = DIGESTS * chunk
    for offset, length in ranges:
        for at in range(offset, offset + length, most):
            yield at, min(most, offset + length - at)
