"""Faults: which call they strike."""

from __future__ import annotations

import pytest

from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.testing._faults import Faults


def _effects(faults: Faults, *actions: str) -> list[str | None]:
    return [kind.value if kind else None for kind in map(faults.strike, actions)]


def test_a_fault_strikes_the_nth_call_of_its_action_and_no_other() -> None:
    faults = Faults()
    fault = faults.add("throttle", action="A", nth=2, times=1)

    assert _effects(faults, "A", "B", "A", "A") == [None, None, "RequestLimitExceeded", None]
    assert fault.hits == 1


def test_a_fault_without_an_action_strikes_any() -> None:
    faults = Faults()
    faults.add("mutex", action=None, nth=1, times=2)

    assert _effects(faults, "A", "B", "A") == ["MutexOperation.TaskRunning"] * 2 + [None]


def test_a_fault_without_an_end_strikes_until_it_is_forgotten() -> None:
    faults = Faults()
    faults.add("internal", action=None, nth=1, times=None)
    struck = _effects(faults, *"ABC")
    faults.clear()

    assert struck == ["InternalError"] * 3
    assert _effects(faults, "A") == [None]


def test_faults_of_one_action_strike_one_after_the_other() -> None:
    faults = Faults()
    faults.add("throttle", action="A", nth=1, times=1)
    faults.add("busy", action="A", nth=1, times=1)

    assert _effects(faults, "A", "A", "A") == [
        "RequestLimitExceeded",
        "OperationDenied.InstanceOperationInProgress",
        None,
    ]


def test_a_code_of_tencents_is_a_fault_too() -> None:
    faults = Faults()
    faults.add("UnsupportedOperation.InstanceStateBanning", action=None, nth=1, times=1)

    assert _effects(faults, "A") == ["UnsupportedOperation.InstanceStateBanning"]


def test_a_fault_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidRequestError, match="drop-after-success"):
        Faults().add("trottle", action=None, nth=1, times=1)


@pytest.mark.parametrize(("nth", "times"), [(0, 1), (1, 0)])
def test_calls_are_counted_from_one(nth: int, times: int) -> None:
    with pytest.raises(InvalidRequestError, match="from 1"):
        Faults().add("throttle", action=None, nth=nth, times=times)
