"""One call of `measure`: noise over all lanes for some time, and how fast it was confirmed."""

from __future__ import absolute_import, division

import os
import sys
import threading

from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.pump import compression, frames

assert sys.platform != "win32", "pumps run on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    from cvm_migrate.agent.pump.channel import Waker
    from cvm_migrate.agent.verbs import AgentError

_SMALLEST = 16 << 10
LARGEST = 1 << 20
# A frame's share of what was confirmed: what is read ahead on a slow path must not take long to go.
_SHARE = 32


class _Noise(object):
    """What stands for a disk. TLS makes noise of anything; this is for whoever looks into it."""

    def __init__(self):
        # type: () -> None
        self._bytes = os.urandom(LARGEST)

    def pread_into(self, buffer, offset, length, at):
        # type: (Any, int, int, int) -> None
        """Fill a part of a buffer."""
        del offset
        buffer.put(self._bytes[:length], at)


class Probe(object):
    """What the lanes work on in the place of a :class:`~cvm_migrate.agent.pump.job.Job`.

    Args:
        seconds: How long frames are sent.
        waker: Wakes the thread that called `measure`.
    """

    kind = frames.PROBE
    disk = 0
    chunk = LARGEST

    def __init__(self, seconds, waker):
        # type: (float, Waker) -> None
        self.handle = _Noise()  # type: Any
        self.chooser = compression.Chooser("raw", "raw", 1)
        self.begin = monotonic()
        self.error = None  # type: Optional[AgentError]
        self._end = self.begin + seconds
        self._half = self.begin + seconds / 2
        self._waker = waker
        self._lock = threading.Lock()
        self._outstanding = 0
        self._bytes = 0
        self._last = self.begin
        # The first confirmation in the second half, and the last one while frames were sent.
        self._first_point = None  # type: Optional[Tuple[float, int]]
        self._last_point = None  # type: Optional[Tuple[float, int]]

    def take(self):
        # type: () -> Optional[Tuple[int, int]]
        """Take a frame to send; None when time is over, or it has failed."""
        with self._lock:
            if self.error is not None or monotonic() >= self._end:
                return None
            self._outstanding += 1
            return 0, max(_SMALLEST, min(LARGEST, self._bytes // _SHARE // 4096 * 4096))

    @property
    def settled(self):
        # type: () -> bool
        """Whether nothing is under way, and nothing more will be."""
        with self._lock:
            return self._outstanding == 0 and (self.error is not None or monotonic() >= self._end)

    def read(self, count):
        # type: (int) -> None
        """Do nothing: it comes from memory."""

    def sent(self, count):
        # type: (int) -> None
        """Do nothing: what counts is what has come."""

    def confirmed(self, length, zero):
        # type: (int, bool) -> None
        """Note that a frame has come to the receiver."""
        del zero
        with self._lock:
            now = monotonic()
            self._bytes += length
            self._last = now
            if now >= self._half:
                if self._first_point is None:
                    self._first_point = now, self._bytes
                elif now <= self._end:
                    self._last_point = now, self._bytes
        self.dropped()

    def dropped(self):
        # type: () -> None
        """Note that a frame that was taken is not under way any more."""
        with self._lock:
            self._outstanding -= 1
            over = self._outstanding == 0
        if over:
            self._waker.wake()

    def flush_done(self, seconds):
        # type: (float) -> None
        """Do nothing: there is nothing to flush, and nobody asks for it."""

    def fail(self, error):
        # type: (AgentError) -> None
        """Give up; the first error stays."""
        with self._lock:
            if self.error is None:
                self.error = error
        self._waker.wake()

    def cut(self):
        # type: () -> None
        """Do nothing: what was under way is sent again, and the time goes on."""

    def figures(self):
        # type: () -> Dict[str, Any]
        """Return what there is so far."""
        with self._lock:
            seconds = max(self._last - self.begin, 1e-6)
            rate = self._bytes / seconds
            if self._first_point is not None and self._last_point is not None:
                passed = self._last_point[0] - self._first_point[0]
                # Confirmations of a slow path come too seldom for their distance to say much.
                if passed > (self._end - self._half) / 2:
                    rate = (self._last_point[1] - self._first_point[1]) / passed
            return {"bytes": self._bytes, "seconds": seconds, "rate": rate}
