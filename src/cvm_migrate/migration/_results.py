"""What steps return: frozen values that can be stored, printed and passed on. Sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from cvm_migrate.migration._values import (
    Result,
    as_table,
    as_text,
    rate_or_unknown,
    seconds_or_unknown,
    size_or_unknown,
)
from cvm_migrate.model import Finding, Severity
from cvm_migrate.units import format_rate, format_seconds, format_size


@attrs.frozen
class CheckReport(Result):
    """What :meth:`~cvm_migrate.migration.Migration.check` found.

    Attributes:
        findings: The gravest first.
        source: Description of the source.
        target: Description of the target.
        size: Bytes of the source's disks together; ``None`` if they could not be looked at.
        estimated_bytes: That a full sync has to go through: all of the disks, whatever is in use.
        estimated_seconds: That it takes; ``None`` if no rate is known. The longer of two, as both go on at the same
            time: reading *size* at the rate at which the source's disk was read, or ``read_limit`` if that is
            lower; and sending what is not known to be free (*used_bytes*, and all of what no mounted file system
            accounts for) at the measured rate of the way of the data, or ``bandwidth`` if that is lower. Free space
            goes as zeroes, which cost next to nothing; as far as it still holds what was deleted, it is sent as well
            and takes longer.
        estimated_at_least: Whether it may take longer, as nothing is known of the way of the data yet: that of an
            instance is measured in ``prepare()``, when its rescue system runs.
        used_bytes: Bytes that the mounted file systems on the source's disks say they use, each counted once;
            ``None`` if none says it.
        used_at_least: Whether more may be in use: a partition or volume has no mounted file system, or one that
            does not say.
    """

    findings: tuple[Finding, ...]
    source: str
    target: str
    size: int | None = None
    estimated_bytes: int | None = None
    estimated_seconds: float | None = None
    estimated_at_least: bool = False
    used_bytes: int | None = None
    used_at_least: bool = False

    @property
    def possible(self) -> bool:
        """Whether nothing forbids going on."""
        return not self.blockers

    @property
    def blockers(self) -> tuple[Finding, ...]:
        """The findings that forbid going on."""
        return tuple(f for f in self.findings if f.severity is Severity.BLOCKER)

    def rows(self) -> Sequence[tuple[str, str]]:
        """Return what a person wants to see."""
        rows = [
            ("source", self.source),
            ("target", self.target),
            ("size", size_or_unknown(self.size)),
            ("in use", self._in_use()),
            (
                "full sync, at least" if self.estimated_at_least else "full sync, about",
                seconds_or_unknown(self.estimated_seconds),
            ),
        ]
        rows += [(finding.severity.value, _without_severity(finding)) for finding in self.findings]
        return rows

    def _in_use(self) -> str:
        text = size_or_unknown(self.used_bytes)
        return f"at least {text}" if self.used_bytes is not None and self.used_at_least else text


def finding_from_dict(plain: dict[str, Any]) -> Finding:
    """Return a finding as it was stored."""
    return Finding(Severity(plain["severity"]), plain["title"], plain["evidence"], plain["remedy"])


def _without_severity(finding: Finding) -> str:
    return str(finding).removeprefix(f"{finding.severity.value}: ")


@attrs.frozen
class DiskPair(Result):
    """A disk and where it goes."""

    source: str
    target: str
    size: int
    target_size: int


@attrs.frozen
class Prepared(Result):
    """What :meth:`~cvm_migrate.migration.Migration.prepare` set up.

    Attributes:
        disks: Which disk goes where.
        rung: How changes are tracked; ``None``: digests are compared.
        refused: Why better rungs could not be used.
        block: Granularity of tracking.
        mounts: What a cutover will freeze, in this order.
        freeze_seconds: How long a freeze took when it was tried; ``None`` if nothing can be frozen.
        resumed: Whether an earlier process had begun.
        findings: What the caller should know.
    """

    disks: tuple[DiskPair, ...]
    rung: str | None
    refused: dict[str, str]
    block: int
    mounts: tuple[str, ...]
    freeze_seconds: float | None
    resumed: bool
    findings: tuple[Finding, ...]

    def rows(self) -> Sequence[tuple[str, str]]:
        """Return what a person wants to see."""
        rows = [
            (f"{d.source} to {d.target}", f"{format_size(d.size)} of {format_size(d.target_size)}")
            for d in self.disks
        ]
        rows.append(("changes by", tracker_text(self.rung, self.refused)))
        rows.append(("to freeze", ", ".join(self.mounts) or "nothing"))
        rows.append(("a freeze takes", seconds_or_unknown(self.freeze_seconds)))
        rows += [(finding.severity.value, _without_severity(finding)) for finding in self.findings]
        return rows


def tracker_text(rung: str | None, refused: dict[str, str]) -> str:
    """Return how changes are tracked, and why not better."""
    text = rung or "comparing digests"
    if refused:
        text += " (" + "; ".join(f"{name}: {why}" for name, why in refused.items()) + ")"
    return text


@attrs.frozen
class DiskPass(Result):
    """What a pass did on one disk.

    Attributes:
        disk: Its number, from 0.
        sent: Bytes sent and proven by reading back.
        wire: Bytes on the network.
        zero: Of *sent*, those that were zeroes.
        compared: Bytes whose digests were compared at both ends.
        changed: Bytes that had changed, by the tracker or the comparison.
        deferred: Bytes left to the final pass, as they change all the time.
        certain: Whether the tracker vouched for its answer.
        reason: Why it did not.
    """

    disk: int
    sent: int
    wire: int
    zero: int
    compared: int
    changed: int
    deferred: int
    certain: bool
    reason: str | None = None


@attrs.frozen
class SyncResult(Result):
    """What a pass did, and what a cutover now would cost.

    Attributes:
        number: Of the pass, from 1.
        kind: ``full``, ``delta``, ``proof`` or ``final``.
        disks: Each disk's part.
        seconds: Of the whole pass.
        rate: Bytes of the disk per second, sent and proven; ``None`` if nothing was sent.
        dirty_bytes: What a pass now would have to send; ``None`` if only a comparison can tell.
        dirty_rate: Bytes per second the source makes dirty; ``None`` if unknown.
        predicted_downtime: Of a cutover now; ``None`` if unknown.
        verdict: ``fits`` (a cutover now is within ``max_downtime``), ``continue``, ``not converging``, or ``limit`` (as
            many passes or bytes as were allowed).
        reason: The verdict with its numbers.
        remedy: What to do if it does not converge.
    """

    number: int
    kind: str
    disks: tuple[DiskPass, ...]
    seconds: float
    rate: float | None
    dirty_bytes: int | None
    dirty_rate: float | None
    predicted_downtime: float | None
    verdict: str
    reason: str = ""
    remedy: str = ""

    @property
    def sent(self) -> int:
        """Bytes of all disks that were sent and proven."""
        return sum(disk.sent for disk in self.disks)

    @property
    def wire(self) -> int:
        """Bytes on the network."""
        return sum(disk.wire for disk in self.disks)

    @property
    def compared(self) -> int:
        """Bytes whose digests were compared."""
        return sum(disk.compared for disk in self.disks)

    def fits(self, *, max_downtime: float) -> bool:
        """Whether a cutover now is predicted to stop the source for at most that many seconds."""
        return self.predicted_downtime is not None and self.predicted_downtime <= max_downtime

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> SyncResult:
        """Return what :meth:`to_dict` wrote."""
        names = {field.name for field in attrs.fields(cls)}
        values = {name: value for name, value in plain.items() if name in names}
        values["disks"] = tuple(DiskPass(**disk) for disk in plain["disks"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dictionaries, with the totals of all disks."""
        return {
            **super().to_dict(),
            "sent": self.sent,
            "wire": self.wire,
            "compared": self.compared,
        }

    def rows(self) -> Sequence[tuple[str, str]]:
        """Return what a person wants to see."""
        return [
            ("pass", f"{self.number} ({self.kind})"),
            ("sent", f"{format_size(self.sent)}, {format_size(self.wire)} on the wire"),
            ("compared", format_size(self.compared)),
            ("took", f"{format_seconds(self.seconds)}, {rate_or_unknown(self.rate)}"),
            (
                "dirty now",
                f"{size_or_unknown(self.dirty_bytes)}, {rate_or_unknown(self.dirty_rate)}",
            ),
            ("downtime now", seconds_or_unknown(self.predicted_downtime)),
            ("verdict", f"{self.verdict}: {self.reason}"),
            *([("remedy", self.remedy)] if self.remedy else []),
        ]


