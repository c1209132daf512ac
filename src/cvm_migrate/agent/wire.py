"""The control frames of ``docs/reference/agent-protocol.md``, as bytes in and frames out; no input or output here.

Both ends import this module. A frame is built by :func:`encode`; a :class:`Decoder` is fed whatever bytes have
come and gives the frames that are complete. Anything that no peer of this version sends is a :class:`WireError`,
after which the connection is of no use. What a peer can make a decoder hold is bounded by one frame.
"""

from __future__ import absolute_import

import json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Text, Tuple

PROTOCOL_VERSION = 1
MAGIC = b"CVMA"

HELLO = 1
REQUEST = 2
PART = 3
RESULT = 4
ERROR = 5
HEARTBEAT = 6
CANCEL = 7

KINDS = {
    HELLO: "HELLO",
    REQUEST: "REQUEST",
    PART: "PART",
    RESULT: "RESULT",
    ERROR: "ERROR",
    HEARTBEAT: "HEARTBEAT",
    CANCEL: "CANCEL",
}
_WITHOUT_ID = frozenset((HELLO, HEARTBEAT))

# Bounds on what one frame can make its receiver hold.
MAX_HEADER = 1 << 20
MAX_BLOB = 8 << 20
MAX_ID = (1 << 32) - 1

# 64-bit numbers have 20 digits. Longer ones cost quadratic time to read, so they are refused unread.
_MAX_DIGITS = 40

PREFIX = struct.Struct(">4sBBHIII")


class WireError(Exception):
    """The bytes are no frame of this version, or a frame was asked for that none may be.

    ``frames`` are those that the same bytes held before the fault.
    """

    def __init__(self, message, frames=None):
        # type: (str, Optional[List[Frame]]) -> None
        Exception.__init__(self, message)
        self.message = message
        self.frames = [] if frames is None else frames  # type: List[Frame]


class Frame(object):
    """One frame: its kind, the number of its request, a JSON object and bytes."""

    __slots__ = ("blob", "header", "id", "kind")

    def __init__(self, kind, id, header, blob=b""):  # noqa: A002 - the protocol's word
        # type: (int, int, Dict[str, Any], bytes) -> None
        self.kind = kind
        self.id = id
        self.header = header
        self.blob = blob

    def _fields(self):
        # type: () -> Tuple[int, int, Dict[str, Any], bytes]
        return (self.kind, self.id, self.header, self.blob)

    def __eq__(self, other):
        # type: (object) -> bool
        if not isinstance(other, Frame):
            return NotImplemented
        return self._fields() == other._fields()

    def __ne__(self, other):
        # type: (object) -> bool
        return not self == other

    __hash__ = None  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]

    def __repr__(self):
        # type: () -> str
        return "Frame(%s, %d, %r, %d bytes)" % (
            KINDS.get(self.kind, self.kind),
            self.id,
            self.header,
            len(self.blob),
        )


def encode(kind, id, header, blob=b""):  # noqa: A002 - the protocol's word
    # type: (int, int, Dict[str, Any], bytes) -> bytes
    """Return the bytes of a frame.

    Raises:
        WireError: No decoder would take it: unknown kind, number out of range, too large, or not JSON.
    """
    fault = _fault(kind, id, blob_length=len(blob))
    if fault is not None:
        raise WireError(fault)
    try:
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError) as error:
        raise WireError("a header cannot be written as JSON: %s" % (error,))
    if not text.startswith(b"{"):
        raise WireError("a header is no JSON object: %.80r" % (header,))
    if len(text) > MAX_HEADER:
        raise WireError("a header has %d bytes, more than %d" % (len(text), MAX_HEADER))
    prefix = PREFIX.pack(MAGIC, PROTOCOL_VERSION, kind, 0, id, len(text), len(blob))
    return b"".join((prefix, text, blob))


