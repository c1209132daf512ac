"""What every verb of the agent works with: its context, its reply, its errors, and its arguments.

A verb is a function ``verb(context, args, blob, reply)`` that returns ``(header, blob)`` of its RESULT. Each request
runs in a thread of its own. A module that has verbs exports them as the dictionary ``VERBS``.
"""

from __future__ import absolute_import

import errno
import os
import struct
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Text, Tuple, Type, TypeVar

    if sys.platform != "win32":
        from cvm_migrate.agent.blockio import OpenHandle
    else:
        OpenHandle = Any

    Kept = TypeVar("Kept")
    Header = Dict[str, Any]
    Verb = Callable[["Context", Header, bytes, "Reply"], Tuple[Header, bytes]]

# With Python 2's long and unicode, which Python 3 has no names for.
_INTEGERS = tuple({int, type(1 << 64)})  # type: Tuple[Type[int], ...]
_NUMBERS = _INTEGERS + (float,)  # type: Tuple[Type[float], ...]
_TEXTS = tuple({str, type(b"".decode("ascii"))})  # type: Tuple[Type[Any], ...]

_RANGE = struct.Struct(">QQ")
# A disk offset fits 63 bits: off_t is signed.
_MAX_OFFSET = (1 << 63) - 1

_BY_ERRNO = {
    errno.EPERM: "permission",
    errno.EACCES: "permission",
    errno.ENOSPC: "no-room",
    errno.EDQUOT: "no-room",
}
_BY_ERRNO_OF_OPEN = {
    errno.ENOENT: "not-found",
    errno.ENOTDIR: "not-found",
    errno.ENODEV: "not-found",
    errno.ENXIO: "not-found",
    errno.EROFS: "permission",
}


class AgentError(Exception):
    """A refusal with the code and the facts that an ERROR frame carries."""

    def __init__(
        self, code, message, errno=None, device=None, offset=None, length=None, remedy=None
    ):
        # type: (str, Text, Optional[int], Optional[Text], Optional[int], Optional[int], Optional[Text]) -> None
        Exception.__init__(self, message)
        self.code = code
        self.message = message
        self.errno = errno
        self.device = device
        self.offset = offset
        self.length = length
        self.remedy = remedy

    def to_header(self):
        # type: () -> Header
        """Return the header of the ERROR frame."""
        return {
            "code": self.code,
            "message": self.message,
            "errno": self.errno,
            "device": self.device,
            "offset": self.offset,
            "length": self.length,
            "remedy": self.remedy,
        }


def from_os_error(code_hint, error, device=None, offset=None, length=None, doing=None):
    # type: (str, EnvironmentError, Optional[Text], Optional[int], Optional[int], Optional[Text]) -> AgentError
    """Return the error that stands for a refusal of the system.

    Args:
        code_hint: The code where the number says nothing better; ``open`` means that a name was looked up, and
            becomes ``not-found``, ``permission`` or ``unsupported``.
        error: What the system said.
        device: The device or file concerned.
        offset: First byte concerned.
        length: Number of bytes concerned.
        doing: What was being done, such as ``reading``.
    """
    number = error.errno
    code = _BY_ERRNO.get(number or 0)
    if code is None and code_hint == "open":
        code = _BY_ERRNO_OF_OPEN.get(number or 0, "unsupported")
    if code is None:
        code = code_hint
    reason = os.strerror(number) if number else str(error)
    message = "%s: %s" % (" ".join(filter(None, (doing, device))) or code, reason)
    return AgentError(code, message, errno=number, device=device, offset=offset, length=length)


class Reply(object):
    """The way back to the caller of one request."""

    def __init__(self, send):
        # type: (Callable[[Header, bytes], None]) -> None
        self._send = send
        self._cancel = threading.Event()

    def part(self, header, blob=b""):
        # type: (Header, bytes) -> None
        """Send a PART; waits while the caller does not read."""
        self._send(header, blob)

    @property
    def cancelled(self):
        # type: () -> bool
        """Whether the caller has called the request off."""
        return self._cancel.is_set()

    def cancel(self):
        # type: () -> None
        """Call the request off; it ends at its next chunk."""
        self._cancel.set()

    def check(self):
        # type: () -> None
        """Raise the error `cancelled` if the caller has called the request off."""
        if self._cancel.is_set():
            raise AgentError("cancelled", "the caller called the request off")


