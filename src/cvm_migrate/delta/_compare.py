"""Two streams of digests side by side: which chunks differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cvm_migrate.delta._chunks import check_layout
from cvm_migrate.errors import ProtocolError
from cvm_migrate.model import ExtentMap


def compare(
    one: Iterable[tuple[int, Sequence[bytes]]],
    other: Iterable[tuple[int, Sequence[bytes]]],
    *,
    chunk: int,
    size: int,
) -> ExtentMap:
    """Return the chunks whose digests differ.

    Both streams are read in step, so no more than one batch of each is in memory; how they are cut into batches
    does not matter. Each is what ``digest`` of an agent yields.

    Args:
        one: Pairs of an offset and the digests of the chunks that follow one another from there, ascending.
        other: The same of the other disk, for the same chunks.
        chunk: Bytes of a chunk.
        size: Bytes of the disk; the last chunk ends there.

    Raises:
        InvalidRequestError: *chunk* is not positive, or *size* negative.
        ProtocolError: The streams do not cover the same chunks, or one is not ascending, not aligned or
            leaves the disk.
    """
    check_layout(chunk, size)
    return ExtentMap(
        _differing(_single(one, chunk, size), _single(other, chunk, size), chunk, size)
    )


def _differing(
    one: Iterator[tuple[int, bytes]], other: Iterator[tuple[int, bytes]], chunk: int, size: int
) -> Iterator[tuple[int, int]]:
    start = end = 0
    for offset, digest in one:
        there = next(other, None)
        if there is None or there[0] != offset:
            raise _uneven(offset, None if there is None else there[0])
        if len(digest) != len(there[1]):
            raise ProtocolError(
                f"digests of {len(digest)} and of {len(there[1])} bytes cannot be compared",
                offset=offset,
            )
        if digest != there[1]:
            if offset != end:
                if end > start:
                    yield start, end - start
                start = offset
            end = min(offset + chunk, size)
    if end > start:
        yield start, end - start
    left = next(other, None)
    if left is not None:
        raise _uneven(None, left[0])


def _uneven(one: int | None, other: int | None) -> ProtocolError:
    here = "nothing more" if one is None else f"a digest for offset {one}"
    there = "nothing more" if other is None else f"one for offset {other}"
    return ProtocolError(f"the two ends gave digests of different chunks: {here}, and {there}")


def _single(
    batches: Iterable[tuple[int, Sequence[bytes]]], chunk: int, size: int
) -> Iterator[tuple[int, bytes]]:
    """Take batches apart, checking what came from another machine."""
    expected = 0
    for offset, digests in batches:
        if offset % chunk or offset < expected or offset + (len(digests) - 1) * chunk >= size:
            raise ProtocolError(
                f"{len(digests)} digests from offset {offset} on, after all before {expected}: not a list of"
                f" chunks of {chunk} bytes on a disk of {size} bytes"
            )
        expected = offset + len(digests) * chunk
        for number, digest in enumerate(digests):
            yield offset + number * chunk, digest