@attrs.frozen
class CutoverResult(Result):
    """The moment the copy became the source.

    Attributes:
        at: Seconds since 1970 when the source was frozen.
        downtime: From before the first file system was frozen to after the last one was thawed; where nothing was
            frozen, how long the final pass took.
        predicted_downtime: What had been predicted just before.
        frozen: Mounts that were frozen.
        refused: Mounts that could not be, with the reason.
        freeze_seconds: How long the freeze itself took.
        final_bytes: Sent while frozen.
        proven: Bytes proven by each comparison: ``read back`` (of all that was sent since the beginning), ``running``
            (both disks read afresh before the freeze), ``frozen`` (within it).
        findings: What the caller should know.
    """

    at: float
    downtime: float
    predicted_downtime: float | None
    frozen: tuple[str, ...]
    refused: dict[str, str]
    freeze_seconds: float
    final_bytes: int
    proven: dict[str, int]
    findings: tuple[Finding, ...] = ()

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> CutoverResult:
        """Return what :meth:`to_dict` wrote."""
        values = dict(plain)
        values["frozen"] = tuple(plain["frozen"])
        values["findings"] = tuple(finding_from_dict(item) for item in plain["findings"])
        return cls(**values)

    def rows(self) -> Sequence[tuple[str, str]]:
        """Return what a person wants to see."""
        rows = [
            (
                "downtime",
                f"{format_seconds(self.downtime)} (predicted {seconds_or_unknown(self.predicted_downtime)})",
            ),
            ("frozen", ", ".join(self.frozen) or "nothing"),
            ("sent while frozen", format_size(self.final_bytes)),
        ]
        rows += [(f"proven, {name}", format_size(count)) for name, count in self.proven.items()]
        rows += [("not frozen", f"{mount}: {why}") for mount, why in self.refused.items()]
        rows += [(finding.severity.value, _without_severity(finding)) for finding in self.findings]
        return rows


