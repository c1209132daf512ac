"""One budget of time across many steps, and a way to call work off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cvm_migrate.errors import CancelledError, DeadlineError


class Deadline:
    """A moment after which a piece of work is given up.

    Args:
        seconds: The budget; ``None`` never passes.
        clock: Where the time comes from; tests bring their own.
    """

    def __init__(
        self, seconds: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = None if seconds is None else clock() + seconds

    def remaining(self, doing: str = "the operation") -> float | None:
        """Return the seconds left, ``None`` where there is no limit.

        Args:
            doing: What the error says was being done.

        Raises:
            DeadlineError: The moment has passed.
        """
        if self._end is None:
            return None
        left = self._end - self._clock()
        if left <= 0:
            raise DeadlineError(
                f"{doing} did not end within {self._seconds:g} s",
                remedy="Repeat the step, with more time if it needs it",
                seconds=self._seconds,
            )
        return left

    @property
    def passed(self) -> bool:
        """Whether the moment has passed."""
        return self._end is not None and self._clock() >= self._end


class CancelToken:
    """Set by the caller, from any thread, to end work at its next chunk."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask for the work to end; can be called more than once."""
        self._event.set()

    def renew(self) -> None:
        """Take the call to end back, once work has ended by it."""
        self._event.clear()

    @property
    def cancelled(self) -> bool:
        """Whether the end has been asked for."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise if the end has been asked for.

        Raises:
            CancelledError: :meth:`cancel` was called.
        """
        if self._event.is_set():
            raise CancelledError(
                "the caller called the work off",
                remedy="What has been reached stays: a new Migration with the same state directory goes on",
            )

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until the call to end; return :attr:`cancelled`."""
        return self._event.wait(seconds)
