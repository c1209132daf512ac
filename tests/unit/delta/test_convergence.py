"""The convergence estimator by examples: its numbers, its words, its remedies."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cvm_migrate.delta import Convergence, LagMeter, PassFacts, Verdict
from cvm_migrate.errors import InvalidRequestError, StepOrderError
from cvm_migrate.units import GiB, MiB


def facts(left: int, sent: int, seconds: float, **others: Any) -> PassFacts:
    others.setdefault("applied_rate", sent / seconds)
    return PassFacts(dirty_bytes=left, sent_bytes=sent, seconds=seconds, **others)


def test_the_downtime_is_the_sum_of_its_parts() -> None:
    convergence = Convergence(budget=5, freeze=0.1, fixed=0.3)

    judgement = convergence.update(facts(200 * MiB, 10 * GiB, 102.4, full=True))

    forecast = judgement.forecast
    assert forecast.applied_rate == 100 * MiB
    assert forecast.transfer == 2.0
    assert forecast.downtime == pytest.approx(2.4)
    assert forecast.dirty_rate == pytest.approx(200 * MiB / 102.4)
    assert judgement.verdict is Verdict.FITS
    assert judgement.reason == (
        "predicted downtime 2.40 s (freeze 0.10 s, 200 MiB at 100 MiB/s, fixed 0.30 s), 5.00 s are allowed;"
        " the source writes 1.95 MiB/s"
    )


def test_the_slowest_of_the_last_three_passes_counts() -> None:
    convergence = Convergence(budget=1)
    rates: list[float | None] = []
    for rate in (50, 100, 200, 300, 400):
        update = facts(GiB, GiB, 10.0, applied_rate=rate * MiB)
        rates.append(convergence.update(update).forecast.applied_rate)

    assert rates == [50 * MiB, 50 * MiB, 50 * MiB, 100 * MiB, 200 * MiB]


def test_a_tiny_pass_measures_round_trips_and_not_the_path() -> None:
    """64 KiB in a fifth of a second is no rate of 320 KiB/s; but no pass is quicker than that fifth."""
    convergence = Convergence(budget=1)
    convergence.update(facts(64 * 1024, GiB, 10.24))

    small = convergence.update(facts(64 * 1024, 64 * 1024, 0.2)).forecast

    assert small.applied_rate == 100 * MiB
    assert small.transfer == 0.2
    assert convergence.forecast(dirty_bytes=500 * MiB).transfer == 5.0


def test_a_path_that_became_slow_is_believed_at_once() -> None:
    convergence = Convergence(budget=1)
    convergence.update(facts(10 * MiB, GiB, 10.24))

    assert convergence.update(facts(10 * MiB, 10 * MiB, 10.0)).forecast.applied_rate == MiB


def test_where_only_tiny_passes_were_made_their_rate_counts() -> None:
    convergence = Convergence(budget=1)

    assert convergence.update(facts(MiB, MiB, 0.1)).forecast.applied_rate == 10 * MiB


def test_nothing_dirty_costs_the_freeze_and_the_fixed_work() -> None:
    convergence = Convergence(budget=1, freeze=0.1, fixed=0.2)

    judgement = convergence.update(
        PassFacts(dirty_bytes=0, sent_bytes=0, seconds=3.0, applied_rate=None, full=True)
    )

    assert judgement.forecast.downtime == pytest.approx(0.3)
    assert judgement.verdict is Verdict.FITS


def test_what_is_not_known_yet_is_none_and_never_fits() -> None:
    convergence = Convergence(budget=3600)

    assert convergence.judge().verdict is Verdict.CONTINUE
    assert convergence.forecast().downtime is None
    full = PassFacts(dirty_bytes=None, sent_bytes=GiB, seconds=10, applied_rate=1e8, full=True)
    judgement = convergence.update(full)
    assert judgement.forecast.downtime is None
    assert judgement.verdict is Verdict.CONTINUE
    assert "cannot be predicted yet" in judgement.reason


def test_without_a_tracker_the_whole_comparison_is_counted() -> None:
    """The final sync must compare everything while frozen: 100 GiB at 1 GiB/s is 100 seconds."""
    convergence = Convergence(budget=30)
    convergence.update(
        PassFacts(dirty_bytes=None, sent_bytes=50 * GiB, seconds=500, applied_rate=1e8, full=True)
    )

    judgement = convergence.update(
        PassFacts(
            dirty_bytes=None,
            sent_bytes=MiB * 100,
            seconds=101,
            applied_rate=100.0 * MiB,
            to_compare=100 * GiB,
            digest_rate=1.0 * GiB,
        )
    )

    # What this pass found is what the next one is expected to find.
    assert judgement.forecast.dirty_bytes == 100 * MiB
    assert judgement.forecast.comparison == 100.0
    assert judgement.verdict is Verdict.CONTINUE
    assert "comparison 1 min 40 s" in judgement.reason


def test_a_comparison_whose_rate_nobody_knows_cannot_be_predicted() -> None:
    convergence = Convergence(budget=1e6)

    judgement = convergence.update(facts(0, GiB, 10, to_compare=1))

    assert judgement.forecast.downtime is None


def test_what_must_be_compared_now_is_counted_though_the_last_pass_did_not_know_of_it() -> None:
    """A tracker that has become uncertain since costs the comparison of its disk."""
    convergence = Convergence(budget=5)
    convergence.update(facts(0, GiB, 10.0, digest_rate=1.0 * GiB))

    assert convergence.forecast().comparison == 0
    assert convergence.forecast(to_compare=8 * GiB).comparison == 8.0
    assert convergence.forecast(to_compare=8 * GiB).downtime == 8.0


def test_where_the_source_does_not_stand_still_any_comparison_fits() -> None:
    """Image files: the final pass compares all of them, which is predicted, and nobody waits for it."""
    convergence = Convergence(budget=0.1)

    judgement = convergence.update(
        facts(
            0,
            GiB,
            10.0,
            full=True,
            to_compare=100 * GiB,
            digest_rate=1.0 * GiB,
            stops_source=False,
        )
    )

    assert judgement.forecast.downtime == 100.0
    assert judgement.verdict is Verdict.FITS
    assert "does not stand still" in judgement.reason
    assert "allowed" not in judgement.reason


def test_a_source_faster_than_the_path_is_told_with_the_numbers_and_the_choices() -> None:
    convergence = Convergence(budget=5, freeze=0.05, fixed=0.2)
    convergence.update(facts(2 * GiB, 20 * GiB, 400.0, full=True, applied_rate=50.0 * MiB))
    convergence.update(facts(2 * GiB, 2 * GiB, 41.0, applied_rate=50.0 * MiB))

    judgement = convergence.update(facts(2 * GiB, 2 * GiB, 41.0, applied_rate=50.0 * MiB))

    assert judgement.verdict is Verdict.NOT_CONVERGING
    assert judgement.reason == (
        "the passes no longer get smaller; predicted downtime 41.2 s (freeze 0.05 s, 2.00 GiB at 50.0 MiB/s,"
        " fixed 0.20 s), 5.00 s are allowed; the source writes 50.0 MiB/s"
    )
    assert judgement.remedy.startswith("Allow a downtime of 49.5 s, give the path more bandwidth")


def test_one_pass_that_grew_is_no_verdict() -> None:
    """A backup job in one pass: the next shrinks again."""
    convergence = Convergence(budget=0.1)
    verdicts = [
        convergence.update(facts(left * MiB, GiB, 10.24)).verdict
        for left in (1000, 1200, 500, 480, 200)
    ]

    assert set(verdicts) == {Verdict.CONTINUE}


def test_a_fit_is_a_fit_also_where_passes_do_not_shrink() -> None:
    convergence = Convergence(budget=5)
    verdicts = [convergence.update(facts(100 * MiB, GiB, 10.24)).verdict for _ in range(6)]

    assert set(verdicts) == {Verdict.FITS}


def test_a_budget_that_the_freeze_alone_exceeds_is_told_as_such() -> None:
    convergence = Convergence(budget=0.5, freeze=0.4, fixed=0.4)
    convergence.update(facts(MiB, GiB, 10))
    convergence.update(facts(MiB, GiB, 10))

    judgement = convergence.update(facts(MiB, GiB, 10))

    assert judgement.verdict is Verdict.NOT_CONVERGING
    assert "Freezing and the fixed work alone take 0.80 s" in judgement.remedy


def test_a_missing_tracker_is_told_as_the_cause() -> None:
    convergence = Convergence(budget=5)
    again = facts(MiB, GiB, 10, to_compare=100 * GiB, digest_rate=1.0 * GiB)
    convergence.update(again)
    convergence.update(again)

    judgement = convergence.update(again)

    assert judgement.verdict is Verdict.NOT_CONVERGING
    assert "No tracker is certain" in judgement.remedy


def test_limits_say_which_one_was_reached() -> None:
    by_passes = Convergence(budget=0.1, max_passes=2)
    by_bytes = Convergence(budget=0.1, max_bytes=3 * GiB)
    for convergence in (by_passes, by_bytes):
        convergence.update(facts(4 * GiB, 100 * GiB, 1000, full=True))
    assert by_bytes.update(facts(2 * GiB, 2 * GiB, 20)).verdict is Verdict.CONTINUE
    by_passes.update(facts(2 * GiB, 2 * GiB, 20))

    assert "2 delta passes were made" in by_passes.update(facts(GiB, 2 * GiB, 20)).reason
    assert "have sent 4.00 GiB, and 3.00 GiB were allowed" in (
        by_bytes.update(facts(GiB, 2 * GiB, 20)).reason
    )
    assert by_passes.passes == 2


def test_a_new_probe_and_new_dirty_bytes_change_the_judgement() -> None:
    convergence = Convergence(budget=2)
    convergence.update(facts(100 * MiB, GiB, 10.24))
    assert convergence.judge().verdict is Verdict.FITS

    assert convergence.judge(dirty_bytes=GiB).verdict is Verdict.CONTINUE
    convergence.probe(freeze=1.5)
    assert convergence.judge().verdict is Verdict.CONTINUE
    assert convergence.forecast().freeze == 1.5


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf])
def test_a_budget_must_be_a_time(budget: float) -> None:
    with pytest.raises(InvalidRequestError):
        Convergence(budget=budget)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_measurements_must_be_numbers(value: float) -> None:
    with pytest.raises(InvalidRequestError):
        Convergence(budget=1, freeze=value)
    with pytest.raises(InvalidRequestError):
        Convergence(budget=1).probe(fixed=value)
    with pytest.raises(InvalidRequestError):
        PassFacts(dirty_bytes=0, sent_bytes=0, seconds=value)


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_lag_counts_from_the_moment_that_the_target_holds() -> None:
    """That is when the pass collected, not when it ended."""
    clock = Clock()
    meter = LagMeter(clock=clock)
    clock.now = 100
    meter.collected()
    clock.now = 107
    meter.applied()
    clock.now = 110

    held = meter.read(50 * MiB, 10.0 * MiB)

    assert (held.lag, held.backlog, held.catch_up) == (10, 50 * MiB, 5.0)
    assert meter.read(0).catch_up is None


def test_a_pass_under_way_does_not_shorten_the_lag() -> None:
    clock = Clock()
    meter = LagMeter(clock=clock)
    meter.collected()
    meter.applied()
    clock.now = 20
    meter.collected()
    clock.now = 25

    assert meter.read(0).lag == 25


def test_there_is_no_lag_before_the_first_pass() -> None:
    meter = LagMeter()
    with pytest.raises(StepOrderError):
        meter.read(0)
    with pytest.raises(StepOrderError):
        meter.applied()
