"""Progress is told at a bounded rate, from a safe place; what the observer raises ends the call in order."""

from __future__ import annotations

import threading

import pytest

from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import CancelledError
from cvm_migrate.migration._meter import LinkedToken, Meter


def test_a_linked_token_follows_its_parents() -> None:
    """It is cancelled with any of them, and does not cancel them."""
    one, other = CancelToken(), CancelToken()
    linked = LinkedToken(one, other)
    before = linked.cancelled
    other.cancel()

    assert not before
    assert linked.cancelled
    assert linked.wait(10)
    assert not one.cancelled
    with pytest.raises(CancelledError):
        linked.check()


def test_its_own_cancel_leaves_the_parents_alone() -> None:
    """Only the call around it ends."""
    parent = CancelToken()
    linked = LinkedToken(parent)
    linked.cancel()

    assert linked.cancelled
    assert not parent.cancelled


def test_what_a_report_raises_cancels_the_call_and_arrives_after_it() -> None:
    """The error is raised where the block ends, in place of the cancellation."""
    waiting = threading.Event()

    def report(done: int, seconds: float) -> None:
        raise LookupError(f"{done} {seconds >= 0}")

    def work() -> None:
        with Meter(report, cancel=CancelToken()) as meter:
            while not meter.token.cancelled:
                meter.done(5)
                waiting.wait(0.01)
            meter.token.check()

    with pytest.raises(LookupError, match="5 True"):
        work()


def test_what_is_done_never_falls() -> None:
    """A repeated piece does not take the progress back."""
    seen: list[int] = []
    with Meter(lambda done, _: seen.append(done), cancel=CancelToken()) as meter:
        meter.done(7)
        while not seen:
            meter.done(3)

    assert seen == [7]
