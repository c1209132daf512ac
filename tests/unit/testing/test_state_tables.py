"""Every action in every state: it moves the instance as the table says, or is refused with the state's code."""

from __future__ import annotations

import itertools

import pytest

from cvm_migrate.cloud._states import Call, InstanceState, transition
from cvm_migrate.testing._tables import MOVES, STATES, move, refusal

_PUBLIC = [action for action in MOVES if not action.startswith("(")]


def test_rescue_mode_is_entered_from_running_and_from_stopped_and_left_to_stopped() -> None:
    entered = {row.start: row.end for row in MOVES["EnterRescueMode"]}
    left = {row.start: row.end for row in MOVES["ExitRescueMode"]}

    assert entered == {"RUNNING": "RESCUE_MODE", "STOPPED": "RESCUE_MODE"}
    assert left == {"RESCUE_MODE": "STOPPED"}


def test_in_rescue_mode_only_leaving_and_rebooting_are_allowed() -> None:
    allowed = {action for action in _PUBLIC if move(action, "RESCUE_MODE")}

    assert allowed == {"ExitRescueMode", "RebootInstances"}


def test_while_an_instance_moves_nothing_else_is_allowed() -> None:
    passing = {row.through for rows in MOVES.values() for row in rows}

    assert not [(one, state) for one in _PUBLIC for state in passing if move(one, state)]


def test_every_state_of_the_tables_is_one_of_the_api() -> None:
    named = {
        state
        for rows in MOVES.values()
        for row in rows
        for state in (row.start, row.through, row.end)
    }

    assert named <= set(STATES)


@pytest.mark.parametrize(
    ("action", "state", "code"),
    [
        ("EnterRescueMode", "RESCUE_MODE", "UnsupportedOperation.InstanceStateRescueMode"),
        ("EnterRescueMode", "REBOOTING", "UnsupportedOperation.InstanceStateRebooting"),
        (
            "EnterRescueMode",
            "SERVICE_LIVE_MIGRATE",
            "UnsupportedOperation.InstanceStateServiceLiveMigrate",
        ),
        ("EnterRescueMode", "STARTING", "OperationDenied.InstanceOperationInProgress"),
        ("ExitRescueMode", "RUNNING", "UnsupportedOperation.InstanceStateRunning"),
        ("ExitRescueMode", "STOPPED", "UnsupportedOperation.InstanceStateStopped"),
        ("StartInstances", "RESCUE_MODE", "UnsupportedOperation.InstanceStateRescueMode"),
        ("StopInstances", "EXIT_RESCUE_MODE", "UnsupportedOperation.InstanceStateExitRescueMode"),
    ],
)
def test_a_refusal_has_tencents_code_for_the_state(action: str, state: str, code: str) -> None:
    assert move(action, state) is None
    assert refusal(action, state) == code


@pytest.mark.parametrize(("action", "state"), list(itertools.product(_PUBLIC, STATES)))
def test_the_adapter_and_the_simulator_have_the_same_idea_of_a_state(
    action: str, state: str
) -> None:
    """Written apart, from the same documents: where they differ, one of them is wrong."""
    ours = move(action, state)
    theirs = transition(Call(action), InstanceState(state))

    assert (ours and (ours.through, ours.end)) == (
        theirs and (theirs.through.value, theirs.end.value)
    )
