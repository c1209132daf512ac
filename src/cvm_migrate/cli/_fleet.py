"""Many migrations from a plan file: lines of all of them on standard error, one exit code for all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final, TextIO, cast

from cvm_migrate.cli._exit_codes import ExitCode, exit_code
from cvm_migrate.cli._progress import ProgressDisplay
from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.events import Event
from cvm_migrate.fleet import FleetReport, Outcome, check_many, load_plans, migrate_many

# The one that most needs someone to look comes first: a server that is out of service, then what a repeated command may
# mend, so that what remains afterwards is told by the next call.
_GRAVEST_FIRST: Final = (
    ExitCode.HALF_WAY,
    ExitCode.TRANSIENT,
    ExitCode.NOT_IDENTICAL,
    ExitCode.SECURITY,
    ExitCode.DEFECT,
    ExitCode.CONDITION,
    ExitCode.REQUEST,
    ExitCode.NOT_POSSIBLE,
)


class FleetDisplay:
    """Writes what migrations tell, one line after another, each with the plan's name; from any thread.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._displays: dict[str, ProgressDisplay] = {}

    def __call__(self, name: str, event: Event) -> None:
        """Show one event."""
        with self._lock:
            if name not in self._displays:
                # All that a display does is to write whole lines and flush.
                stream = cast("TextIO", _Named(name, self._stream))
                self._displays[name] = ProgressDisplay(stream, terminal=False)
            self._displays[name](event)


class _Named:
    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = name
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(f"{self._name}: {text}")

    def flush(self) -> None:
        self._stream.flush()


def fleet(
    file: Path,
    *,
    state: Path | None,
    workers: int,
    dry_run: bool,
    display: FleetDisplay | None,
) -> tuple[FleetReport, int]:
    """Do or check all plans of a file.

    Returns:
        The report and the exit code.

    Raises:
        InvalidRequestError: The file or the arguments are wrong.
    """
    plans = load_plans(file)
    if dry_run:
        report = check_many(plans, state=state, workers=workers, observer=display)
    elif state is None:
        raise InvalidRequestError(
            "fleet needs a state directory", remedy="Give --state DIR, the same at each call"
        )
    else:
        report = migrate_many(plans, state=state, workers=workers, observer=display)
    return report, fleet_code(report)


def fleet_code(report: FleetReport) -> ExitCode:
    """Return 0 if all is done, 8 if an instance was left half way, 4 if repeating may help, else the gravest code."""
    codes = {_code(outcome) for outcome in report.outcomes}
    return next((code for code in _GRAVEST_FIRST if code in codes), ExitCode.DONE)


def _code(outcome: Outcome) -> ExitCode:
    if outcome.done:
        return ExitCode.DONE
    if outcome.failure is not None:
        return exit_code(outcome.failure.error, half_way=outcome.half_way is not None)
    return ExitCode.NOT_POSSIBLE if outcome.check is not None else ExitCode.TRANSIENT
