"""How a disk is cut into chunks, and which chunks are zero."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import xxhash

from cvm_migrate.errors import InvalidRequestError, UnsupportedError
from cvm_migrate.model import Extent, ExtentMap

DIGEST_SIZES: Final[dict[str, int]] = {"xxh3-128": 16, "sha256": 32}
"""Bytes of a digest, by the name of its algorithm in the agent's protocol."""


def chunks(ranges: ExtentMap, chunk: int, size: int) -> Iterator[Extent]:
    """Yield the chunks that *ranges* touch, ascending, each once.

    Every chunk begins at a multiple of *chunk* and is *chunk* bytes long, but for the last one of a disk whose
    size is no multiple. Together they hold every byte of *ranges* that lies on the disk exactly once, and beside
    it only the rest of the same chunks.

    Args:
        ranges: What must be covered.
        chunk: Bytes of a chunk.
        size: Bytes of the disk; what lies behind its end is left out.

    Raises:
        InvalidRequestError: *chunk* is not positive, or *size* negative.
    """
    check_layout(chunk, size)
    # Neighbouring ranges may share a chunk, so a plain loop over them would yield it twice.
    for extent in ranges.clip(0, size).align(chunk, size):
        for offset in range(extent.offset, extent.end, chunk):
            yield Extent(offset, min(chunk, extent.end - offset))


def chunk_count(chunk: int, size: int) -> int:
    """Return how many chunks a disk of *size* bytes has, a shorter last one included."""
    check_layout(chunk, size)
    return -(-size // chunk)


def digest_of(data: bytes | bytearray | memoryview, algorithm: str) -> bytes:
    """Return the digest of *data*, as agents compute it.

    Raises:
        UnsupportedError: There is no such algorithm.
    """
    if algorithm == "xxh3-128":
        return xxhash.xxh3_128_digest(data)
    if algorithm == "sha256":
        return hashlib.sha256(data).digest()
    raise UnsupportedError(
        f"there is no digest {algorithm!r}", remedy=f"Use one of {', '.join(DIGEST_SIZES)}"
    )


class ZeroDigests:
    """Recognises chunks of zeroes by their digest, which costs nothing once it is known.

    Looking at the bytes would cost more than the digest: comparing a buffer with zeroes in Python runs at a third
    of the speed of xxh3-128.

    Args:
        algorithm: ``xxh3-128`` or ``sha256``.

    Raises:
        UnsupportedError: There is no such algorithm.
    """

    def __init__(self, algorithm: str) -> None:
        digest_of(b"", algorithm)
        self._algorithm = algorithm
        # A disk has two lengths of chunk: the usual one and the last one.
        self._known: dict[int, bytes] = {}

    def of(self, length: int) -> bytes:
        """Return the digest of *length* zeroes."""
        digest = self._known.get(length)
        if digest is None:
            digest = digest_of(bytes(length), self._algorithm)
            if len(self._known) < 64:
                self._known[length] = digest
        return digest

    def is_zero(self, digest: bytes, length: int) -> bool:
        """Whether *digest* is that of *length* zeroes."""
        return digest == self.of(length)


def check_layout(chunk: int, size: int) -> None:
    """Refuse a chunk or a disk that cannot be.

    Raises:
        InvalidRequestError: *chunk* is not positive, or *size* negative.
    """
    if chunk <= 0 or size < 0:
        raise InvalidRequestError(
            f"a disk of {size} bytes cannot be cut into chunks of {chunk} bytes",
            remedy="Give a positive chunk and a size that is not negative",
        )
