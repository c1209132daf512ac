"""When a call to the cloud is sent again, and when it must be looked first.

The SDK's own retry is not used: it sends a call again that has succeeded.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

import attrs

from cvm_migrate.cloud._errors import Repeat, repeat_of
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import CvmMigrateError, DeadlineError

_log: Final = logging.getLogger("cvm_migrate.cloud")

T = TypeVar("T")


@attrs.frozen
class RetryPolicy:
    """How often and how long failed calls are repeated; all times in seconds.

    Attempt *n* is followed by a wait of ``first * 2**(n - 1)``, at most ``longest``, of which the last half is random.

    Attributes:
        attempts: Calls at most, the first included; waiting for another task of the instance does not count.
        seconds: Give up after this long.
        patience: Give up after this long where another task holds the instance or disk.
        first: The first wait.
        longest: The longest wait.
        jitter: Numbers from 0 to 1.
        sleep: How to wait.
        clock: Where the time comes from.
    """

    attempts: int = attrs.field(default=7, validator=attrs.validators.ge(1))
    seconds: float = 120.0
    patience: float = 900.0
    first: float = 1.0
    longest: float = 15.0
    jitter: Callable[[], float] = attrs.field(default=random.random, repr=False)
    sleep: Callable[[float], None] = attrs.field(default=time.sleep, repr=False)
    clock: Callable[[], float] = attrs.field(default=time.monotonic, repr=False)

    def wait_after(self, attempt: int) -> float:
        """Return the wait after the attempt of that number, counted from 1."""
        whole = min(self.longest, self.first * 2.0 ** min(attempt - 1, 30))
        return whole * (0.5 + 0.5 * self.jitter())

    def run(  # noqa: C901 - the policy in one place reads better than in pieces
        self,
        call: Callable[[], T],
        *,
        doing: str,
        idempotent: bool,
        look: Callable[[], T | None] | None = None,
        settled: Callable[[CvmMigrateError], T | None] | None = None,
        renew: Callable[[], bool] | None = None,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> T:
        """Make a call, and repeat it where that may help.

        Args:
            call: Makes the call once.
            doing: What messages call it.
            idempotent: Whether doing it twice is the same as doing it once.
            look: Finds out whether a call without an answer was carried out all the same: returns its result, or
                ``None`` if it was not.
            settled: Asked when a repeated call is refused and an earlier one had no answer: returns the
                result if the refusal proves that the earlier one was carried out.
            renew: Gets new credentials; returns whether it could.
            deadline: Ends the attempts early.
            cancel: Ends the waits.

        Raises:
            CvmMigrateError: The last error, when repeating does not help or has not helped.
            DeadlineError: *deadline* passed between two attempts.
            CancelledError: *cancel* was set.
        """
        attempts = _Attempts(self)
        while True:
            if cancel is not None:
                cancel.check()
            try:
                return call()
            except CvmMigrateError as caught:
                error = caught
            repeat = repeat_of(error)
            if repeat is Repeat.RENEW and renew is not None and attempts.may_renew() and renew():
                continue
            if attempts.uncertain and settled is not None:
                done = settled(error)
                if done is not None:
                    return done
            if repeat is Repeat.LOOK and not idempotent:
                attempts.uncertain = look is not None
                if look is None:
                    raise error
            elif repeat in {Repeat.NEVER, Repeat.RENEW}:
                raise error
            wait = attempts.next_wait(patient=repeat is Repeat.PATIENT)
            if wait is not None:
                self._pause(wait, doing, error, deadline, cancel)
            done = look() if attempts.uncertain and look is not None else None
            if done is not None:
                return done
            if wait is None:
                raise error

    def _pause(
        self,
        wait: float,
        doing: str,
        error: CvmMigrateError,
        deadline: Deadline | None,
        cancel: CancelToken | None,
    ) -> None:
        if deadline is not None:
            try:
                left = deadline.remaining(doing)
            except DeadlineError as passed:
                raise passed from error
            if left is not None:
                wait = min(wait, left)
        _log.debug("%s: %s; again in %.1f s", doing, error.code, wait)
        self.sleep(wait)
        if cancel is not None:
            cancel.check()


class _Attempts:
    """Counts what a run has used up."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._began = policy.clock()
        self._counted = 0
        self._waits = 0
        self._renewed = False
        self.uncertain = False

    def may_renew(self) -> bool:
        """Return true the first time."""
        first, self._renewed = not self._renewed, True
        return first

    def next_wait(self, *, patient: bool) -> float | None:
        """Return how long to wait before the next attempt; ``None`` if there is to be none."""
        self._waits += 1
        wait = self._policy.wait_after(self._waits)
        spent = self._policy.clock() - self._began
        if patient:
            return None if spent + wait > self._policy.patience else wait
        self._counted += 1
        if self._counted >= self._policy.attempts or spent + wait > self._policy.seconds:
            return None
        return wait