@attrs.frozen
class Status(Result):
    """Where a migration is.

    Attributes:
        state: ``new``, ``prepared``, ``synced``, ``cut over``, ``finished`` or ``aborted``.
        next_steps: Names of the methods that can be called now.
        passes: How many passes are done.
        sent: Bytes of the disks sent so far.
        wire: Bytes on the network so far.
        bootable: Whether the target may be put to use: only after a proven cutover.
    """

    state: str
    next_steps: tuple[str, ...]
    passes: int
    sent: int
    wire: int
    bootable: bool


@attrs.frozen
class Report(Result):
    """Everything about a migration that is over, or as far as it is.

    Attributes:
        state: As in :class:`Status`.
        source: Description of the source.
        target: Description of the target.
        disks: Which disk went where.
        started: Seconds since 1970.
        seconds: From then until now.
        passes: All passes, in order.
        rung: How changes were tracked; ``None``: digests were compared.
        refused: Why better rungs could not be used.
        cutover: The cutover; ``None`` if there was none.
        findings: What the caller should know.
    """

    state: str
    source: str
    target: str
    disks: tuple[DiskPair, ...]
    started: float
    seconds: float
    passes: tuple[SyncResult, ...]
    rung: str | None
    refused: dict[str, str]
    cutover: CutoverResult | None
    findings: tuple[Finding, ...]

    @property
    def sent(self) -> int:
        """Bytes of the disks sent in all passes."""
        return sum(one.sent for one in self.passes)

    @property
    def wire(self) -> int:
        """Bytes on the network in all passes."""
        return sum(one.wire for one in self.passes)

    @property
    def proven(self) -> bool:
        """Whether the copy was proven identical at the moment of the freeze."""
        return self.cutover is not None and self.state in {"cut over", "finished"}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dictionaries, with the totals of all passes."""
        plain = super().to_dict()
        plain["passes"] = [one.to_dict() for one in self.passes]
        return {**plain, "sent": self.sent, "wire": self.wire, "proven": self.proven}

    def rows(self) -> Sequence[tuple[str, str]]:
        """Return the summary; passes stand in a table of their own."""
        rows = [
            ("state", f"{self.state}, {'proven identical' if self.proven else 'not proven'}"),
            ("source", self.source),
            ("target", self.target),
        ]
        rows += [("disk", f"{d.source} to {d.target}, {format_size(d.size)}") for d in self.disks]
        rows += [
            ("changes by", tracker_text(self.rung, self.refused)),
            ("took", format_seconds(self.seconds)),
            ("sent", f"{format_size(self.sent)}, {format_size(self.wire)} on the wire"),
        ]
        if self.cutover is not None:
            rows += self.cutover.rows()
        rows += [
            (finding.severity.value, _without_severity(finding))
            for finding in self.findings
            if self.cutover is None or finding not in self.cutover.findings
        ]
        return rows

    def pass_table(self) -> list[list[str]]:
        """Return the passes as a table, headings first."""
        return [
            [
                "pass",
                "kind",
                "sent",
                "on the wire",
                "compared",
                "took",
                "rate",
                "dirty after",
                "downtime then",
            ],
            *(
                [
                    str(one.number),
                    one.kind,
                    format_size(one.sent),
                    format_size(one.wire),
                    format_size(one.compared),
                    format_seconds(one.seconds),
                    "" if one.rate is None else format_rate(one.rate),
                    size_or_unknown(one.dirty_bytes),
                    seconds_or_unknown(one.predicted_downtime),
                ]
                for one in self.passes
            ),
        ]

    def to_text(self) -> str:
        """Return it as lines for a terminal."""
        table = self.pass_table()
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in table]
        return as_text(self.rows()) + "\n\n" + "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *body = self.pass_table()
        cells = "".join(f"<th>{name}</th>" for name in head)
        # All cells are our own numbers and words: nothing to escape.
        lines = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body
        )
        return (
            as_table("Migration", self.rows())
            + f"<table><caption>Passes</caption><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"
        )
