"""A rate that several threads share, and that can be changed while they work."""

from __future__ import absolute_import, division

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

# A longer wait would notice a new rate too late.
_LONGEST_WAIT = 0.1
# How much may be saved up, in seconds of the rate: enough to make up for a thread that was scheduled late.
_SAVED = 0.05


class Bucket(object):
    """A token bucket that may be overdrawn once: whoever finds it above zero takes what it needs.

    So a chunk larger than the bucket passes, and the next one waits until the debt is paid.
    """

    def __init__(self, rate, clock):
        # type: (Optional[float], Callable[[], float]) -> None
        self._lock = threading.Lock()
        self._clock = clock
        self._rate = rate
        self._tokens = 0.0
        self._then = clock()

    @property
    def rate(self):
        # type: () -> Optional[float]
        """Bytes per second; None where there is no limit."""
        return self._rate

    @rate.setter
    def rate(self, rate):
        # type: (Optional[float]) -> None
        with self._lock:
            self._refill()
            if rate is None:
                self._tokens = 0.0
            elif self._rate is not None and self._tokens < 0:
                # A debt is time, not bytes: at the new rate it would hold everything up, or nothing.
                self._tokens = self._tokens / self._rate * rate
            else:
                self._tokens = min(self._tokens, 0.0)
            self._rate = rate

    def take(self, count):
        # type: (int) -> float
        """Take *count* bytes and return 0, or take none and return for how long to wait before asking again."""
        with self._lock:
            rate = self._rate
            if rate is None:
                return 0.0
            self._refill()
            if self._tokens >= 0:
                self._tokens -= count
                return 0.0
            return min(_LONGEST_WAIT, -self._tokens / rate + 0.0001)

    def _refill(self):
        # type: () -> None
        now = self._clock()
        if self._rate is not None:
            passed = max(0.0, now - self._then)
            self._tokens = min(self._tokens + passed * self._rate, self._rate * _SAVED)
        self._then = now