class Decoder(object):
    """Turns bytes, cut in whatever way, into frames."""

    def __init__(self):
        # type: () -> None
        self._held = bytearray()
        self._fault = None  # type: Optional[str]

    @property
    def pending(self):
        # type: () -> int
        """Number of bytes held of a frame that is not complete; at the end of the line it should be 0."""
        return len(self._held)

    def feed(self, data):
        # type: (bytes) -> List[Frame]
        """Take bytes and return the frames that are complete now.

        Raises:
            WireError: The bytes are no frames; what was complete before the fault is in its ``frames``. Every
                later call raises it again.
        """
        frames = []  # type: List[Frame]
        if self._fault is None:
            self._held += data
            at = 0
            while True:
                length, self._fault = self._next(at)
                if self._fault is not None or length is None:
                    break
                try:
                    frames.append(_frame(bytes(self._held[at : at + length])))
                except ValueError as error:
                    self._fault = str(error)
                    break
                at += length
            del self._held[:at]
        if self._fault is not None:
            del self._held[:]
            raise WireError(self._fault, frames)
        return frames

    def _next(self, at):
        # type: (int) -> Tuple[Optional[int], Optional[str]]
        """Return the whole length of the frame at *at*, None if it is not complete; and what is wrong with it."""
        have = len(self._held) - at
        start = bytes(self._held[at : at + PREFIX.size])
        # Told as early as it can be known, so that no peer waits for the rest of a frame that never comes.
        if start[:4] != MAGIC[: len(start)]:
            return None, "not a frame of this protocol: it begins with %r" % (start[:4],)
        if len(start) >= 5 and ord(start[4:5]) != PROTOCOL_VERSION:
            return None, "a frame of version %d, but this is version %d" % (
                ord(start[4:5]),
                PROTOCOL_VERSION,
            )
        if len(start) < PREFIX.size:
            return None, None
        _, _, kind, reserved, number, header_length, blob_length = PREFIX.unpack(start)
        if reserved:
            return None, "the reserved field is %d, not 0" % reserved
        fault = _fault(kind, number, blob_length)
        if fault is not None:
            return None, fault
        if header_length > MAX_HEADER:
            return None, "a header of %d bytes, more than %d" % (header_length, MAX_HEADER)
        length = PREFIX.size + header_length + blob_length
        return (length if have >= length else None), None


def _fault(kind, number, blob_length):
    # type: (int, int, int) -> Optional[str]
    """Return what no frame may be, None where all is well."""
    if kind not in KINDS:
        return "there is no frame of kind %r" % (kind,)
    if not 0 <= number <= MAX_ID:
        return "there is no request number %r" % (number,)
    if (number == 0) != (kind in _WITHOUT_ID):
        return "a frame of kind %s has the request number %d" % (KINDS[kind], number)
    if blob_length > MAX_BLOB:
        return "a frame carries %d bytes, more than %d" % (blob_length, MAX_BLOB)
    return None


def _frame(data):
    # type: (bytes) -> Frame
    _, _, kind, _, number, header_length, _ = PREFIX.unpack(data[: PREFIX.size])
    end = PREFIX.size + header_length
    return Frame(kind, number, _header(data[PREFIX.size : end]), data[end:])


def _header(data):
    # type: (bytes) -> Dict[str, Any]
    try:
        header = json.loads(data.decode("utf-8"), parse_int=_number, parse_constant=_no_constant)  # type: Any
    except RuntimeError:
        # Python 3's RecursionError is one; Python 2 raises it as it is.
        raise ValueError("a header is nested too deeply")
    except ValueError as error:
        raise ValueError("a header is not JSON: %s" % (error,))
    if not isinstance(header, dict):
        raise ValueError("a header is no JSON object")
    return header  # pyright: ignore[reportUnknownVariableType] - JSON


def _number(digits):
    # type: (Text) -> int
    if len(digits) > _MAX_DIGITS:
        raise ValueError("a number of %d digits" % len(digits))
    return int(digits)


def _no_constant(name):
    # type: (Text) -> float
    raise ValueError("%s is not JSON" % name)
