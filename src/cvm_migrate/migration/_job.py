"""What a migration consists of while a process works on it; the steps in other modules share it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Final, NoReturn

import attrs

from cvm_migrate.deadline import CancelToken
from cvm_migrate.delta import Convergence, PassFacts
from cvm_migrate.disk import mounts_on
from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.events import Event, Noticed, Observer, PassEnded, PassStarted
from cvm_migrate.migration._checkpoint import Checkpoint, DiskIdentity, DiskRecord
from cvm_migrate.migration._cvm import CvmTarget
from cvm_migrate.migration._endpoints import Endpoint
from cvm_migrate.migration._ends import End, Ends
from cvm_migrate.migration._options import Options
from cvm_migrate.migration._passes import Passes, Tally, Work
from cvm_migrate.migration._results import (
    CutoverResult,
    DiskPair,
    SyncResult,
    finding_from_dict,
)
from cvm_migrate.migration._values import to_plain
from cvm_migrate.model import ExtentMap, Finding, OpenDisk, Severity
from cvm_migrate.transport import AgentSession
from cvm_migrate.units import MiB

_STARTED: Final = "started"
_ENDS: Final = "ends"
_CVM: Final = "cvm:"
_REVIVE_AFTER: Final = 2
_BULK: Final = 8 * MiB


class Job:
    """Endpoints, checkpoint, agents, disks and results of one migration.

    Args:
        source: Where the disks are read.
        target: Where they are written.
        state: The state directory.
        options: Limits and choices.
        observer: Takes events.
        cancel: Ends steps at their next chunk.
    """

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        *,
        state: Path | None,
        options: Options,
        observer: Observer | None,
        cancel: CancelToken,
    ) -> None:
        self.source = source
        self.target = target
        self.options = options
        self.cancel = cancel
        self._observer = observer
        self._held_back: list[Event] | None = None
        self.checkpoint = Checkpoint(state)
        try:
            self.results, self.findings = self._stored()
            self._refuse_other_instance()
        except BaseException:
            self.checkpoint.close()
            raise
        self.ends = Ends(
            source,
            target,
            options=options,
            emit=self.emit,
            warn=lambda title, evidence, remedy: self.note(
                Severity.WARNING, title, evidence=evidence, remedy=remedy
            ),
            cancel=cancel,
        )
        self.passes = Passes(
            self.ends, options=options, emit=self.emit, save=self.save, cancel=cancel
        )
        self.works: list[Work] = []
        self.mounts: tuple[str, ...] = ()
        self._mounts_by_disk: dict[int, frozenset[str]] = {}
        self.freeze_seconds: float | None = self.checkpoint.get("freeze_seconds")
        self.resumed = bool(self.checkpoint.disks())
        if self.resumed:
            self.ends.expect_stale()
        self.convergence = self._new_convergence()
        self.compare_rate: float | None = None
        # Of the last pass that was large enough to measure more than round trips.
        self._bulk_rate: float | None = None
        # Bytes that a fresh reading of both ends found equal, with the tracker that runs now.
        self.proved: int | None = None
        # Disks with a mounted file system that refuses to be frozen.
        self.unfreezable: set[int] = set()
        self._number = len(self.results)
        # Passes running whose tracker was not certain.
        self._doubts = 0

    def _stored(self) -> tuple[list[SyncResult], list[Finding]]:
        """Read all that is stored, once, so that a damaged state is found before anything begins."""
        checkpoint = self.checkpoint
        with checkpoint.intact():
            _ = checkpoint.state
            for record in checkpoint.disks():
                record.check()
            for name in (_STARTED, "freeze_seconds", "seconds"):
                float(checkpoint.get(name) or 0.0)
            tracking = checkpoint.get("tracking")
            if tracking is not None:
                _ = tracking["rung"], dict(tracking["refused"])
            cutover = checkpoint.get("cutover")
            if cutover is not None:
                CutoverResult.from_dict(cutover)
            return (
                [SyncResult.from_dict(record) for record in checkpoint.records("passes")],
                [finding_from_dict(record) for record in checkpoint.records("findings")],
            )

    def _new_convergence(self) -> Convergence:
        sizes = sum(record.source.size for record in self.checkpoint.disks())
        return Convergence(
            budget=self.options.max_downtime,
            max_passes=int(self.options.max_passes),
            max_bytes=int(self.options.max_bytes * sizes) if sizes else None,
            freeze=self.freeze_seconds or 0.0,
        )

    # Events and findings.

    def emit(self, event: Event) -> None:
        """Tell the observer, or keep it until file systems are thawed."""
        if self._held_back is not None:
            self._held_back.append(event)
        elif self._observer is not None:
            self._observer(event)

    @contextlib.contextmanager
    def silence(self) -> Generator[None]:
        """While frozen: nothing is written, nobody is called. What there is to tell is told by :meth:`speak`."""
        self._held_back = []
        self.passes.quiet = True
        try:
            yield
        finally:
            self.passes.quiet = False

    def speak(self) -> None:
        """Tell and store what was held back."""
        events, self._held_back = self._held_back or [], None
        for event in events:
            if isinstance(event, Noticed):
                self.checkpoint.add_finding(to_plain(event.finding))
            self.emit(event)

    def note(
        self, severity: Severity, title: str, *, evidence: str = "", remedy: str = ""
    ) -> Finding:
        """Keep something the caller should know, once."""
        finding = Finding(severity, title, evidence, remedy)
        if finding not in self.findings:
            self.findings.append(finding)
            if self._held_back is None:
                self.checkpoint.add_finding(to_plain(finding))
            self.emit(Noticed(finding))
        return finding

    # Agents and disks.

    def ready(self) -> None:
        """Have agents, disks, tracker and data path, whatever was lost.

        Raises:
            InvalidRequestError: The disks are not those of the checkpoint.
        """
        if self.ends.is_open and self.works:
            return
        if self._recorded_ends() is None:
            # Before an instance is touched: what was begun there is nobody else's.
            self._record_ends()
        if isinstance(self.target, CvmTarget) and not self.ends.source.disks:
            self._introduce(self.target)
        for role, endpoint in (("source", self.source), ("target", self.target)):
            endpoint.begin("source" if role == "source" else "target", self.checkpoint.notes)
        self.ends.mend(recognise=self._recognise)
        self._note_agents()
        if not self.works:
            self._load()
        if self.ends.tracker_is_new:
            self._mind_the_gap()
        if self._recorded_ends() != self._called():
            # The same disks under other names.
            self._record_ends()

    def _called(self) -> tuple[str, str]:
        """Return what source and target are called, whatever the settings; an instance's disks find themselves."""
        return _name(self.source), _name(self.target)

    def _record_ends(self) -> None:
        self.checkpoint.put(_ENDS, self._called())

    def _recorded_ends(self) -> tuple[str, str] | None:
        """Return what they were called; ``None``: nothing has begun, or an older version began it."""
        record = self.checkpoint.get(_ENDS)
        if record is None:
            return None
        source, target = record
        return str(source), str(target)

    def _refuse_other_instance(self) -> None:
        """Keep an instance from being taken for one that this migration has prepared."""
        with self.checkpoint.intact():
            before = self._recorded_ends()
        if before is None or before[1] == self._called()[1]:
            return
        if isinstance(self.target, CvmTarget) or before[1].startswith(_CVM):
            self._refuse(before)

    def refuse_other_ends(self) -> None:
        """Keep the end of this migration from being told of another: no disk is opened any more that would show it.

        Raises:
            InvalidRequestError: The state directory is of another source or target.
        """
        before = self._recorded_ends()
        if before is not None and before != self._called():
            self._refuse(before)

    def _refuse(self, before: tuple[str, str]) -> NoReturn:
        raise InvalidRequestError(
            f"the state directory is of a migration of {' to '.join(before)}, not of {' to '.join(self._called())}",
            remedy="Name the same source and target, or use another state directory for another migration",
        )

    def _note_agents(self) -> None:
        """Keep what was noticed when agents were started, such as a host key nobody could know before."""
        for end in (self.ends.source, self.ends.target):
            if isinstance(end.agent, AgentSession):
                for text in end.agent.notes:
                    title, _, evidence = text.partition(": ")
                    self.note(Severity.INFO, title, evidence=evidence)

    def _introduce(self, target: CvmTarget) -> None:
        """Tell an instance what is coming, so that what does not fit is refused before its system is stopped."""
        agent, facts = self.ends.source.start()
        sizes: list[int] = []
        for path in self.source.disks:
            disk = agent.open_disk(path, mode="read")
            sizes.append(disk.size)
            agent.close_disk(disk)
        for finding in target.check_source(sizes, facts):
            if finding.severity is Severity.WARNING:
                self.note(
                    finding.severity,
                    finding.title,
                    evidence=finding.evidence,
                    remedy=finding.remedy,
                )

    def _mind_the_gap(self) -> None:
        """A tracker that has just begun knows nothing of what was written before."""
        self.proved = None
        for work in self.works:
            if work.touched - work.pending:
                work.suspect = work.suspect or "tracking began after a part had been copied"
        self.ends.tracker_is_new = False

    def _recognise(self, end: End) -> None:
        """Refuse other disks than the checkpoint knows."""
        known = self.checkpoint.disks()
        if known:
            before = [record.source if end.role == "source" else record.target for record in known]
            _recognise(before, self._identities(end), end.role)

    def _load(self) -> None:
        sources = self._identities(self.ends.source)
        targets = self._identities(self.ends.target)
        known = self.checkpoint.disks()
        if known:
            self.works = [
                Work(
                    disk=record.disk,
                    size=record.source.size,
                    touched=record.touched,
                    # What was never sent is pending as well.
                    pending=record.pending
                    | (ExtentMap.whole(record.source.size) - record.touched),
                )
                for record in known
            ]
            return
        works: list[Work] = []
        records: list[DiskRecord] = []
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            whole = ExtentMap.whole(source.size)
            nothing = ExtentMap()
            held = self.options.compare
            work = Work(
                disk=number,
                size=source.size,
                touched=whole if held else nothing,
                pending=nothing if held else whole,
            )
            works.append(work)
            records.append(DiskRecord(number, source, target, work.touched, work.pending))
        self.checkpoint.save_disks(records)
        self.works = works
        self.convergence = self._new_convergence()

    def _identities(self, end: End) -> list[DiskIdentity]:
        return [self._identity(end, disk) for disk in end.disks]

    @staticmethod
    def _identity(end: End, disk: OpenDisk) -> DiskIdentity:
        number = disk.identity.removeprefix("block:")
        facts = end.facts
        found = next((d for d in facts.disks if d.number == number), None) if facts else None
        return DiskIdentity(
            path=disk.path,
            # Targets may be larger, and a file grows: what matters is that it is the same file.
            size=disk.size,
            serial=None if found is None else found.serial or None,
            backing_file=None if found is None else found.backing_file,
        )

    def look_at_mounts(self) -> None:
        """See what is mounted on the source's disks now, in the order to freeze it."""
        self._mounts_by_disk = {}
        facts = self.ends.source.look()
        numbers = {
            number: disk.identity.removeprefix("block:")
            for number, disk in enumerate(self.ends.source.disks)
            if disk.kind == "block"
        }
        for disk, number in numbers.items():
            found = mounts_on(facts, [number])
            self._mounts_by_disk[disk] = frozenset(mount.mount_point for mount in found)
        self.mounts = tuple(mount.mount_point for mount in mounts_on(facts, numbers.values()))

    def disks_of(self, mounts: Iterable[str]) -> set[int]:
        """Return the disks that any of *mounts* lies on."""
        wanted = set(mounts)
        return {disk for disk, here in self._mounts_by_disk.items() if not here.isdisjoint(wanted)}

    def pairs(self) -> tuple[DiskPair, ...]:
        """Return which disk goes where."""
        return tuple(
            DiskPair(
                source=record.source.path,
                target=record.target.path,
                size=record.source.size,
                target_size=record.target.size,
            )
            for record in self.checkpoint.disks()
        )

    def begin(self) -> None:
        """Note that the migration begins now."""
        self.checkpoint.put(_STARTED, time.time())

    @property
    def started(self) -> float:
        """When the migration began, in seconds since 1970."""
        moment: float | None = self.checkpoint.get(_STARTED)
        return time.time() if moment is None else moment

    @property
    def size(self) -> int:
        """Bytes of all disks."""
        return sum(work.size for work in self.works)

    @property
    def tracked(self) -> bool:
        """Whether a tracker runs."""
        return self.ends.tracking is not None and self.ends.tracking.rung is not None

    @property
    def from_files(self) -> bool:
        """Whether the source is image files, which nobody freezes."""
        return all(disk.kind == "file" for disk in self.ends.source.disks)

    def save(self, works: Sequence[Work]) -> None:
        """Write down how far disks are."""
        known = {record.disk: record for record in self.checkpoint.disks()}
        self.checkpoint.save_disks(
            [
                attrs.evolve(
                    known[work.disk], touched=work.touched, pending=work.pending - work.in_flight
                )
                for work in works
            ]
        )

    # Passes.

    def next_number(self) -> int:
        """Return the number of a pass that begins."""
        self._number += 1
        return self._number

    def collect(self, kind: str) -> list[Tally]:
        """Take over what the tracker saw on every disk."""
        tallies = [Tally(work.disk) for work in self.works]
        for work, tally in zip(self.works, tallies, strict=True):
            changes = self.passes.collect(work, tally)
            if kind == "delta" and changes is not None and changes.certain:
                changed = (changes.written | changes.discarded).clip(0, work.size)
                work.deferred = work.hot.update(changed)[1] & work.pending
            else:
                work.deferred = ExtentMap()
        self._revive_tracker(tallies)
        return tallies

    def doubt_tracker(self) -> None:
        """Count that the tracker was not certain in a freeze: if it is not in the next pass, it is started anew."""
        self._doubts = max(self._doubts, _REVIVE_AFTER - 1)

    def _revive_tracker(self, tallies: Sequence[Tally]) -> None:
        """Start the tracker anew if it was uncertain twice running: it may be dead, and then stays so."""
        if not self.tracked or all(tally.certain for tally in tallies):
            self._doubts = 0
            return
        self._doubts += 1
        if self._doubts < _REVIVE_AFTER:
            return
        self._doubts = 0
        self.ends.restart_tracking()
        self._mind_the_gap()

    def one_pass(self, kind: str) -> SyncResult:
        """Collect, compare where the tracker does not vouch, send, read back; predict."""
        number = self.next_number()
        started = time.monotonic()
        tallies = self.collect(kind)
        self.save(self.works)
        todo = sum((work.pending - work.deferred).total + work.unsure.total for work in self.works)
        self.emit(PassStarted(number, kind, todo))
        for work, tally in zip(self.works, tallies, strict=True):
            self.passes.settle(work, tally, number=number)
            self.passes.send(work, work.pending - work.deferred, tally, number=number)
            tally.deferred = work.deferred.total
        return self.conclude(number, kind, tallies, time.monotonic() - started)

    def conclude(
        self, number: int, kind: str, tallies: Sequence[Tally], seconds: float
    ) -> SyncResult:
        """Make a pass a result, predict, store and tell it."""
        sent = sum(tally.sent for tally in tallies)
        moving = sum(tally.stream_seconds + tally.read_back_seconds for tally in tallies)
        compared = sum(tally.compared for tally in tallies)
        comparing = sum(tally.compare_seconds for tally in tallies)
        if compared and comparing:
            self.compare_rate = compared / comparing
        rate = sent / moving if sent and moving else None
        if sent >= _BULK:
            self._bulk_rate = rate
        # Zeroes cost the path nothing, and what changes is hardly ever zero: they would make it look faster.
        data = sent - sum(tally.zero for tally in tallies)
        applied = data / moving if data > 0 and moving else rate
        dirty, to_compare = self.outlook()
        judgement = self.convergence.update(
            PassFacts(
                dirty_bytes=dirty,
                sent_bytes=sent,
                seconds=seconds,
                applied_rate=applied,
                full=kind == "full",
                to_compare=to_compare,
                stops_source=not self.from_files,
                # Reading and comparing is at least as fast as reading, sending and writing.
                digest_rate=self.compare_rate or self._bulk_rate or rate,
            )
        )
        forecast = judgement.forecast
        self.passes.predicted_downtime = forecast.downtime
        result = SyncResult(
            number=number,
            kind=kind,
            disks=tuple(tally.done() for tally in tallies),
            seconds=seconds,
            rate=rate,
            dirty_bytes=dirty,
            dirty_rate=forecast.dirty_rate,
            predicted_downtime=forecast.downtime,
            verdict=judgement.verdict.value,
            reason=judgement.reason,
            remedy=judgement.remedy,
        )
        self.results.append(result)
        self.checkpoint.add_pass(number, result.to_dict())
        self.emit(
            PassEnded(
                number=number,
                kind=kind,
                sent=sent,
                wire=result.wire,
                compared=compared,
                seconds=seconds,
                dirty_bytes=dirty,
                predicted_downtime=forecast.downtime,
            )
        )
        return result

    def outlook(self) -> tuple[int | None, int]:
        """Return how many bytes a final pass now would send, if that is known, and how many it would compare."""
        if self.from_files:
            # Nobody should write to image files, and nobody vouches for that: they are compared.
            return 0, self.size
        outlook = self.passes.outlook(self.works)
        if self.options.prove == "frozen":
            return outlook.dirty, self.size
        return outlook.dirty, sum(
            work.size if work.disk in self.unfreezable else outlook.to_compare.get(work.disk, 0)
            for work in self.works
        )


def _name(endpoint: Endpoint) -> str:
    if isinstance(endpoint, CvmTarget):
        return endpoint.instance.description
    return endpoint.description


def _recognise(known: Sequence[DiskIdentity], found: Sequence[DiskIdentity], role: str) -> None:
    if len(known) != len(found):
        raise InvalidRequestError(
            f"the state directory is of a migration of {len(known)} disks, not {len(found)}",
            remedy="Name the same disks, or use another state directory",
        )
    for one, other in zip(known, found, strict=True):
        if not one.is_same(other):
            raise InvalidRequestError(
                f"the {role}'s disk {other.path} ({_names(other)}) is not the one this migration began with:"
                f" {one.path} ({_names(one)})",
                remedy="Name the disk it began with, or use another state directory for another disk",
                device=other.path,
            )


def _names(identity: DiskIdentity) -> str:
    parts = [f"{identity.size} bytes"]
    if identity.serial is not None:
        parts.append(f"serial number {identity.serial}")
    if identity.backing_file is not None:
        parts.append(f"backed by {identity.backing_file}")
    return ", ".join(parts)
