"""The moment the copy becomes the source: prove, quiesce, freeze, send the rest, prove, thaw.

While frozen, this process writes nothing, prints nothing and calls no observer: its state directory, its log and its
terminal's log may lie on what is frozen, and would hang it with the freeze in its hands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import attrs

from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import (
    CancelledError,
    ConditionError,
    CvmMigrateError,
    FreezeLostError,
    NotConvergingError,
    VerificationError,
)
from cvm_migrate.events import Frozen, HookCalled, PassStarted, Thawed
from cvm_migrate.migration._compare import comparison_chunk
from cvm_migrate.migration._job import Job
from cvm_migrate.migration._meter import LinkedToken
from cvm_migrate.migration._passes import Tally, Work
from cvm_migrate.migration._results import CutoverResult, SyncResult
from cvm_migrate.model import ExtentMap, Finding, FreezeResult, Severity, ThawResult
from cvm_migrate.units import MiB, format_seconds, format_size

Hook = Callable[[], object]

# Until the last delta fits, passes of the cutover's own.
_APPROACHES: Final = 3
# After the first collection in the freeze there should be nothing more; a completion may come late.
_COLLECTIONS: Final = 4
# Both ends at once, where nothing was measured: slow disks.
_COMPARE_RATE: Final = 100 * MiB
_FREEZES: Final = 2


@attrs.frozen
class Hooks:
    """What the caller does at its moments; see :meth:`~cvm_migrate.migration.Migration.cutover`."""

    on_quiesced: Hook | None = None
    on_proven: Hook | None = None
    on_thawed: Hook | None = None


@attrs.define
class _Outcome:
    """What happened in a freeze."""

    at: float
    began: float
    frozen: FreezeResult = attrs.Factory(lambda: FreezeResult((), {}, 0.0))
    thawed: ThawResult | None = None
    downtime: float = 0.0
    tallies: list[Tally] = attrs.field(factory=list[Tally])
    proven: int = 0
    findings: list[Finding] = attrs.field(factory=list[Finding])


class _TrackerUncertainError(CvmMigrateError):
    """The tracker lost changes, and comparing everything would outlast the freeze."""


class Cutover:
    """One cutover.

    Args:
        job: The migration.
        hooks: The caller's.
        max_downtime: What it may cost.
        force: Whatever it costs, and although something still writes.
    """

    def __init__(self, job: Job, hooks: Hooks, *, max_downtime: float, force: bool) -> None:
        self._job = job
        self._hooks = hooks
        self._max_downtime = max_downtime
        self._force = force
        self._findings: list[Finding] = []

    def run(self) -> CutoverResult:
        """Do it.

        Raises:
            NotConvergingError: It would cost more than allowed.
            VerificationError: The copy is not identical.
            FreezeLostError: The freeze ended before the proof.
        """
        job = self._job
        if job.options.prove == "running" and job.tracked and job.proved is None:
            job.proved = self._prove_running()
        last = self._approach() if job.tracked or not job.from_files else job.results[-1]
        if self._hooks.on_quiesced is not None:
            job.emit(HookCalled("on_quiesced"))
            self._hooks.on_quiesced()
            self._write_out()
            last = job.one_pass("delta")
        for attempt in range(_FREEZES):
            predicted = self._predict(last)
            try:
                outcome = self._freeze()
            except _TrackerUncertainError as error:
                if attempt == _FREEZES - 1:
                    raise FreezeLostError(
                        error.message,
                        remedy="Call cutover() again, with a longer freeze_limit if the source can bear it",
                    ) from error
                # The pass compares while everything runs; then only a little is left.
                job.doubt_tracker()
                last = job.one_pass("delta")
                continue
            return self._conclude(outcome, predicted)
        raise FreezeLostError("the tracker was not certain in any freeze")

    def _prove_running(self) -> int:
        """Read both disks afresh and compare; return the bytes found equal.

        Raises:
            VerificationError: A difference that no change explains came back after it was sent again.
        """
        job = self._job
        number = job.next_number()
        started = time.monotonic()
        tallies = job.collect("proof")
        job.save(job.works)
        job.emit(PassStarted(number, "proof", job.size))
        proven = 0
        for work, tally in zip(job.works, tallies, strict=True):
            job.passes.settle(work, tally, number=number)
            proven += self._prove_disk(work, tally, number)
        job.conclude(number, "proof", tallies, time.monotonic() - started)
        return proven

    def _prove_disk(self, work: Work, tally: Tally, number: int) -> int:
        passes = self._job.passes
        chunk = comparison_chunk(work.size)
        expected = work.whole - work.pending
        found = passes.compare(work, expected, tally, number=number)
        equal = (expected - found).total
        passes.collect(work, tally)
        # A block is marked when its write has completed; a moment earlier it can be read already.
        unexplained = ExtentMap() if work.suspect else found - work.pending.align(chunk, work.size)
        # The whole of each differing chunk: a change in it explains the difference, but need not be all of it.
        work.pending |= found
        passes.send(work, work.pending, tally, number=number)
        if not unexplained:
            return equal
        passes.collect(work, tally)
        again = passes.compare(work, unexplained - work.pending, tally, number=number)
        if again:
            passes.collect(work, tally)
            again -= work.pending.align(chunk, work.size)
        path = self._job.ends.source.disks[work.disk].path
        if again and not work.suspect:
            work.pending |= again
            first = next(iter(again))
            raise VerificationError(
                f"{again.total} bytes of the copy differ from {path}, though nothing wrote there and they were"
                " sent again",
                device=path,
                offset=first.offset,
                length=first.length,
            )
        self._findings.append(
            self._job.note(
                Severity.WARNING,
                f"{format_size(unexplained.total)} of the copy differed from {path} although no change was seen"
                " there; they were sent again and proven",
                evidence=f"first at offset {next(iter(unexplained)).offset}",
                remedy="If it recurs, suspect the memory or the disks of either end, or a writer that the kernel's"
                " block layer does not see",
            )
        )
        return equal

    def _write_out(self) -> None:
        if self._job.mounts:
            self._job.ends.source_agent.write_out(self._job.mounts)

    def _approach(self) -> SyncResult:
        """Write out and make delta passes until one fits.

        At least two, if there is anything to send: what the page cache held is sent by the first, so that the
        second is short and little gathers in the cache until the freeze has to write it out.

        Raises:
            NotConvergingError: None does.
        """
        job = self._job
        self._write_out()
        last = job.one_pass("delta")
        for number in range(1, _APPROACHES):
            if last.fits(max_downtime=self._max_downtime) and (number > 1 or not last.sent):
                break
            self._write_out()
            last = job.one_pass("delta")
        if self._force:
            return last
        if not last.fits(max_downtime=self._max_downtime):
            raise not_converging(last, self._max_downtime)
        if job.mounts and not last.fits(max_downtime=job.options.freeze_limit):
            raise not_converging(last, job.options.freeze_limit)
        return last

    def _predict(self, last: SyncResult) -> float | None:
        job = self._job
        if not job.tracked:
            return last.predicted_downtime
        dirty, to_compare = job.outlook()
        return job.convergence.forecast(dirty_bytes=dirty, to_compare=to_compare).downtime

    def _freeze(self) -> _Outcome:
        job = self._job
        agent, mounts, limit = job.ends.source_agent, job.mounts, job.options.freeze_limit
        outcome = _Outcome(at=time.time(), began=0.0)
        over = CancelToken()
        token = LinkedToken(job.cancel, over)
        # The agent's watchdog thaws at the limit; to go on sending after it would be in vain.
        timer = threading.Timer(limit, over.cancel)
        number = job.next_number()
        try:
            with job.silence():
                outcome.began = time.monotonic()
                try:
                    if mounts:
                        outcome.frozen = agent.freeze(mounts, limit=limit)
                        timer.start()
                    self._finish_frozen(outcome, number, token)
                finally:
                    if mounts:
                        timer.cancel()
                        outcome.thawed = agent.thaw()
                    # The agent's clock: from before the first file system froze to after the last one thawed.
                    outcome.downtime = (
                        time.monotonic() - outcome.began
                        if outcome.thawed is None
                        else outcome.thawed.held
                    )
        except CancelledError as error:
            if over.cancelled and not job.cancel.cancelled:
                raise self._lost(outcome) from error
            raise
        finally:
            self._tell(outcome)
        if outcome.thawed is not None and outcome.thawed.lost:
            raise self._lost(outcome)
        if self._hooks.on_thawed is not None:
            job.emit(HookCalled("on_thawed"))
            self._hooks.on_thawed()
        job.save(job.works)
        job.conclude(number, "final", outcome.tallies, outcome.downtime)
        return outcome

    def _tell(self, outcome: _Outcome) -> None:
        """Tell what happened while nobody could be told."""
        job = self._job
        if outcome.frozen.frozen or outcome.frozen.refused:
            job.emit(
                Frozen(outcome.frozen.frozen, dict(outcome.frozen.refused), outcome.frozen.seconds)
            )
        if outcome.thawed is not None:
            job.emit(Thawed(outcome.thawed.held, outcome.thawed.lost))
        job.speak()

    def _lost(self, outcome: _Outcome) -> FreezeLostError:
        return FreezeLostError(
            f"the freeze ended by itself after {format_seconds(self._job.options.freeze_limit)}, before the final sync"
            f" was done and proven ({format_size(sum(t.sent for t in outcome.tallies))} of it were)",
            seconds=self._job.options.freeze_limit,
        )

    def _finish_frozen(self, outcome: _Outcome, number: int, cancel: CancelToken) -> None:
        """Bring the copy to this very moment and prove it."""
        job = self._job
        outcome.tallies = [Tally(work.disk) for work in job.works]
        refused = job.disks_of(outcome.frozen.refused)
        job.unfreezable |= refused
        doubts: dict[int, str] = {}
        try:
            self._catch_up(outcome, number, cancel, refused, doubts)
        finally:
            for work in job.works:
                work.suspect = work.suspect or doubts.get(work.disk)
        if self._hooks.on_proven is not None:
            self._hooks.on_proven()

    def _catch_up(
        self,
        outcome: _Outcome,
        number: int,
        cancel: CancelToken,
        refused: set[int],
        doubts: dict[int, str],
    ) -> None:
        """Collect, compare where the tracker does not vouch, send, read back, until nothing is left.

        A disk is compared as a whole once: a tracker that is lost for good would have it done again and again.
        What it says after that goes into *doubts*, for the next pass after the freeze.
        """
        job = self._job
        compared: set[int] = set()
        for collection in range(_COLLECTIONS):
            for work, tally in zip(job.works, outcome.tallies, strict=True):
                if collection == 0 or job.tracked:
                    job.passes.collect(work, tally)
                    work.deferred = ExtentMap()
                    work.hot.sent()
                    if work.disk in compared and work.suspect is not None:
                        doubts[work.disk], work.suspect = work.suspect, None
                if collection == 0 and (job.options.prove == "frozen" or work.disk in refused):
                    work.suspect = work.suspect or "compared as a whole in the freeze"
            if collection and not any(work.pending or work.unsure for work in job.works):
                break
            self._check_comparison(outcome)
            compared |= {work.disk for work in job.works if work.suspect is not None}
            for work, tally in zip(job.works, outcome.tallies, strict=True):
                before = tally.compared, tally.changed
                job.passes.settle(work, tally, number=number, cancel=cancel)
                outcome.proven += (tally.compared - before[0]) - (tally.changed - before[1])
                job.passes.send(work, work.pending, tally, number=number, cancel=cancel)
            if not job.tracked:
                break
        else:
            self._still_written(outcome, refused)

    def _check_comparison(self, outcome: _Outcome) -> None:
        """Refuse to compare for longer than the freeze will last."""
        job = self._job
        to_compare = sum(work.unsure.total for work in job.works)
        if not job.mounts or not to_compare:
            return
        seconds = to_compare / (job.compare_rate or _COMPARE_RATE)
        left = job.options.freeze_limit - (time.monotonic() - outcome.began)
        if seconds > left:
            reasons = "; ".join(
                sorted({w.suspect or "a transfer was cut off" for w in job.works if w.unsure})
            )
            raise _TrackerUncertainError(
                f"{format_size(to_compare)} have to be compared ({reasons}), which takes about"
                f" {format_seconds(seconds)}; the freeze lasts {format_seconds(max(0.0, left))} more"
            )

    def _still_written(self, outcome: _Outcome, refused: set[int]) -> None:
        """Something writes to the disk although it should be quiet."""
        job = self._job
        disks = [
            work
            for work in job.works
            if job.passes.marked(work).total or work.pending or work.unsure
        ]
        paths = ", ".join(job.ends.source.disks[work.disk].path for work in disks)
        if not disks:
            return
        title = f"{paths} was still written to when it should have been quiet"
        remedy = (
            "Stop what writes there in on_quiesced: a file system that is not frozen, swap space, or a program that"
            " writes to the device itself"
        )
        if not self._force and any(work.disk not in refused for work in disks):
            raise ConditionError(title, remedy=f"{remedy}; or cutover(force=True)")
        outcome.findings.append(job.note(Severity.WARNING, title, remedy=remedy))

    def _conclude(self, outcome: _Outcome, predicted: float | None) -> CutoverResult:
        job = self._job
        findings = [*self._findings, *outcome.findings]
        findings += [
            job.note(
                Severity.WARNING,
                f"{mount} could not be frozen; its disk was compared as a whole instead",
                evidence=reason,
                remedy="What was written there meanwhile may be half in the copy: stop its services in on_quiesced",
            )
            for mount, reason in outcome.frozen.refused.items()
        ]
        if not job.mounts and not job.from_files:
            findings.append(
                job.note(
                    Severity.INFO,
                    "no file system on the source's disks is mounted, so nothing was frozen",
                    remedy="If a program writes to a disk itself, stop it in on_quiesced",
                )
            )
        proven = {"read back": sum(result.sent for result in job.results)}
        if job.proved is not None:
            proven["running"] = job.proved
        if outcome.proven:
            proven["frozen"] = outcome.proven
        return CutoverResult(
            at=outcome.at,
            downtime=outcome.downtime,
            predicted_downtime=predicted,
            frozen=outcome.frozen.frozen,
            refused=dict(outcome.frozen.refused),
            freeze_seconds=outcome.frozen.seconds,
            final_bytes=sum(tally.sent for tally in outcome.tallies),
            proven=proven,
            findings=tuple(findings),
        )


def not_converging(last: SyncResult, allowed: float) -> NotConvergingError:
    """Return the error with the numbers of the last pass."""
    reason = last.reason or "the downtime cannot be predicted"
    remedy = last.remedy or (
        f"Allow a downtime of {format_seconds(last.predicted_downtime * 1.2)}"
        if last.predicted_downtime is not None
        else "Call delta_sync() again"
    )
    return NotConvergingError(
        f"a cutover now would stop the source for longer than {format_seconds(allowed)}: {reason}",
        remedy=f"{remedy}; cutover(force=True) does it all the same",
        seconds=allowed,
    )
