"""The states of an instance and what leads from one to another, as tables.

Theory of operation: an instance *rests* in a state until a call (or the console) moves it; on the way it is in a
*moving* state, which ends by itself. What the library does to an instance is a walk through :data:`TRANSITIONS`; a
state that no row of a call starts from refuses that call, and :data:`STATES` says what to do then. The diagram in the
documentation is made from these tables, and a test compares them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs


class InstanceState(enum.StrEnum):
    """``InstanceState`` of the CVM API; the names are Tencent's."""

    PENDING = "PENDING"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    STARTING = "STARTING"
    STOPPING = "STOPPING"
    REBOOTING = "REBOOTING"
    SHUTDOWN = "SHUTDOWN"
    TERMINATING = "TERMINATING"
    ENTER_RESCUE_MODE = "ENTER_RESCUE_MODE"
    RESCUE_MODE = "RESCUE_MODE"
    EXIT_RESCUE_MODE = "EXIT_RESCUE_MODE"
    ENTER_SERVICE_LIVE_MIGRATE = "ENTER_SERVICE_LIVE_MIGRATE"
    SERVICE_LIVE_MIGRATE = "SERVICE_LIVE_MIGRATE"
    EXIT_SERVICE_LIVE_MIGRATE = "EXIT_SERVICE_LIVE_MIGRATE"
    UNKNOWN = "UNKNOWN"

    @classmethod
    def parse(cls, text: str) -> InstanceState:
        """Return the state of that name; ``UNKNOWN`` for one this version has never heard of."""
        try:
            return cls(text)
        except ValueError:
            return cls.UNKNOWN


class StateKind(enum.Enum):
    """How an instance behaves in a state."""

    RESTING = "resting"
    MOVING = "moving"
    CONSOLE = "console"
    ENDED = "ended"


@attrs.frozen
class StateRule:
    """What a state means, and what to do where it is in the way."""

    kind: StateKind
    meaning: str
    advice: str


_WAIT: Final = "Wait: the state ends by itself; then repeat the step"
_CONSOLE_END: Final = "Finish or delete the migration task in the console (CVM, Online migration), then repeat the step"

STATES: Final[Mapping[InstanceState, StateRule]] = MappingProxyType(
    {
        InstanceState.PENDING: StateRule(StateKind.MOVING, "is being created", _WAIT),
        InstanceState.LAUNCH_FAILED: StateRule(
            StateKind.ENDED, "could not be created", "Create another instance and name that one"
        ),
        InstanceState.RUNNING: StateRule(
            StateKind.RESTING, "runs its own system", "Repeat the step"
        ),
        InstanceState.STOPPED: StateRule(
            StateKind.RESTING, "is off and can be started", "Repeat the step, or start()"
        ),
        InstanceState.STARTING: StateRule(StateKind.MOVING, "is starting", _WAIT),
        InstanceState.STOPPING: StateRule(StateKind.MOVING, "is stopping", _WAIT),
        InstanceState.REBOOTING: StateRule(StateKind.MOVING, "is rebooting", _WAIT),
        InstanceState.SHUTDOWN: StateRule(
            StateKind.ENDED,
            "is off and waits to be destroyed",
            "Take it back from the recycle bin in the console, or name another instance",
        ),
        InstanceState.TERMINATING: StateRule(
            StateKind.ENDED, "is being destroyed", "Name another instance"
        ),
        InstanceState.ENTER_RESCUE_MODE: StateRule(
            StateKind.MOVING, "is entering rescue mode", _WAIT
        ),
        InstanceState.RESCUE_MODE: StateRule(
            StateKind.RESTING,
            "waits for migration: a rescue system runs, its own system disk is not mounted",
            "leave_migration() brings it back to its own system",
        ),
        InstanceState.EXIT_RESCUE_MODE: StateRule(
            StateKind.MOVING, "is leaving rescue mode", _WAIT
        ),
        InstanceState.ENTER_SERVICE_LIVE_MIGRATE: StateRule(
            StateKind.MOVING, "is entering the console's online migration", _WAIT
        ),
        InstanceState.SERVICE_LIVE_MIGRATE: StateRule(
            StateKind.CONSOLE,
            "waits for migration, put there by the console's online migration",
            _CONSOLE_END,
        ),
        InstanceState.EXIT_SERVICE_LIVE_MIGRATE: StateRule(
            StateKind.MOVING, "is leaving the console's online migration", _WAIT
        ),
        InstanceState.UNKNOWN: StateRule(
            StateKind.ENDED,
            "is in a state this version does not know",
            "Look at the instance in the console; a newer version may know the state",
        ),
    }
)


class Call(enum.StrEnum):
    """What moves an instance; ``CONSOLE`` is what no public call does."""

    ENTER_RESCUE = "EnterRescueMode"
    EXIT_RESCUE = "ExitRescueMode"
    START = "StartInstances"
    STOP = "StopInstances"
    REBOOT = "RebootInstances"
    CONSOLE = "console"


@attrs.frozen
class Transition:
    """*call* in state *start* leads through *through* to *end*."""

    call: Call
    start: InstanceState
    through: InstanceState
    end: InstanceState


_S = InstanceState

TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition(Call.ENTER_RESCUE, _S.RUNNING, _S.ENTER_RESCUE_MODE, _S.RESCUE_MODE),
    Transition(Call.ENTER_RESCUE, _S.STOPPED, _S.ENTER_RESCUE_MODE, _S.RESCUE_MODE),
    Transition(Call.EXIT_RESCUE, _S.RESCUE_MODE, _S.EXIT_RESCUE_MODE, _S.STOPPED),
    Transition(Call.START, _S.STOPPED, _S.STARTING, _S.RUNNING),
    Transition(Call.STOP, _S.RUNNING, _S.STOPPING, _S.STOPPED),
    Transition(Call.REBOOT, _S.RUNNING, _S.REBOOTING, _S.RUNNING),
    Transition(Call.REBOOT, _S.RESCUE_MODE, _S.REBOOTING, _S.RESCUE_MODE),
    Transition(Call.CONSOLE, _S.RUNNING, _S.ENTER_SERVICE_LIVE_MIGRATE, _S.SERVICE_LIVE_MIGRATE),
    Transition(Call.CONSOLE, _S.SERVICE_LIVE_MIGRATE, _S.EXIT_SERVICE_LIVE_MIGRATE, _S.RUNNING),
)

# Where a moving state is met without knowing which call began it.
_BY_ITSELF: Final[Mapping[InstanceState, InstanceState]] = MappingProxyType(
    {_S.PENDING: _S.RUNNING, **{row.through: row.end for row in TRANSITIONS}}
)


def transition(call: Call, start: InstanceState) -> Transition | None:
    """Return the row for *call* in *start*; ``None`` where the state refuses it."""
    for row in TRANSITIONS:
        if row.call is call and row.start is start:
            return row
    return None


def is_moving(state: InstanceState) -> bool:
    """Whether the state ends by itself."""
    return STATES[state].kind is StateKind.MOVING


def moves_to(state: InstanceState) -> InstanceState | None:
    """Return where a moving state usually ends; ``None`` for one that does not move."""
    return _BY_ITSELF.get(state)


def state_diagram() -> str:
    """Draw :data:`TRANSITIONS` as text, one line a row, as the documentation shows it."""
    width = max(len(row.start) for row in TRANSITIONS)
    middle = max(len(row.call) for row in TRANSITIONS)
    through = max(len(row.through) for row in TRANSITIONS)
    return "\n".join(
        f"{row.start:<{width}} --{row.call:-<{middle}}--> {row.through:<{through}} --> {row.end}"
        for row in TRANSITIONS
    )
