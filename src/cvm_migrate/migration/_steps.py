"""In which order steps can be called, as a table.

Theory of operation: a migration is in one state; a step is legal in the states its row names and leads to the
one beside it. A step that fails leaves the state as it was, so it can be repeated. ``check``, ``status`` and
``run`` are legal in every state but the aborted one (``run`` continues from where the migration is).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from cvm_migrate.errors import StepOrderError


class State(enum.Enum):
    """What has been reached; stored in the checkpoint by value."""

    NEW = "new"
    PREPARED = "prepared"
    SYNCED = "synced"
    CUT_OVER = "cut over"
    FINISHED = "finished"
    ABORTED = "aborted"


class Step(enum.Enum):
    """What the caller can do; the value is the method's name."""

    CHECK = "check"
    PREPARE = "prepare"
    FULL_SYNC = "full_sync"
    DELTA_SYNC = "delta_sync"
    HOLD = "hold"
    CUTOVER = "cutover"
    FINISH = "finish"
    ABORT = "abort"


TRANSITIONS: Mapping[Step, Mapping[State, State]] = MappingProxyType(
    {
        Step.CHECK: {state: state for state in State if state is not State.FINISHED},
        # Again after an abort: what the target holds by then is compared, not sent again.
        Step.PREPARE: {
            State.NEW: State.PREPARED,
            State.ABORTED: State.PREPARED,
            State.PREPARED: State.PREPARED,
            State.SYNCED: State.SYNCED,
            State.CUT_OVER: State.CUT_OVER,
        },
        Step.FULL_SYNC: {State.PREPARED: State.SYNCED, State.SYNCED: State.SYNCED},
        # After a cutover, a delta sync takes it back: the source went on being the one in service.
        Step.DELTA_SYNC: {State.SYNCED: State.SYNCED, State.CUT_OVER: State.SYNCED},
        Step.HOLD: {State.SYNCED: State.SYNCED, State.CUT_OVER: State.SYNCED},
        Step.CUTOVER: {State.SYNCED: State.CUT_OVER, State.CUT_OVER: State.CUT_OVER},
        Step.FINISH: {State.CUT_OVER: State.FINISHED, State.FINISHED: State.FINISHED},
        Step.ABORT: {state: State.ABORTED for state in State if state is not State.FINISHED},
    }
)

_INSTEAD = MappingProxyType(
    {
        State.NEW: "call prepare() first",
        State.PREPARED: "call full_sync() first",
        State.SYNCED: "call cutover() first",
        State.CUT_OVER: "call finish(), or delta_sync() to take the cutover back",
        State.FINISHED: "this migration is over: a new one needs a state directory of its own",
        State.ABORTED: "this migration was aborted: call prepare() to begin again",
    }
)


def after(step: Step, state: State) -> State:
    """Return the state that *step* leads to.

    Raises:
        StepOrderError: It is not legal in *state*.
    """
    row = TRANSITIONS[step]
    if state not in row:
        raise StepOrderError(
            f"{step.value}() cannot be called when the migration is {state.value}",
            remedy=_INSTEAD[state][0].upper() + _INSTEAD[state][1:],
        )
    return row[state]
