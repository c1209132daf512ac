"""The frames between two pumps, of ``docs/reference/data-protocol.md``; no input or output here."""

from __future__ import absolute_import

import json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Union

    Bytes = Union[bytes, bytearray, memoryview]

PROTOCOL = 1

HELLO = 1
WELCOME = 2
REFUSED = 3
DATA = 4
ZERO = 5
ACK = 6
FAILED = 7
FLUSH = 8
FLUSHED = 9
ALIVE = 10
PROBE = 11

RAW = 0
ZLIB = 1
ZSTD = 2
CODEC_NUMBERS = {"raw": RAW, "zlib": ZLIB, "zstd": ZSTD}

MAX_CHUNK = 8 << 20
MAX_ZERO = 1 << 30
MAX_JSON = 64 << 10
MAX_DISK = (1 << 16) - 1
_MAX_OFFSET = (1 << 63) - 1

HEADER = struct.Struct(">BBHIQQQ32s")
_NO_DIGEST = b"\0" * 32

_FROM_SENDER = frozenset((HELLO, DATA, ZERO, FLUSH, ALIVE, PROBE))
_FROM_RECEIVER = frozenset((WELCOME, REFUSED, ACK, FAILED, FLUSHED, ALIVE))
_WITH_BYTES = frozenset((DATA, PROBE))
_WITH_JSON = frozenset((HELLO, WELCOME, REFUSED, FAILED, FLUSHED))


class FrameError(Exception):
    """Bytes that no pump of this version sends; the connection is of no use any more."""


class Header(object):
    """The header of a frame."""

    __slots__ = ("codec", "digest", "disk", "kind", "length", "offset", "sequence", "size")

    def __init__(self, kind, codec, disk, size, sequence, offset, length, digest):
        # type: (int, int, int, int, int, int, int, bytes) -> None
        self.kind = kind
        self.codec = codec
        self.disk = disk
        self.size = size
        self.sequence = sequence
        self.offset = offset
        self.length = length
        self.digest = digest


def encode_header(kind, size=0, codec=RAW, disk=0, sequence=0, offset=0, length=0, digest=b""):
    # type: (int, int, int, int, int, int, int, bytes) -> bytes
    """Return the 64 bytes of a header."""
    return HEADER.pack(kind, codec, disk, size, sequence, offset, length, digest)


def encode_json(kind, value, sequence=0):
    # type: (int, Dict[str, Any], int) -> bytes
    """Return a whole frame whose payload is a JSON object."""
    text = json.dumps(value).encode("ascii")
    if len(text) > MAX_JSON:
        raise FrameError("a payload of %d bytes of JSON, more than %d" % (len(text), MAX_JSON))
    return encode_header(kind, size=len(text), sequence=sequence) + text


def decode_header(data, from_sender):
    # type: (Bytes, bool) -> Header
    """Return the header that 64 bytes hold.

    Args:
        data: The bytes.
        from_sender: Whether they came from the sending pump.

    Raises:
        FrameError: They break a rule of the protocol.
    """
    header = Header(*HEADER.unpack(data))
    kind = header.kind
    if kind not in (_FROM_SENDER if from_sender else _FROM_RECEIVER):
        raise FrameError("a frame of kind %d, which this end never gets" % kind)
    if kind in _WITH_JSON:
        if header.size > MAX_JSON:
            raise FrameError("%d bytes of JSON, more than %d" % (header.size, MAX_JSON))
    elif kind == DATA:
        if not 1 <= header.length <= MAX_CHUNK:
            raise FrameError("a chunk of %d bytes" % header.length)
        if header.codec not in (RAW, ZLIB, ZSTD):
            raise FrameError("a chunk of codec %d" % header.codec)
        if not 1 <= header.size <= header.length or (
            header.codec == RAW and header.size != header.length
        ):
            raise FrameError(
                "a chunk of %d bytes arrives as %d bytes" % (header.length, header.size)
            )
    elif kind == PROBE:
        if not 1 <= header.length <= MAX_CHUNK or header.size != header.length:
            raise FrameError(
                "a probe of %d bytes arrives as %d bytes" % (header.length, header.size)
            )
        if header.disk or header.offset:
            raise FrameError("a probe that names a place")
    elif kind == ZERO and not 1 <= header.length <= MAX_ZERO:
        raise FrameError("a range of %d zeroes" % header.length)
    if kind != DATA and header.codec:
        raise FrameError("a codec in a frame of kind %d" % kind)
    if kind not in _WITH_BYTES and kind not in _WITH_JSON and header.size:
        raise FrameError("a frame of kind %d with a payload" % kind)
    if header.offset > _MAX_OFFSET:
        raise FrameError("an offset beyond 2**63")
    return header


def decode_json(data):
    # type: (Bytes) -> Dict[str, Any]
    """Return the JSON object of a payload.

    Raises:
        FrameError: It is none.
    """
    try:
        value = json.loads(bytes(data).decode("utf-8"))  # type: Any
    except RuntimeError:
        # Python 3's RecursionError is one; Python 2 raises it as it is.
        raise FrameError("a payload is nested too deeply")
    except ValueError as error:
        raise FrameError("a payload is not JSON: %s" % (error,))
    if not isinstance(value, dict):
        raise FrameError("a payload is no JSON object")
    return value  # pyright: ignore[reportUnknownVariableType] - JSON


def pad_digest(digest):
    # type: (bytes) -> bytes
    """Return a digest as it stands in a header."""
    return digest + _NO_DIGEST[len(digest) :]
