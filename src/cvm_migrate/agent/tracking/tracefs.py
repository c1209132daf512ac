"""The tracefs rung: a tracer process reads the kernel's block events and keeps the maps; this side asks it."""

from __future__ import absolute_import

import errno
import os
import struct
import sys
import threading
import time

assert sys.platform != "win32", "tracefs is Linux's"  # noqa: S101 - tells type checkers

from cvm_migrate.agent import children, clock  # noqa: E402
from cvm_migrate.agent.tracking import marks, system  # noqa: E402
from cvm_migrate.agent.tracking.base import TRACEPOINTS, Refused, Tracker  # noqa: E402
from cvm_migrate.agent.tracking.instance import remove_left_overs  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, Optional, Sequence, Text, Tuple

    from cvm_migrate.agent.tracking import Device
    from cvm_migrate.agent.tracking.base import Collected, Peeked

# A tracer that says nothing for so long is held up for good. Draining takes well under a second.
_ANSWER_SECONDS = 60.0
_END_SECONDS = 30.0
_RANGE = struct.Struct(">QQ")
_LENGTH = struct.Struct(">I")
_START = (
    "import sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1]); "
    "from cvm_migrate.agent.tracking import tracer; sys.exit(tracer.main())"
)


def probe():
    # type: () -> Optional[Text]
    """Say why it can't serve here; None if it seems that it can."""
    try:
        _check()
        with system.Tracefs() as tracefs:
            for event in TRACEPOINTS:
                path = "%s/events/block/%s/format" % (tracefs.path, event)
                if not os.path.exists(path):
                    return "this kernel has no event %s" % event
    except (EnvironmentError, Refused) as error:
        return system.reason_of(error)
    return None


def _check():
    # type: () -> None
    if sys.byteorder != "little":
        raise Refused("the rings are only understood on little-endian machines")
    if not sys.executable:
        raise Refused("the path of this Python is unknown, so no tracer can be started")
    if os.geteuid():
        raise Refused("tracing needs root")


def start(devices, block, buffer_kb=None):
    # type: (Sequence[Device], Optional[int], Optional[int]) -> TracefsTracker
    """Start marking.

    Args:
        devices: Whole disks.
        block: Bytes that a mark stands for; None: by size.
        buffer_kb: Of each CPU's ring; None: by the number of CPUs.

    Raises:
        Refused: It can't serve here.
    """
    try:
        _check()
        size = marks.choose_block([device.size for device in devices], marks.BYTES, block)
        return TracefsTracker(devices, size, buffer_kb)
    except EOFError:
        raise Refused("the tracer died")
    except (EnvironmentError, ValueError) as error:
        raise Refused(system.reason_of(error))


class TracefsTracker(Tracker):
    """Marks in a tracer process.

    Attributes:
        pid: Of the tracer.
        instance: The name of its tracing instance.
    """

    rung = "tracefs"

    def __init__(self, devices, block, buffer_kb):
        # type: (Sequence[Device], int, Optional[int]) -> None
        Tracker.__init__(self, devices, block)
        self._lock = threading.Lock()
        self._dead = None  # type: Optional[Text]
        self._events = [0] * len(self.devices)
        # This package's folder or zip file: the tracer imports the very same code.
        root = os.path.abspath(__file__)
        for _ in range(4):
            root = os.path.dirname(root)
        self._process = children.start([sys.executable, "-E", "-s", "-c", _START, root])
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        self._requests = self._process.stdin
        self._answers = self._process.stdout
        self._ended = False
        self.pid = self._process.pid
        try:
            self._send(
                {
                    "devices": [
                        [each.path, each.size, each.major, each.minor] for each in self.devices
                    ],
                    "block": block,
                    "buffer_kb": buffer_kb,
                }
            )
            answer = self._receive()
        except BaseException:
            self.close()
            raise
        if "refused" in answer:
            self.close()
            raise Refused(answer["refused"])
        self.instance = str(answer["instance"])

    def _send(self, message):
        # type: (Dict[str, Any]) -> None
        children.send(self._requests.fileno(), message)

    def _receive(self):
        # type: () -> Dict[str, Any]
        answer = children.receive(self._answers.fileno(), _ANSWER_SECONDS)  # type: Dict[str, Any]
        return answer

    def _exactly(self, length):
        # type: (int) -> bytes
        return children.exactly(self._answers.fileno(), length, _ANSWER_SECONDS)

    def _ranges(self):
        # type: () -> bytearray
        """Return ranges as packed pairs, which are a sixth of the size of tuples."""
        found = bytearray()
        while True:
            (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            if not length:
                return found
            found += self._exactly(length)

    def collect(self, index):
        # type: (int) -> Collected
        """See :meth:`Tracker.collect`."""
        with self._lock:
            written = discarded = bytearray()
            answer = self._ask(index, clear=True)
            if answer is not None:
                try:
                    written = self._ranges()
                    discarded = self._ranges()
                except (EnvironmentError, EOFError) as error:
                    self._lost(error)
            reason = self._dead or self._doubt_of(index, clear=True)
            return (
                _unpacked(written),
                _unpacked(discarded),
                reason is None,
                reason,
                self._events[index],
            )

    def peek(self, index):
        # type: (int) -> Peeked
        """See :meth:`Tracker.peek`."""
        with self._lock:
            answer = self._ask(index, clear=False)
            dirty = int(answer["dirty"]) if answer else 0
            reason = self._dead or self._doubt_of(index, clear=False)
            return dirty, reason is None, reason, self._events[index]

    def _ask(self, index, clear):
        # type: (int, bool) -> Optional[Dict[str, Any]]
        if self._dead is not None or self._ended:
            self._dead = self._dead or "tracking has ended"
            return None
        try:
            self._send({"index": index, "clear": clear})
            answer = self._receive()
        except (EnvironmentError, EOFError) as error:
            self._lost(error)
            return None
        for reason in answer["doubts"]:
            self.doubt(index, reason)
        self._events[index] = int(answer["events"])
        return answer

    def _lost(self, error):
        # type: (BaseException) -> None
        """The tracer is of no use any more: end it, for good."""
        self._dead = "the tracer died"
        if isinstance(error, EnvironmentError) and error.errno == errno.ETIMEDOUT:
            self._dead = "the tracer did not answer for %d seconds" % _ANSWER_SECONDS
        self._end(kill=True)

    def close(self):
        # type: () -> None
        """See :meth:`Tracker.close`."""
        with self._lock:
            self._end(kill=False)

    def _end(self, kill):
        # type: (bool) -> None
        """End and reap the tracer; only when it is dead may anyone else touch its instance."""
        if self._ended:
            return
        self._ended = True
        process = self._process
        self._requests.close()
        self._answers.close()
        if kill and process.poll() is None:
            process.kill()
        end = clock.monotonic() + _END_SECONDS
        while process.poll() is None:
            if clock.monotonic() > end:
                process.kill()
                process.wait()
            time.sleep(0.005)
        if process.returncode:
            with system.Tracefs() as tracefs:
                remove_left_overs(tracefs)


def _unpacked(pairs):
    # type: (bytearray) -> Iterator[Tuple[int, int]]
    for at in range(0, len(pairs), _RANGE.size):
        start, end = _RANGE.unpack_from(pairs, at)
        yield start, end - start