class Context(object):
    """What the verbs of one agent share.

    Attributes:
        handles: Disks and files that ``open`` opened, by number.
        command: The arguments that start this very agent again, as another process.
    """

    def __init__(self, command):
        # type: (List[str]) -> None
        self.command = command
        self.handles = {}  # type: Dict[int, OpenHandle]
        self.lock = threading.RLock()
        self._last_handle = 0
        self._cleanups = []  # type: List[Callable[[], object]]
        self._first_cleanups = []  # type: List[Callable[[], object]]
        self._kept = {}  # type: Dict[Any, Any]

    def kept(self, make):
        # type: (Callable[[Context], Kept]) -> Kept
        """Return what a module keeps from one request to the next, which *make* makes when it is asked for first."""
        with self.lock:
            if make not in self._kept:
                self._kept[make] = make(self)
            return self._kept[make]  # type: ignore[no-any-return]

    def add_handle(self, handle):
        # type: (OpenHandle) -> int
        """Give an open disk a number."""
        with self.lock:
            self._last_handle += 1
            self.handles[self._last_handle] = handle
            return self._last_handle

    def drop_handle(self, args, name="handle"):
        # type: (Header, str) -> None
        """Forget the open disk whose number an argument has; closing it is the caller's business."""
        with self.lock:
            self.handles.pop(integer(args, name, 0), None)

    def handle(self, args, name="handle"):
        # type: (Header, str) -> OpenHandle
        """Return the open disk whose number an argument has.

        Raises:
            AgentError: ``bad-request``: there is no such number.
        """
        number = integer(args, name, 0)
        with self.lock:
            found = self.handles.get(number)
        if found is None:
            raise AgentError("bad-request", "there is no open handle %d" % number)
        return found

    def at_end(self, cleanup, first=False):
        # type: (Callable[[], object], bool) -> None
        """Have *cleanup* called, once, when the agent ends, however it ends; the last one first.

        It must bear being called when there is nothing left to do. Those with *first* come before all others.
        """
        with self.lock:
            (self._first_cleanups if first else self._cleanups).append(cleanup)

    def not_at_end(self, cleanup):
        # type: (Callable[[], object]) -> None
        """Take back :meth:`at_end`."""
        with self.lock:
            for cleanups in (self._first_cleanups, self._cleanups):
                if cleanup in cleanups:
                    cleanups.remove(cleanup)

    def next_cleanup(self):
        # type: () -> Optional[Callable[[], object]]
        """Take the last cleanup out of the list; None when it is empty."""
        with self.lock:
            cleanups = self._first_cleanups or self._cleanups
            return cleanups.pop() if cleanups else None


def integer(args, name, low, high=_MAX_OFFSET):
    # type: (Header, str, int, int) -> int
    """Return a whole number out of the arguments.

    Raises:
        AgentError: ``bad-request``: it is missing, no number, or out of range.
    """
    value = args.get(name)  # type: Any
    if isinstance(value, bool) or not isinstance(value, _INTEGERS) or not low <= value <= high:
        raise AgentError(
            "bad-request",
            "%s is %.80r, but must be a whole number from %d to %d" % (name, value, low, high),
        )
    return value


def optional_integer(args, name, low, high=_MAX_OFFSET):
    # type: (Header, str, int, int) -> Optional[int]
    """Like :func:`integer`; None where it is missing or null."""
    if args.get(name) is None:
        return None
    return integer(args, name, low, high)


def number(args, name, low, high):
    # type: (Header, str, float, float) -> float
    """Return a number, whole or not.

    Raises:
        AgentError: ``bad-request``: it is missing, no number, or out of range.
    """
    value = args.get(name)  # type: Any
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not low <= value <= high:
        raise AgentError(
            "bad-request",
            "%s is %.80r, but must be a number from %g to %g" % (name, value, low, high),
        )
    return float(value)


def text(args, name, choices=None):
    # type: (Header, str, Optional[Tuple[str, ...]]) -> str
    """Return a text that is not empty and, where given, one of *choices*.

    Raises:
        AgentError: ``bad-request``: it is none.
    """
    value = args.get(name)  # type: Any
    if not isinstance(value, _TEXTS) or not value or "\0" in value:
        raise AgentError("bad-request", "%s is %.80r, but must be a text" % (name, value))
    if choices is not None and value not in choices:
        raise AgentError(
            "bad-request", "%s is %.80r, but must be one of %s" % (name, value, ", ".join(choices))
        )
    return value  # type: ignore[no-any-return]


def texts(args, name, most=4096):
    # type: (Header, str, int) -> List[str]
    """Return a list of texts.

    Raises:
        AgentError: ``bad-request``: it is none.
    """
    value = args.get(name)  # type: Any
    if not isinstance(value, list) or len(value) > most:  # pyright: ignore[reportUnknownArgumentType] - JSON
        raise AgentError("bad-request", "%s must be a list of at most %d texts" % (name, most))
    return [text({name: item}, name) for item in value]  # pyright: ignore[reportUnknownVariableType] - JSON


def ranges(blob, size, multiple=1):
    # type: (bytes, int, int) -> List[Tuple[int, int]]
    """Return the ``(offset, length)`` pairs of a blob, which are ascending and do not touch.

    Args:
        blob: As the protocol describes it.
        size: Bytes of the disk that they lie in.
        multiple: Each offset is a multiple of it.

    Raises:
        AgentError: ``bad-request``: they are not.
    """
    if len(blob) % _RANGE.size:
        raise AgentError(
            "bad-request", "a list of ranges of %d bytes, no multiple of 16" % len(blob)
        )
    pairs = []  # type: List[Tuple[int, int]]
    end = -1
    for at in range(0, len(blob), _RANGE.size):
        offset, length = _RANGE.unpack_from(blob, at)
        if length == 0 or offset <= end or offset + length > size or offset % multiple:
            raise AgentError(
                "bad-request",
                "the range is empty, out of order, past the end (%d), or begins on no multiple of %d"
                % (size, multiple),
                offset=offset,
                length=length,
            )
        end = offset + length
        pairs.append((offset, length))
    return pairs


def pack_ranges(pairs):
    # type: (List[Tuple[int, int]]) -> bytes
    """Return the blob of ``(offset, length)`` pairs."""
    return b"".join([_RANGE.pack(offset, length) for offset, length in pairs])
