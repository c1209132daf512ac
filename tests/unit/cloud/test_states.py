"""The tables of states and transitions."""

from __future__ import annotations

import pytest

from cvm_migrate.cloud import STATES, TRANSITIONS, Call, InstanceState, StateKind
from cvm_migrate.cloud._states import is_moving, moves_to, state_diagram, transition


def test_every_state_has_a_rule_with_a_meaning_and_an_advice() -> None:
    assert set(STATES) == set(InstanceState)
    for rule in STATES.values():
        assert rule.meaning
        assert rule.advice


def test_transitions_begin_and_end_at_rest_and_pass_through_a_moving_state() -> None:
    for row in TRANSITIONS:
        assert STATES[row.start].kind in {StateKind.RESTING, StateKind.CONSOLE}, row
        assert STATES[row.end].kind in {StateKind.RESTING, StateKind.CONSOLE}, row
        assert is_moving(row.through), row


def test_every_moving_state_is_known_to_end_somewhere_at_rest() -> None:
    for state, rule in STATES.items():
        if rule.kind is StateKind.MOVING:
            end = moves_to(state)

            assert end is not None, state
            assert not is_moving(end)


def test_a_call_in_a_state_leads_to_one_end_only() -> None:
    keys = [(row.call, row.start) for row in TRANSITIONS]

    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("call", list(Call))
@pytest.mark.parametrize("state", list(InstanceState))
def test_a_state_without_a_row_refuses_the_call(call: Call, state: InstanceState) -> None:
    row = transition(call, state)

    assert (row is None) == ((call, state) not in {(r.call, r.start) for r in TRANSITIONS})


@pytest.mark.parametrize("state", [InstanceState.RUNNING, InstanceState.STOPPED])
def test_from_rescue_mode_calls_lead_back_to_every_state_it_is_entered_from(
    state: InstanceState,
) -> None:
    reached = {InstanceState.RESCUE_MODE}
    while True:
        more = {
            row.end for row in TRANSITIONS if row.start in reached and row.call is not Call.CONSOLE
        }
        if more <= reached:
            break
        reached |= more

    assert state in reached


def test_a_state_that_tencent_invents_tomorrow_is_unknown_and_not_an_error() -> None:
    assert InstanceState.parse("HIBERNATING") is InstanceState.UNKNOWN


def test_the_diagram_has_a_line_for_each_row() -> None:
    lines = state_diagram().splitlines()

    assert len(lines) == len(TRANSITIONS)
    for line, row in zip(lines, TRANSITIONS, strict=True):
        assert line.replace("-", " ").replace(">", " ").split() == [
            row.start,
            row.call,
            row.through,
            row.end,
        ]
