"""What became of many migrations, as values that pickle and print."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import attrs

from cvm_migrate import errors
from cvm_migrate.errors import CvmMigrateError, DefectError
from cvm_migrate.migration import CheckReport, Report, Result
from cvm_migrate.units import format_seconds, format_size

OutcomeState = Literal[
    "finished", "failed", "cancelled", "not started", "possible", "not possible"
]


@attrs.frozen
class Failure(Result):
    """An error as plain facts, as it came from wherever the migration ran.

    Attributes:
        type: Name of its class.
        message: What happened, to what.
        remedy: What to do about it.
        device: The device, file, host or instance concerned.
        code: The cloud's or the agent's own code.
        request_id: What the cloud's support asks for.
        trace: Where it happened, for errors that are not the library's.
    """

    type: str
    message: str
    remedy: str | None = None
    device: str | None = None
    code: str | None = None
    request_id: str | None = None
    trace: str | None = None

    @classmethod
    def of(cls, error: CvmMigrateError) -> Failure:
        """Return an error of the library as plain facts."""
        return cls(
            type=type(error).__name__,
            message=error.message,
            remedy=error.remedy,
            device=error.device,
            code=error.code,
            request_id=error.request_id,
        )

    @property
    def error(self) -> CvmMigrateError:
        """It as an error again, to be raised or told by its branch; what is not the library's is a defect."""
        kind: object = getattr(errors, self.type, None)
        if not (isinstance(kind, type) and issubclass(kind, CvmMigrateError)):
            return DefectError(f"{self.type}: {self.message}", remedy=self.remedy)
        return kind(
            self.message,
            remedy=self.remedy,
            device=self.device,
            code=self.code,
            request_id=self.request_id,
        )

    def __str__(self) -> str:
        """Return the message and the remedy."""
        return str(self.error)


@attrs.frozen
class Outcome(Result):
    """What became of one migration.

    Attributes:
        name: Of its plan.
        state: ``finished``, ``failed``, ``cancelled`` or ``not started``; of a check: ``possible`` or ``not possible``.
        seconds: That it took, in this call.
        earlier: Whether an earlier call had finished it: nothing was done now.
        report: Of the migration, as far as it came; ``None`` if it did not begin.
        check: What a check found.
        failure: Why it is not finished.
        half_way: In which state it left the instance that is its target, so that somebody has to go on or give up.
    """

    name: str
    state: OutcomeState
    seconds: float
    earlier: bool = False
    report: Report | None = None
    check: CheckReport | None = None
    failure: Failure | None = None
    half_way: str | None = None

    @property
    def done(self) -> bool:
        """Whether what was asked for was reached."""
        return self.state in {"finished", "possible"}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dictionaries, lists, numbers and texts."""
        plain = super().to_dict()
        plain["report"] = None if self.report is None else self.report.to_dict()
        return plain

    def line(self) -> tuple[str, str, str, str]:
        """Return name, state, time and what is to be said of it."""
        state = f"{self.state} earlier" if self.earlier else self.state
        told = ""
        if self.failure is not None:
            told = str(self.failure)
        elif self.check is not None:
            told = "; ".join(str(finding) for finding in self.check.blockers)
        elif self.report is not None:
            told = f"{format_size(self.report.sent)} sent"
            if self.report.cutover is not None:
                told += f", {format_seconds(self.report.cutover.downtime)} of downtime"
            if self.report.proven:
                told += ", proven identical"
        if self.half_way is not None:
            told = f"{told}; half way: {self.half_way}" if told else f"half way: {self.half_way}"
        return self.name, state, format_seconds(self.seconds), told


_HEAD = ("name", "state", "took", "what is to be said")


@attrs.frozen
class FleetReport(Result):
    """What became of all migrations, in the order of their plans.

    Attributes:
        outcomes: One for each plan.
        started: Seconds since 1970.
        seconds: From then to the end of the last one.
    """

    outcomes: tuple[Outcome, ...]
    started: float
    seconds: float

    @property
    def done(self) -> bool:
        """Whether every one is finished (or, of a check, possible)."""
        return all(outcome.done for outcome in self.outcomes)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Those that are not."""
        return tuple(outcome for outcome in self.outcomes if not outcome.done)

    @property
    def half_way(self) -> tuple[Outcome, ...]:
        """Those that left an instance half way: waiting for migration, or off."""
        return tuple(outcome for outcome in self.outcomes if outcome.half_way is not None)

    def __getitem__(self, name: str) -> Outcome:
        """Return the outcome of the plan of that name."""
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dictionaries, with how many are in which state, and which are half way."""
        return {
            "done": self.done,
            "half_way": [outcome.name for outcome in self.half_way],
            "states": dict(Counter(outcome.state for outcome in self.outcomes)),
            "started": self.started,
            "seconds": self.seconds,
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }

    def rows(self) -> Sequence[tuple[str, str]]:
        """Return the summary."""
        states = Counter(outcome.state for outcome in self.outcomes)
        told = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
        rows = [("migrations", told), ("took", format_seconds(self.seconds))]
        if self.half_way:
            rows.append(("half way", ", ".join(outcome.name for outcome in self.half_way)))
        return rows

    def to_text(self) -> str:
        """Return it as lines for a terminal."""
        table = [_HEAD, *(outcome.line() for outcome in self.outcomes)]
        widths = [max(len(row[column]) for row in table) for column in range(3)]
        lines = [
            "  ".join(
                [*(f"{c:<{w}}" for c, w in zip(row[:3], widths, strict=True)), row[3]]
            ).rstrip()
            for row in table
        ]
        return "\n".join([*lines, "", super().to_text()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in _HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in outcome.line()) + "</tr>"
            for outcome in self.outcomes
        )
        table = f"<table><caption>Migrations</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return super()._repr_html_() + table
