"""When to stop sending again: the downtime a cutover would cost now, and whether another pass makes it shorter.

The model and where its numbers come from: ``docs/explanation/convergence.md``.
"""

from __future__ import annotations

import enum
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import attrs

from cvm_migrate.errors import InvalidRequestError, StepOrderError
from cvm_migrate.units import MiB, format_rate, format_seconds, format_size

# A pass shrinks if it leaves less than this part of what the one before left.
_SHRINKS: Final = 0.9
# After so many passes in a row that did not shrink, more of them will not help.
_STALLED: Final = 2
# The rate that counts is the lowest of so many passes.
_RATES: Final = 3
# A pass that was both shorter and smaller than this measured the round trips, not the path.
_SHORT_SECONDS: Final = 0.5
_SHORT_BYTES: Final = 16 * MiB


class Verdict(enum.Enum):
    """What to do after a pass.

    Attributes:
        FITS: The forecast is within the budget: cut over.
        CONTINUE: Another pass is worth while.
        NOT_CONVERGING: Passes no longer shrink, and it does not fit: the caller must choose.
        LIMIT: As many passes or bytes as were allowed.
    """

    FITS = "fits"
    CONTINUE = "continue"
    NOT_CONVERGING = "not converging"
    LIMIT = "limit"


def _not_negative(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not (value >= 0 and math.isfinite(value)):
        raise InvalidRequestError(
            f"{attribute.name} is {value!r}, but must be a number that is not negative"
        )


@attrs.frozen(kw_only=True)
class PassFacts:
    """What one pass measured. Sizes in bytes, times in seconds.

    Attributes:
        dirty_bytes: What the final sync would have to send, were it to begin now: all that was written since this
            pass collected, and what :class:`HotBlocks` has deferred. ``None`` where no tracker knows it: then it is
            taken to be as much as this pass found (``sent_bytes``), unless the pass was full.
        sent_bytes: What this pass sent and proved.
        seconds: How long it took, from its collection on.
        applied_rate: Bytes of the disk a second, end to end: read, sent, on the target's disk and proven.
            ``None``, or 0 bytes sent: nothing was measured.
        full: It was a full sync, which does not count against the limits.
        dirty_rate: Bytes a second that the source writes; ``None``: ``dirty_bytes / seconds``.
        to_compare: Bytes whose digests the final sync must compare while the source is frozen: 0 with a tracker
            that is certain, all bytes without one.
        digest_rate: Bytes a second at which digests are compared, both ends together; ``None``: not measured.
        stops_source: Whether the source stands still in the final sync. Where it does not, as with image files, no
            downtime is too long.
    """

    dirty_bytes: int | None = attrs.field(validator=_not_negative)
    sent_bytes: int = attrs.field(validator=_not_negative)
    seconds: float = attrs.field(validator=_not_negative)
    applied_rate: float | None = attrs.field(default=None, validator=_not_negative)
    full: bool = False
    dirty_rate: float | None = attrs.field(default=None, validator=_not_negative)
    to_compare: int = attrs.field(default=0, validator=_not_negative)
    digest_rate: float | None = attrs.field(default=None, validator=_not_negative)
    stops_source: bool = True


@attrs.frozen(kw_only=True)
class Forecast:
    """What a cutover would cost now. Sizes in bytes, times in seconds, rates in bytes a second.

    Attributes:
        downtime: ``freeze + transfer + comparison + fixed``; ``None`` where it cannot be known yet.
        dirty_bytes: What the final sync would send; ``None``: not known.
        dirty_rate: What the source writes a second; ``None``: not known.
        applied_rate: What the path carries, by the slowest of the last three passes; ``None``: not known.
        freeze: What a freeze takes, by the probe.
        transfer: Sending what is dirty; ``None``: not known.
        comparison: Comparing digests while frozen; ``None``: not known.
        fixed: What a cutover costs whatever is dirty: the last flush, reading back, round trips.
    """

    downtime: float | None
    dirty_bytes: int | None
    dirty_rate: float | None
    applied_rate: float | None
    freeze: float
    transfer: float | None
    comparison: float | None
    fixed: float


@attrs.frozen(kw_only=True)
class Judgement:
    """What :class:`Convergence` says after a pass.

    Attributes:
        verdict: What to do.
        forecast: The numbers behind it.
        reason: The verdict with its numbers, as a sentence.
        remedy: What the caller can do about it, as a sentence; empty for ``FITS`` and ``CONTINUE``.
    """

    verdict: Verdict
    forecast: Forecast
    reason: str
    remedy: str = ""


class Convergence:
    """Fed with every pass, predicts the downtime of a cutover and says when more passes do not help.

    Args:
        budget: Longest acceptable downtime, in seconds.
        max_passes: Delta passes after which it says ``LIMIT``; ``None``: no bound.
        max_bytes: Bytes sent by delta passes after which it says ``LIMIT``; ``None``: no bound.
        freeze: Seconds a freeze takes; see :meth:`probe`.
        fixed: Seconds a cutover costs whatever is dirty; see :meth:`probe`.

    Raises:
        InvalidRequestError: A number is negative, or the budget not positive.
    """

    def __init__(
        self,
        *,
        budget: float,
        max_passes: int | None = None,
        max_bytes: int | None = None,
        freeze: float = 0.0,
        fixed: float = 0.0,
    ) -> None:
        if not (budget > 0 and math.isfinite(budget)):
            raise InvalidRequestError(
                f"a downtime of {budget!r} s cannot be kept",
                remedy="Give a budget above 0 seconds",
            )
        self._budget = budget
        self._max_passes = max_passes
        self._max_bytes = max_bytes
        self._freeze = self._fixed = 0.0
        self.probe(freeze=freeze, fixed=fixed)
        self._passes = 0
        self._sent = 0
        self._stalled = 0
        self._left: int | None = None
        self._rates: deque[float] = deque(maxlen=_RATES)
        self._short_rates: deque[float] = deque(maxlen=_RATES)
        self._short_seconds: deque[float] = deque(maxlen=_RATES)
        self._last: PassFacts | None = None

    @property
    def budget(self) -> float:
        """Longest acceptable downtime, in seconds."""
        return self._budget

    @property
    def passes(self) -> int:
        """Delta passes so far."""
        return self._passes

    def probe(self, *, freeze: float | None = None, fixed: float | None = None) -> None:
        """Say what was measured of the parts of a cutover that do not depend on the passes.

        Args:
            freeze: Seconds that a freeze took (a probe: freeze and thaw at once); ``None``: as before.
            fixed: Seconds for the last flush, reading back and round trips; ``None``: as before.

        Raises:
            InvalidRequestError: A number is negative.
        """
        for name, value in (("freeze", freeze), ("fixed", fixed)):
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise InvalidRequestError(f"{name} is {value!r} s, but cannot be negative")
        self._freeze = self._freeze if freeze is None else freeze
        self._fixed = self._fixed if fixed is None else fixed

    def update(self, facts: PassFacts) -> Judgement:
        """Take what a pass measured and judge.

        Args:
            facts: Of the pass that has just ended.
        """
        self._measure(facts)
        if not facts.full:
            self._passes += 1
            self._sent += facts.sent_bytes
        left = _left(facts)
        if left is not None and self._left is not None and left >= _SHRINKS * self._left:
            self._stalled += 1
        else:
            self._stalled = 0
        self._left = left
        self._last = facts
        return self.judge()

    def forecast(
        self, *, dirty_bytes: int | None = None, to_compare: int | None = None
    ) -> Forecast:
        """Predict what a cutover would cost now.

        Args:
            dirty_bytes: What is dirty now, where it is known better than after the last pass.
            to_compare: The same for what is compared while frozen.
        """
        last = self._last
        dirty = dirty_bytes if dirty_bytes is not None else None if last is None else _left(last)
        rate = self._applied_rate()
        transfer = self._transfer(dirty, rate)
        comparison = _comparison(last, to_compare)
        downtime = (
            None
            if transfer is None or comparison is None
            else self._freeze + transfer + comparison + self._fixed
        )
        return Forecast(
            downtime=downtime,
            dirty_bytes=dirty,
            dirty_rate=None if last is None else _dirty_rate(last),
            applied_rate=rate,
            freeze=self._freeze,
            transfer=transfer,
            comparison=comparison,
            fixed=self._fixed,
        )

    def judge(self, *, dirty_bytes: int | None = None) -> Judgement:
        """Judge again without a new pass, as in hold mode or after :meth:`probe`.

        Args:
            dirty_bytes: What is dirty now, where it is known better than after the last pass.
        """
        forecast = self.forecast(dirty_bytes=dirty_bytes)
        if self._last is not None and not self._last.stops_source:
            return Judgement(
                verdict=Verdict.FITS, forecast=forecast, reason=_numbers(forecast, None)
            )
        numbers = _numbers(forecast, self._budget)
        if forecast.downtime is not None and forecast.downtime <= self._budget:
            return Judgement(verdict=Verdict.FITS, forecast=forecast, reason=numbers)
        if self._max_passes is not None and self._passes >= self._max_passes:
            return Judgement(
                verdict=Verdict.LIMIT,
                forecast=forecast,
                reason=f"{self._passes} delta passes were made, as many as were allowed; {numbers}",
                remedy=self._remedy(forecast),
            )
        if self._max_bytes is not None and self._sent >= self._max_bytes:
            return Judgement(
                verdict=Verdict.LIMIT,
                forecast=forecast,
                reason=(
                    f"delta passes have sent {format_size(self._sent)}, and"
                    f" {format_size(self._max_bytes)} were allowed; {numbers}"
                ),
                remedy=self._remedy(forecast),
            )
        if self._stalled >= _STALLED:
            return Judgement(
                verdict=Verdict.NOT_CONVERGING,
                forecast=forecast,
                reason=f"the passes no longer get smaller; {numbers}",
                remedy=self._remedy(forecast),
            )
        return Judgement(verdict=Verdict.CONTINUE, forecast=forecast, reason=numbers)

    def _measure(self, facts: PassFacts) -> None:
        if facts.sent_bytes == 0 or not facts.applied_rate:
            return
        if facts.seconds >= _SHORT_SECONDS or facts.sent_bytes >= _SHORT_BYTES:
            self._rates.append(facts.applied_rate)
            # What short passes took before says nothing about the path as it is now.
            self._short_rates.clear()
            self._short_seconds.clear()
        else:
            self._short_rates.append(facts.applied_rate)
            self._short_seconds.append(facts.seconds)

    def _applied_rate(self) -> float | None:
        return min(self._rates or self._short_rates, default=None)

    def _transfer(self, dirty: int | None, rate: float | None) -> float | None:
        if dirty is None:
            return None
        if dirty == 0:
            return 0.0
        if rate is None:
            return None
        return max(dirty / rate, *self._short_seconds, 0.0)

    def _remedy(self, forecast: Forecast) -> str:
        still = forecast.freeze + forecast.fixed
        if still > self._budget:
            return (
                f"Freezing and the fixed work alone take {format_seconds(still)}: allow a longer downtime,"
                " or stop the services that write before the freeze"
            )
        if forecast.comparison is None or forecast.comparison > self._budget - still:
            return (
                "No tracker is certain of the changes, so digests of everything are compared while frozen: allow"
                " a longer downtime, make a tracker possible (check() says what each one lacks), or stop the"
                " services that write and cut over with nothing to freeze"
            )
        longer = (
            "Allow a longer downtime"
            if forecast.downtime is None
            else f"Allow a downtime of {format_seconds(forecast.downtime * 1.2)}"
        )
        return (
            f"{longer}, give the path more bandwidth or streams, track finer blocks, limit or stop the services"
            " that write most, or hold() until they write less"
        )


def _left(facts: PassFacts) -> int | None:
    """Return what the final sync would send, estimated where no tracker knows."""
    if facts.dirty_bytes is not None:
        return facts.dirty_bytes
    return None if facts.full else facts.sent_bytes


def _dirty_rate(facts: PassFacts) -> float | None:
    if facts.dirty_rate is not None:
        return facts.dirty_rate
    left = _left(facts)
    return None if left is None or facts.seconds == 0 else left / facts.seconds


def _comparison(facts: PassFacts | None, to_compare: int | None) -> float | None:
    count = to_compare if to_compare is not None else 0 if facts is None else facts.to_compare
    if count == 0:
        return 0.0
    return count / facts.digest_rate if facts is not None and facts.digest_rate else None


def _numbers(forecast: Forecast, budget: float | None) -> str:
    limit = (
        "the source does not stand still meanwhile"
        if budget is None
        else f"{format_seconds(budget)} are allowed"
    )
    if forecast.downtime is None:
        return f"the downtime cannot be predicted yet, {limit}"
    parts = [f"freeze {format_seconds(forecast.freeze)}"]
    if forecast.dirty_bytes is not None and forecast.applied_rate is not None:
        parts.append(
            f"{format_size(forecast.dirty_bytes)} at {format_rate(forecast.applied_rate)}"
        )
    if forecast.comparison:
        parts.append(f"comparison {format_seconds(forecast.comparison)}")
    parts.append(f"fixed {format_seconds(forecast.fixed)}")
    written = (
        ""
        if forecast.dirty_rate is None
        else f"; the source writes {format_rate(forecast.dirty_rate)}"
    )
    return (
        f"predicted downtime {format_seconds(forecast.downtime)} ({', '.join(parts)}),"
        f" {limit}{written}"
    )


@attrs.frozen
class Backlog:
    """How far the target is behind.

    Attributes:
        lag: Seconds since the moment whose state the target holds.
        backlog: Bytes written on the source since.
        catch_up: Seconds until a pass would have sent them; ``None`` where no rate is known.
    """

    lag: float
    backlog: int
    catch_up: float | None


class LagMeter:
    """Measures how far the target is behind, as hold mode reports it.

    Args:
        clock: Where the time comes from.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._collected: float | None = None
        self._held: float | None = None

    def collected(self) -> None:
        """A pass has collected what was written: once it is applied, the target holds this moment."""
        self._collected = self._clock()

    def applied(self) -> None:
        """All that the pass collected is on the target's disk and proven.

        Raises:
            StepOrderError: Nothing was collected.
        """
        if self._collected is None:
            raise StepOrderError("a pass was applied before it collected anything")
        self._held = self._collected

    def read(self, backlog: int, applied_rate: float | None = None) -> Backlog:
        """Return the lag now.

        Args:
            backlog: Bytes dirty now.
            applied_rate: Bytes a second that the path carries.

        Raises:
            StepOrderError: No pass has been applied yet.
        """
        if self._held is None:
            raise StepOrderError(
                "there is no lag before the first sync", remedy="Call full_sync() first"
            )
        catch_up = backlog / applied_rate if applied_rate else None
        return Backlog(max(0.0, self._clock() - self._held), backlog, catch_up)
