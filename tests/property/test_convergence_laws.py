"""Laws of the convergence estimator."""

from __future__ import annotations

import attrs
from hypothesis import assume, given
from hypothesis import strategies as st

from cvm_migrate.delta import Convergence, Judgement, PassFacts, Verdict
from cvm_migrate.units import MiB

amounts = st.integers(0, 1 << 40)
seconds = st.floats(0, 1e5)
rates = st.none() | st.floats(0, 1e10)

facts = st.builds(
    PassFacts,
    dirty_bytes=st.none() | amounts,
    sent_bytes=amounts,
    seconds=seconds,
    applied_rate=rates,
    full=st.booleans(),
    dirty_rate=rates,
    to_compare=st.just(0) | amounts,
    digest_rate=rates,
)
histories = st.lists(facts, min_size=1, max_size=8)
budgets = st.floats(0.05, 1e5)
short = st.floats(0, 100)


def last_of(convergence: Convergence, history: list[PassFacts]) -> Judgement:
    judgement = convergence.judge()
    for entry in history:
        judgement = convergence.update(entry)
    return judgement


@given(histories, budgets, short, short)
def test_it_never_says_fits_when_the_forecast_does_not(
    history: list[PassFacts], budget: float, freeze: float, fixed: float
) -> None:
    convergence = Convergence(budget=budget, freeze=freeze, fixed=fixed, max_passes=5)

    for entry in history:
        judgement = convergence.update(entry)
        downtime = judgement.forecast.downtime
        assert (judgement.verdict is Verdict.FITS) is (downtime is not None and downtime <= budget)
        if downtime is not None:
            assert downtime >= freeze + fixed


@given(histories, budgets, amounts, amounts)
def test_more_dirty_bytes_never_shorten_the_downtime(
    history: list[PassFacts], budget: float, one: int, other: int
) -> None:
    convergence = Convergence(budget=budget)
    last_of(convergence, history)

    less = convergence.forecast(dirty_bytes=min(one, other)).downtime
    more = convergence.forecast(dirty_bytes=max(one, other)).downtime

    assert more is None or (less is not None and less <= more)


@given(histories, st.floats(0.01, 1), budgets)
def test_a_slower_path_never_shortens_the_downtime(
    history: list[PassFacts], factor: float, budget: float
) -> None:
    slower = [
        attrs.evolve(
            entry,
            applied_rate=None if entry.applied_rate is None else entry.applied_rate * factor,
        )
        for entry in history
    ]
    # A rate that vanishes is one that was not measured.
    assume(
        all(
            bool(a.applied_rate) is bool(b.applied_rate)
            for a, b in zip(history, slower, strict=True)
        )
    )

    usual = last_of(Convergence(budget=budget), history).forecast.downtime
    slow = last_of(Convergence(budget=budget), slower).forecast.downtime

    assert (usual is None) is (slow is None)
    assert usual is None or slow is None or usual <= slow


@given(histories, budgets, short, short, short)
def test_the_freeze_and_fixed_costs_are_added(
    history: list[PassFacts], budget: float, freeze: float, more: float, fixed: float
) -> None:
    convergence = Convergence(budget=budget, freeze=freeze, fixed=fixed)
    before = last_of(convergence, history).forecast.downtime

    convergence.probe(freeze=freeze + more)

    after = convergence.forecast().downtime
    assert (before is None) is (after is None)
    assert before is None or after is None or before <= after
    assert convergence.forecast().fixed == fixed


@given(histories, budgets, budgets)
def test_a_larger_budget_never_unmakes_a_fit(
    history: list[PassFacts], one: float, other: float
) -> None:
    tight = last_of(Convergence(budget=min(one, other)), history)
    wide = last_of(Convergence(budget=max(one, other)), history)

    assert tight.forecast == wide.forecast
    if tight.verdict is Verdict.FITS:
        assert wide.verdict is Verdict.FITS


@given(histories, st.integers(1, 6), st.integers(1, 1 << 41))
def test_passes_and_bytes_are_bounded(
    history: list[PassFacts], max_passes: int, max_bytes: int
) -> None:
    """Once a bound is reached, it says so, whatever else is so, unless it fits. Full syncs do not count."""
    convergence = Convergence(budget=0.05, max_passes=max_passes, max_bytes=max_bytes)
    passes = sent = 0

    for entry in history:
        judgement = convergence.update(entry)
        if not entry.full:
            passes, sent = passes + 1, sent + entry.sent_bytes
        reached = passes >= max_passes or sent >= max_bytes
        if judgement.verdict is not Verdict.FITS:
            assert (judgement.verdict is Verdict.LIMIT) is reached


@given(
    st.integers(1 << 30, 1 << 34),
    st.floats(1.0, 1.5),
    st.floats(16 * MiB, 1 << 30),
    st.integers(2, 6),
)
def test_passes_that_do_not_shrink_are_called_so_after_two(
    left: int, growth: float, rate: float, passes: int
) -> None:
    convergence = Convergence(budget=0.5)
    verdicts: list[Verdict] = []
    for _ in range(passes + 1):
        verdicts.append(
            convergence.update(
                PassFacts(
                    dirty_bytes=left, sent_bytes=left, seconds=left / rate, applied_rate=rate
                )
            ).verdict
        )
        left = int(left * growth)

    assert verdicts[:2] == [Verdict.CONTINUE, Verdict.CONTINUE]
    assert set(verdicts[2:]) == {Verdict.NOT_CONVERGING}


@given(st.integers(1 << 30, 1 << 40), st.floats(0, 0.85), st.floats(1 << 20, 1 << 30))
def test_a_source_that_writes_slower_than_the_path_carries_always_fits_in_the_end(
    left: int, ratio: float, rate: float
) -> None:
    """Each pass leaves what was written meanwhile: the sum of passes is a geometric one."""
    convergence = Convergence(budget=1.0, freeze=0.1, fixed=0.1)

    for _ in range(200):
        took = left / rate
        remaining = int(left * ratio)
        judgement = convergence.update(
            PassFacts(dirty_bytes=remaining, sent_bytes=left, seconds=took, applied_rate=rate)
        )
        assert judgement.verdict in {Verdict.FITS, Verdict.CONTINUE}
        if judgement.verdict is Verdict.FITS:
            return
        left = remaining
    raise AssertionError("it never came to an end")


@given(histories, budgets)
def test_everything_but_a_fit_and_going_on_comes_with_a_remedy(
    history: list[PassFacts], budget: float
) -> None:
    judgement = last_of(Convergence(budget=budget, max_passes=4), history)

    decided = judgement.verdict in {Verdict.NOT_CONVERGING, Verdict.LIMIT}
    assert bool(judgement.remedy) is decided
    assert judgement.reason
