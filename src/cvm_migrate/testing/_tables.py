"""The states of an instance, what leads from one to another, and what each state refuses: as tables.

Theory of operation: an action that moves an instance is allowed in the states that :data:`MOVES` has a row for. The
instance is in *through* while it is under way and in *end* afterwards. In any other state the action is refused with
the code that :func:`refusal` makes. The rows are those of Tencent's lists of errors for each action: a state that has
a code there is refused; one that has none is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

STATES: Final = (
    "PENDING",
    "LAUNCH_FAILED",
    "RUNNING",
    "STOPPED",
    "STARTING",
    "STOPPING",
    "REBOOTING",
    "SHUTDOWN",
    "TERMINATING",
    "ENTER_RESCUE_MODE",
    "RESCUE_MODE",
    "EXIT_RESCUE_MODE",
    "ENTER_SERVICE_LIVE_MIGRATE",
    "SERVICE_LIVE_MIGRATE",
    "EXIT_SERVICE_LIVE_MIGRATE",
)


@attrs.frozen
class Move:
    """In *start*, the action leads through *through* to *end*."""

    start: str
    through: str
    end: str


MOVES: Final[Mapping[str, tuple[Move, ...]]] = MappingProxyType(
    {
        "EnterRescueMode": (
            Move("RUNNING", "ENTER_RESCUE_MODE", "RESCUE_MODE"),
            Move("STOPPED", "ENTER_RESCUE_MODE", "RESCUE_MODE"),
        ),
        "ExitRescueMode": (Move("RESCUE_MODE", "EXIT_RESCUE_MODE", "STOPPED"),),
        "StartInstances": (Move("STOPPED", "STARTING", "RUNNING"),),
        "StopInstances": (Move("RUNNING", "STOPPING", "STOPPED"),),
        "RebootInstances": (
            Move("RUNNING", "REBOOTING", "RUNNING"),
            Move("RESCUE_MODE", "REBOOTING", "RESCUE_MODE"),
        ),
        # What the console's online migration does; no public action leads here.
        "(console) begin": (
            Move("RUNNING", "ENTER_SERVICE_LIVE_MIGRATE", "SERVICE_LIVE_MIGRATE"),
        ),
        "(console) end": (Move("SERVICE_LIVE_MIGRATE", "EXIT_SERVICE_LIVE_MIGRATE", "RUNNING"),),
    }
)

# States whose code an action's list of errors lacks: another operation is said to be under way.
_BUSY: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "EnterRescueMode": frozenset({"STARTING", "PENDING"}),
        "ExitRescueMode": frozenset({"STARTING", "PENDING"}),
    }
)


def move(action: str, state: str) -> Move | None:
    """Return the row of *action* in *state*; ``None`` where the state refuses it."""
    return next((row for row in MOVES[action] if row.start == state), None)


def refusal(action: str, state: str) -> str:
    """Return the code that *action* is refused with in *state*."""
    if state in _BUSY.get(action, ()):
        return "OperationDenied.InstanceOperationInProgress"
    words = "".join(word.capitalize() for word in state.split("_"))
    return f"UnsupportedOperation.InstanceState{words}"
