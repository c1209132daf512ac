"""One budget of time across many steps, and calling work off."""

from __future__ import annotations

import threading

import pytest

from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import CancelledError, DeadlineError


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_shrinks_with_the_clock() -> None:
    clock = Clock()
    deadline = Deadline(5, clock=clock)

    assert deadline.remaining() == 5
    clock.now += 3
    assert deadline.remaining() == 2
    assert not deadline.passed


def test_a_deadline_that_has_passed_says_what_was_being_done() -> None:
    clock = Clock()
    deadline = Deadline(1.5, clock=clock)
    clock.now += 1.5

    assert deadline.passed
    with pytest.raises(
        DeadlineError, match=r"waiting for the disk did not end within 1\.5 s"
    ) as caught:
        deadline.remaining("waiting for the disk")
    assert caught.value.seconds == 1.5
    assert isinstance(caught.value, TimeoutError)


def test_no_budget_never_passes() -> None:
    clock = Clock()
    deadline = Deadline(None, clock=clock)
    clock.now += 1e12

    assert deadline.remaining() is None
    assert not deadline.passed


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_budget_of_nothing_has_passed_at_once(seconds: float) -> None:
    deadline = Deadline(seconds)

    assert deadline.passed
    with pytest.raises(DeadlineError):
        deadline.remaining()


def test_work_goes_on_until_it_is_called_off() -> None:
    cancel = CancelToken()
    cancel.check()
    assert not cancel.cancelled
    assert not cancel.wait(0)

    cancel.cancel()
    cancel.cancel()

    assert cancel.wait(3600)
    with pytest.raises(CancelledError):
        cancel.check()


def test_calling_off_from_another_thread_ends_a_wait() -> None:
    cancel = CancelToken()
    thread = threading.Thread(target=cancel.cancel)
    thread.start()
    try:
        assert cancel.wait(60)
    finally:
        thread.join()
