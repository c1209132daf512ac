"""What a measurement sends, when it ends, and what it makes of confirmations."""

from __future__ import annotations

import time

from cvm_migrate.agent.pump.channel import Waker
from cvm_migrate.agent.pump.probe import LARGEST, Probe
from cvm_migrate.agent.verbs import AgentError


def test_frames_grow_with_what_was_confirmed_and_have_a_bound() -> None:
    probe = Probe(1000.0, Waker())
    sizes: list[int] = []
    for _ in range(400):
        taken = probe.take()
        assert taken is not None
        sizes.append(taken[1])
        probe.confirmed(taken[1], zero=False)

    assert sizes == sorted(sizes)
    # A path that confirms nothing is not given much.
    assert sizes[0] <= 16 << 10
    assert sizes[-1] == LARGEST
    assert probe.figures()["bytes"] == sum(sizes)


def test_nothing_is_sent_after_the_time() -> None:
    probe = Probe(0.0, Waker())

    assert probe.take() is None
    assert probe.settled


def test_it_is_settled_only_when_everything_is_confirmed() -> None:
    probe = Probe(0.2, Waker())
    taken = probe.take()
    assert taken is not None
    time.sleep(0.25)
    before = probe.settled
    probe.confirmed(taken[1], zero=False)

    assert (before, probe.settled) == (False, True)
    assert probe.figures()["bytes"] == taken[1]
    assert probe.figures()["rate"] > 0


def test_the_first_failure_stays_and_ends_it() -> None:
    probe = Probe(1000.0, Waker())
    probe.fail(AgentError("peer", "first"))
    probe.fail(AgentError("connection", "second"))

    assert probe.take() is None
    assert probe.settled
    assert probe.error is not None
    assert probe.error.message == "first"
