"""All digests of a disk, in a buffer that may be a file: its layout is ``docs/reference/manifest.md``."""

from __future__ import annotations

import mmap
import re
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, Self

from typing_extensions import Buffer

from cvm_migrate.delta._chunks import DIGEST_SIZES, ZeroDigests, chunk_count
from cvm_migrate.errors import InvalidRequestError, UnsupportedError
from cvm_migrate.model import ExtentMap

_MAGIC: Final = b"CVMMANI\x1a"
_VERSION: Final = 1
_PAGE: Final = 4096
# magic, version, flags, algorithm, bytes of a digest, chunk, size, checksum of what follows the header's page
_HEADER: Final = struct.Struct(">8sHH16sIQQI")
_CHECKSUM: Final = struct.Struct(">I")
_SEALED: Final = 1
# What a bitmap of more chunks would take is no longer a file that anyone has made on purpose.
_MOST_CHUNKS: Final = 1 << 36
_RUNS: Final = re.compile(rb"\xff+|[^\x00\xff]", re.DOTALL)
_ANEW: Final = "Delete it: digests of the whole disk are computed anew then"


class Manifest:
    """The digests of a disk at one moment, by chunk.

    Each chunk's digest is known or not. Chunks of zeroes take no room: what is stored is the difference (exclusive
    or) between a digest and that of zeroes, so that an mmap of a sparse file stays sparse where a disk is empty.

    Make one with :meth:`create` or :meth:`load`. It is a context manager; the end releases the buffer, which an
    ``mmap`` needs before it can be closed. Not safe for use by several threads at once.
    """

    def __init__(self, algorithm: str, chunk: int, size: int, view: memoryview) -> None:
        """Use :meth:`create` or :meth:`load` instead."""
        self._algorithm = algorithm
        self._chunk = chunk
        self._size = size
        self._count = chunk_count(chunk, size)
        self._width = DIGEST_SIZES[algorithm]
        self._zeroes = ZeroDigests(algorithm)
        self._view = view
        self._bits = view[_PAGE : _PAGE + -(-self._count // 8)]
        start = _table_start(self._count)
        self._table = view[start : start + self._count * self._width]

    @classmethod
    def create(
        cls, *, algorithm: str, chunk: int, size: int, buffer: Buffer | None = None
    ) -> Manifest:
        """Return a manifest in which no digest is known yet.

        Args:
            algorithm: Of the digests: ``xxh3-128`` or ``sha256``.
            chunk: Bytes of a chunk.
            size: Bytes of the disk.
            buffer: Where it is kept: writable, :meth:`bytes_needed` long and full of zeroes, such as the ``mmap`` of
                a new sparse file. ``None``: memory, of which pages that stay zero take nothing.

        Raises:
            InvalidRequestError: The buffer is read-only, of another length, or holds something already.
            UnsupportedError: There is no such algorithm.
        """
        needed = cls.bytes_needed(algorithm=algorithm, chunk=chunk, size=size)
        view = _view(_memory(needed) if buffer is None else buffer)
        if view.nbytes != needed:
            raise InvalidRequestError(
                f"a buffer of {view.nbytes} bytes was given for a manifest of {needed} bytes",
                length=view.nbytes,
                remedy="Make it as long as Manifest.bytes_needed() says",
            )
        if any(view[:_PAGE]):
            raise InvalidRequestError(
                "the buffer for a new manifest holds something already",
                remedy="Give a new file, or use Manifest.load()",
            )
        made = cls(algorithm, chunk, size, view)
        made._write_header(sealed=False)
        return made

    @classmethod
    def load(cls, buffer: Buffer) -> Manifest:
        """Return the manifest that a buffer holds, after checking every byte of it.

        Args:
            buffer: What :meth:`create` was given, or the file's content. It must be writable to be changed.

        Raises:
            InvalidRequestError: It is no manifest, is damaged, of another version, or was not sealed: whoever
                wrote it did not come to the end.
        """
        view = memoryview(buffer).cast("B")
        if view.nbytes < _PAGE:
            raise _bad(f"has only {view.nbytes} bytes")
        magic, version, flags, name, width, chunk, size, checksum = _HEADER.unpack_from(view)
        if magic != _MAGIC:
            raise _bad("does not begin like one")
        if version != _VERSION:
            raise _bad(f"is of version {version}, this library knows version {_VERSION}")
        (own,) = _CHECKSUM.unpack_from(view, _HEADER.size)
        if own != zlib.crc32(view[: _HEADER.size]) or any(
            view[_HEADER.size + _CHECKSUM.size : _PAGE]
        ):
            raise _bad("has a damaged header")
        algorithm = name.rstrip(b"\0").decode("ascii", "replace")
        if flags & ~_SEALED or DIGEST_SIZES.get(algorithm) != width or chunk == 0:
            raise _bad(f"has a header that makes no sense (digest {algorithm!r} of {width} bytes)")
        if -(-size // chunk) > _MOST_CHUNKS:
            raise _bad("has a header that makes no sense (too many chunks)")
        needed = cls.bytes_needed(algorithm=algorithm, chunk=chunk, size=size)
        if view.nbytes != needed:
            raise _bad(f"has {view.nbytes} bytes instead of {needed}")
        if not flags & _SEALED:
            raise _bad("was not sealed: the process that wrote it did not come to the end")
        if zlib.crc32(view[_PAGE:]) != checksum:
            raise _bad("is damaged: its checksum is wrong")
        return cls(algorithm, chunk, size, view)

    @staticmethod
    def bytes_needed(*, algorithm: str, chunk: int, size: int) -> int:
        """Return how long the buffer of such a manifest is.

        Raises:
            InvalidRequestError: *chunk* is not positive, *size* negative, or there would be too many chunks.
            UnsupportedError: There is no such algorithm.
        """
        width = DIGEST_SIZES.get(algorithm)
        if width is None:
            raise UnsupportedError(
                f"there is no digest {algorithm!r}",
                remedy=f"Use one of {', '.join(DIGEST_SIZES)}",
            )
        count = chunk_count(chunk, size)
        if count > _MOST_CHUNKS:
            raise InvalidRequestError(
                f"a disk of {size} bytes has too many chunks of {chunk} bytes",
                remedy="Give a larger chunk",
            )
        return _table_start(count) + count * width

    @property
    def algorithm(self) -> str:
        """Of the digests."""
        return self._algorithm

    @property
    def chunk(self) -> int:
        """Bytes of a chunk."""
        return self._chunk

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self._size

    @property
    def sealed(self) -> bool:
        """Whether it is complete on its buffer, so that :meth:`load` will take it."""
        return bool(_HEADER.unpack_from(self._view)[2] & _SEALED)

    def set(self, offset: int, digests: Sequence[bytes]) -> None:
        """Keep the digests of chunks that follow one another.

        Args:
            offset: Where the first chunk begins, in bytes from the start of the disk.
            digests: Theirs, in order.

        Raises:
            InvalidRequestError: *offset* is no multiple of the chunk, a chunk lies behind the end of the disk, or a
                digest is of another length.
        """
        if not digests:
            return
        first = self._index(offset, len(digests))
        for digest in digests:
            if len(digest) != self._width:
                raise InvalidRequestError(
                    f"a digest of {len(digest)} bytes is not one of {self._algorithm}",
                    offset=offset,
                )
        self._unseal()
        stored = self._mask(b"".join(digests), first)
        start, done = first * self._width, 0
        # The slot of an unknown digest is zero: even reading it could make a page real, as on a tmpfs.
        fresh = not any(self._bits[first >> 3 : (first + len(digests) + 7) >> 3])
        while done < len(stored):
            # By pages: one that holds nothing but zeroes, and did before, must not be touched.
            at = start + done
            part = stored[done : done + _PAGE - at % _PAGE]
            same = not any(part) if fresh else bytes(self._table[at : at + len(part)]) == part
            if not same:
                self._table[at : at + len(part)] = part
            done += len(part)
        for number in range(first, first + len(digests)):
            self._bits[number >> 3] |= 1 << (number & 7)

    def get(self, offset: int, count: int = 1) -> list[bytes | None]:
        """Return the digests of chunks that follow one another; ``None`` for one that is not known.

        Args:
            offset: Where the first chunk begins, in bytes from the start of the disk.
            count: How many.

        Raises:
            InvalidRequestError: *offset* is no multiple of the chunk, or a chunk lies behind the end of the disk.
        """
        if count <= 0:
            return []
        first = self._index(offset, count)
        return [
            digest if self._bits[number >> 3] >> (number & 7) & 1 else None
            for number, digest in enumerate(self._digests(first, count), first)
        ]

    def forget(self, ranges: ExtentMap) -> None:
        """Call the digests of all chunks that *ranges* touch unknown."""
        self._unseal()
        blank = bytes(self._width)
        # A range behind the end touches no chunk, although the last one would reach there if it were whole.
        for extent in ranges.clip(0, self._size).align(self._chunk, self._size):
            for number in range(extent.offset // self._chunk, -(-extent.end // self._chunk)):
                if self._bits[number >> 3] >> (number & 7) & 1:
                    self._bits[number >> 3] &= ~(1 << (number & 7)) & 0xFF
                    start, end = number * self._width, (number + 1) * self._width
                    if bytes(self._table[start:end]) != blank:
                        self._table[start:end] = blank

    def known(self) -> ExtentMap:
        """Return the ranges whose digests are known."""
        return ExtentMap(self._known())

    def unknown(self) -> ExtentMap:
        """Return the ranges whose digests are not known."""
        return ExtentMap.whole(self._size) - self.known()

    def batches(
        self, ranges: ExtentMap | None = None, *, most: int = 4096
    ) -> Iterator[tuple[int, list[bytes]]]:
        """Yield the known digests as :func:`compare` takes them, ascending.

        Args:
            ranges: Only the chunks that these touch; ``None``: all.
            most: Digests in a batch.
        """
        wanted = self.known()
        if ranges is not None:
            wanted &= ranges.align(self._chunk, self._size)
        for extent in wanted:
            first, end = extent.offset // self._chunk, -(-extent.end // self._chunk)
            for number in range(first, end, most):
                yield (
                    number * self._chunk,
                    list(self._digests(number, min(most, end - number))),
                )

    def seal(self) -> None:
        """Note the checksum of everything: only then will :meth:`load` take it. Any change breaks the seal."""
        self._write_header(sealed=True)

    def release(self) -> None:
        """Let go of the buffer; the manifest cannot be used afterwards."""
        self._bits.release()
        self._table.release()
        self._view.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _index(self, offset: int, count: int) -> int:
        if offset < 0 or offset % self._chunk or offset // self._chunk + count > self._count:
            raise InvalidRequestError(
                f"{count} chunks of {self._chunk} bytes from offset {offset} on are not chunks of a disk of"
                f" {self._size} bytes",
                offset=offset,
            )
        return offset // self._chunk

    def _mask(self, digests: bytes, first: int) -> bytes:
        """Turn digests into what is stored, or back: exclusive or with the digests of zeroes."""
        count = len(digests) // self._width
        zeroes = self._zeroes.of(self._chunk) * count
        if first + count == self._count:
            last = self._zeroes.of(self._size - (self._count - 1) * self._chunk)
            zeroes = zeroes[: -self._width] + last
        return (int.from_bytes(digests) ^ int.from_bytes(zeroes)).to_bytes(len(digests))

    def _digests(self, first: int, count: int) -> Iterator[bytes]:
        stored = bytes(self._table[first * self._width : (first + count) * self._width])
        digests = self._mask(stored, first)
        for at in range(0, len(digests), self._width):
            yield digests[at : at + self._width]

    def _known(self) -> Iterator[tuple[int, int]]:
        blank = bytes(_PAGE)
        for start in range(0, len(self._bits), _PAGE):
            page = bytes(self._bits[start : start + _PAGE])
            if page == blank:
                continue
            for found in _RUNS.finditer(page):
                first = (start + found.start()) * 8
                byte = page[found.start()]
                if byte == 0xFF:
                    yield self._range(first, (found.end() - found.start()) * 8)
                    continue
                for bit in range(8):
                    if byte >> bit & 1:
                        yield self._range(first + bit, 1)

    def _range(self, first: int, count: int) -> tuple[int, int]:
        offset = first * self._chunk
        return offset, max(0, min(count * self._chunk, self._size - offset))

    def _unseal(self) -> None:
        if self.sealed:
            self._write_header(sealed=False)

    def _write_header(self, *, sealed: bool) -> None:
        if self._view.readonly:
            raise InvalidRequestError(
                "the manifest's buffer is read-only", remedy="Load it from a writable buffer"
            )
        _HEADER.pack_into(
            self._view,
            0,
            _MAGIC,
            _VERSION,
            _SEALED if sealed else 0,
            self._algorithm.encode(),
            self._width,
            self._chunk,
            self._size,
            zlib.crc32(self._view[_PAGE:]) if sealed else 0,
        )
        _CHECKSUM.pack_into(self._view, _HEADER.size, zlib.crc32(self._view[: _HEADER.size]))


def _table_start(count: int) -> int:
    bitmap = (count + 7) // 8
    return _PAGE + (bitmap + _PAGE - 1) // _PAGE * _PAGE


def _view(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    if view.readonly or not view.c_contiguous:
        raise InvalidRequestError(
            "a manifest needs a writable buffer", remedy="Give a bytearray or a writable mmap"
        )
    return view.cast("B")


def _memory(length: int) -> mmap.mmap:
    # Not a bytearray, which touches every page: most of a manifest often stays zero.
    if sys.platform == "win32":
        memory = mmap.mmap(-1, length)
    else:
        memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memory


def _bad(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"not a manifest that can be used: it {what}", remedy=_ANEW)
