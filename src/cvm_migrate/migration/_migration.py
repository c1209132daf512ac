"""The facade: a migration as steps that the caller puts in order."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

from cvm_migrate.closing import Closing
from cvm_migrate.cloud import CvmInstance
from cvm_migrate.deadline import CancelToken
from cvm_migrate.delta import LagMeter
from cvm_migrate.errors import (
    CancelledError,
    ConditionError,
    CvmMigrateError,
    InvalidRequestError,
    TransientError,
)
from cvm_migrate.events import Frozen, Lag, Observer, StepEnded, StepStarted, Thawed
from cvm_migrate.interfaces import Agent
from cvm_migrate.migration._checks import Checker
from cvm_migrate.migration._cutover import Cutover, Hook, Hooks, not_converging
from cvm_migrate.migration._cvm import CvmTarget
from cvm_migrate.migration._endpoints import Endpoint, ImageFile
from cvm_migrate.migration._job import Job
from cvm_migrate.migration._options import Options
from cvm_migrate.migration._path import PathCheck
from cvm_migrate.migration._results import (
    CheckReport,
    CutoverResult,
    Prepared,
    Report,
    Status,
    SyncResult,
)
from cvm_migrate.migration._steps import TRANSITIONS, State, Step, after
from cvm_migrate.model import ExtentMap, Finding, Severity

_Result = TypeVar("_Result")

# A probe must not stop the source for long, whatever happens.
_PROBE_LIMIT: Final = 5.0
_LAG_INTERVAL: Final = 2.0

Decision = Literal["cutover", "continue", "stop"]


class Migration(Closing):
    """Moves the disks of a running source to a target, in steps.

    A context manager: leaving it ends the agents and releases everything; what has been reached stays in the state
    directory, so that another ``Migration`` with the same directory continues. To give up for good, call
    :meth:`abort`.

    Every step returns a frozen value, can be repeated, and raises
    :class:`~cvm_migrate.errors.StepOrderError` where it does not fit (``docs/explanation/passes.md`` has the table).
    After a :class:`~cvm_migrate.errors.TransientError`, repeat the same step. Steps are called from one thread;
    :meth:`cancel` from any.

    Args:
        source: Where the disks are: an endpoint, or a list of image files.
        target: Where they go, in the same order; an instance stands for all its disks (:class:`CvmTarget`).
        state: Directory of the checkpoint; ``None``: what has been reached ends with this object.
        options: Limits and choices.
        observer: Called with every event (:mod:`cvm_migrate.events`).

    Raises:
        InvalidRequestError: Another process works with *state*, or the arguments make no sense.
    """

    def __init__(
        self,
        source: Endpoint | Sequence[ImageFile],
        target: Endpoint | CvmInstance | Sequence[ImageFile],
        *,
        state: str | os.PathLike[str] | None = None,
        options: Options | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._cancel = CancelToken()
        from_, to = _endpoint(source, "source"), _endpoint(target, "target")
        if isinstance(to, CvmTarget):
            to.expect(from_, cancel=self._cancel)
        self._job = Job(
            from_,
            to,
            state=None if state is None else Path(state),
            options=Options() if options is None else options,
            observer=observer,
            cancel=self._cancel,
        )
        if isinstance(to, CvmTarget):
            try:
                to.remember(self._job.checkpoint.notes)
            except BaseException:
                self._job.checkpoint.close()
                raise
        self._busy = threading.Lock()
        self._cutover: CutoverResult | None = None
        # A step has told its caller that it was cancelled.
        self._called_off = False
        self._closed = False

    def close(self) -> None:
        """End the agents and let go of the state directory; can be called more than once."""
        self._closed = True
        try:
            self._job.ends.close()
        finally:
            self._job.checkpoint.close()

    def cancel(self) -> None:
        """Ask the step that runs to end, from any thread; it raises :class:`~cvm_migrate.errors.CancelledError`.

        After that, this object only takes :meth:`abort`, and :meth:`finish` of what was cut over; a new one with the
        same state directory continues. These two can be cancelled as well, and called again.
        """
        self._cancel.cancel()

    def set_limits(self, *, bandwidth: int | None, read_limit: int | None) -> None:
        """Change the limits of the options while steps run, from any thread.

        They hold at once and for all that this object does from now on; another ``Migration`` takes them from its
        own options.

        Args:
            bandwidth: Bytes per second on the network; ``None``: no limit.
            read_limit: Bytes per second read from the source's disks; ``None``: no limit.

        Raises:
            InvalidRequestError: A limit makes no sense.
        """
        # Made only to be checked.
        Options(bandwidth=bandwidth, read_limit=read_limit)
        self._job.ends.set_limits(bandwidth, read_limit)

    # Steps.

    def check(self) -> CheckReport:
        """Find out everything that can be known without changing anything.

        Starts agents at both ends, reads a little of the source's disks, and measures for a second what the way of
        the data carries (``docs/reference/migration.md``).

        Returns:
            Findings with severity, evidence and remedy; what cannot be reached is a finding too.
        """
        with self._step(Step.CHECK):
            return Checker(self._job).check()

    def prepare(self) -> Prepared:
        """Open the disks, make image files, connect both agents, and start to track changes.

        From here on the target is written. Freezes and thaws once, to know how long that takes.

        Raises:
            UnsafeTargetError: The target is in use, too small, or the source itself. Nothing was written.
            NotFoundError: There is no such disk. Nothing was written.
            PermissionDeniedError: Rights are missing. Nothing was written.
            InvalidRequestError: The disks are not those of the state directory. Nothing was written.
        """
        with self._step(Step.PREPARE) as state:
            job = self._job
            resumed = job.resumed
            if state in {State.NEW, State.ABORTED}:
                job.begin()
            job.ready()
            job.look_at_mounts()
            if state in {State.NEW, State.ABORTED} and not job.target.reachable:
                self._measure()
            self._probe()
            tracking = job.ends.tracking
            return Prepared(
                disks=job.pairs(),
                rung=None if tracking is None else tracking.rung,
                refused={} if tracking is None else dict(tracking.refused),
                block=0 if tracking is None else tracking.block,
                mounts=job.mounts,
                freeze_seconds=job.freeze_seconds,
                resumed=resumed,
                findings=tuple(job.findings),
            )

    def full_sync(self) -> SyncResult:
        """Bring every byte to the target, and prove by reading back that it is there.

        What an earlier process (or, with ``Options(compare=True)``, anyone) has brought there is compared, and only
        what differs is sent. Called again later, it compares everything.
        """
        with self._step(Step.FULL_SYNC) as state:
            job = self._job
            if state is State.SYNCED:
                for work in job.works:
                    work.suspect = work.suspect or "a full comparison was asked for"
            return job.one_pass("full")

    def delta_sync(self) -> SyncResult:
        """Send what has changed since the last pass; after a cutover, take it back by that.

        Where the tracker does not vouch for its answer, digests of everything are compared.
        """
        with self._step(Step.DELTA_SYNC):
            return self._job.one_pass("delta")

    def hold(
        self,
        *,
        until: Callable[[], bool] | threading.Event,
        interval: float = 30.0,
    ) -> SyncResult:
        """Keep the target close to the source, pass after pass.

        Args:
            until: Ends it when it is set, or returns true; asked at least every two seconds.
            interval: Seconds from the beginning of a pass to that of the next.

        Returns:
            The last pass. :class:`~cvm_migrate.events.Lag` events say how far the target is behind.
        """
        with self._step(Step.HOLD):
            job = self._job
            is_over = until.is_set if isinstance(until, threading.Event) else until
            meter = LagMeter()
            while True:
                began = time.monotonic()
                meter.collected()
                last = job.one_pass("delta")
                meter.applied()
                while True:
                    job.cancel.check()
                    backlog = job.passes.dirty_now(job.works)
                    read = meter.read(backlog or 0, last.rate)
                    job.emit(Lag(read.lag, None if backlog is None else read.backlog))
                    if is_over():
                        return last
                    left = interval - (time.monotonic() - began)
                    if left <= 0:
                        break
                    job.cancel.wait(min(left, _LAG_INTERVAL))

    def cutover(
        self,
        *,
        on_quiesced: Hook | None = None,
        on_proven: Hook | None = None,
        on_thawed: Hook | None = None,
        max_downtime: float | None = None,
        force: bool = False,
    ) -> CutoverResult:
        """Freeze the source, send the rest, prove that both are identical, thaw.

        Tracking goes on afterwards: :meth:`delta_sync` takes the cutover back, another ``cutover`` repeats it,
        and neither needs a new full sync.

        Args:
            on_quiesced: Called just before the freeze, to stop or pause services.
            on_proven: Called while frozen, when the copy has been proven. It must be quick and must not write to
                the source's disks, not even a log: that would wait for the thaw.
            on_thawed: Called right after the thaw of a cutover that was not lost.
            max_downtime: Longest acceptable freeze in seconds; ``None``: as the options say.
            force: Cut over whatever is predicted, and although something still writes to the source's disks.

        Raises:
            NotConvergingError: The predicted downtime is above the limit; the message has the numbers.
            VerificationError: The copy is not identical, though it was sent again. Do not boot it.
            FreezeLostError: The freeze ended by itself too early. Nothing is lost: call it again.
        """
        with self._step(Step.CUTOVER):
            job = self._job
            job.look_at_mounts()
            limit = job.options.max_downtime if max_downtime is None else max_downtime
            hooks = Hooks(on_quiesced, on_proven, on_thawed)
            result = Cutover(job, hooks, max_downtime=limit, force=force).run()
            job.checkpoint.put("cutover", result.to_dict())
            self._cutover = result
            return result

    def finish(self) -> Report:
        """End the agents, leave the target in use, and report.

        Raises:
            InvalidRequestError: The state directory is of another source or target.
        """
        with self._step(Step.FINISH, connect=False) as state:
            job = self._job
            job.refuse_other_ends()
            if state is not State.FINISHED:
                self._keep_tracking_facts()
                self._end_agents()
                job.source.finish("source", job.checkpoint.notes)
                job.target.finish("target", job.checkpoint.notes)
                self._note_left()
                job.checkpoint.put("seconds", time.time() - job.started)
        return self.report()

    def abort(self) -> Report:
        """Give up: end the agents, put endpoints back into their former state, mark the target unusable."""
        with self._step(Step.ABORT, connect=False):
            job = self._job
            self._keep_tracking_facts()
            self._end_agents()
            job.works = []
            errors: list[CvmMigrateError] = []
            for role, endpoint in (("target", job.target), ("source", job.source)):
                try:
                    endpoint.abort(
                        "target" if role == "target" else "source", job.checkpoint.notes
                    )
                except CvmMigrateError as error:
                    errors.append(error)
            self._note_left()
            if errors:
                raise errors[0]
            job.checkpoint.put("cutover", None)
            self._cutover = None
        return self.report()

    def run(
        self,
        *,
        on_quiesced: Hook | None = None,
        on_proven: Hook | None = None,
        on_thawed: Hook | None = None,
        on_not_converging: Callable[[SyncResult], Decision] | None = None,
        force: bool = False,
    ) -> Report:
        """Do all steps in their default order, from wherever the migration is.

        A step that fails with a :class:`~cvm_migrate.errors.TransientError` is repeated, up to ``attempts`` times.

        Args:
            on_quiesced: As in :meth:`cutover`.
            on_proven: As in :meth:`cutover`.
            on_thawed: As in :meth:`cutover`.
            on_not_converging: Decides when more passes do not help: ``cutover`` whatever it costs, ``continue`` with
                another pass, or ``stop`` with the error.
            force: Cut over whatever the predicted downtime, once passes do not help.

        Raises:
            NotConvergingError: The source writes faster than the path carries, and nobody decided otherwise.
        """
        state = self._job.checkpoint.state
        if state in {State.NEW, State.ABORTED}:
            self._note_check(self.check())
        if state in {State.CUT_OVER, State.FINISHED}:
            return self.finish()
        self._persist(self.prepare)
        first = self.full_sync if self._job.checkpoint.state is State.PREPARED else self.delta_sync
        last = self._persist(first)
        forced = force
        while last.verdict != "fits":
            if last.verdict == "continue":
                last = self._persist(self.delta_sync)
                continue
            decision: Decision = "cutover" if force else "stop"
            if on_not_converging is not None and not force:
                decision = on_not_converging(last)
            if decision == "stop":
                raise not_converging(last, self._job.options.max_downtime)
            if decision == "cutover":
                forced = True
                break
            last = self._persist(self.delta_sync)
        self._persist(
            lambda: self.cutover(
                on_quiesced=on_quiesced, on_proven=on_proven, on_thawed=on_thawed, force=forced
            )
        )
        return self.finish()

    # What can be asked at any time.

    def status(self) -> Status:
        """Return where the migration is and what can be called next."""
        job = self._job
        state = job.checkpoint.state
        return Status(
            state=state.value,
            next_steps=tuple(step.value for step in Step if state in TRANSITIONS[step]),
            passes=len(job.results),
            sent=sum(result.sent for result in job.results),
            wire=sum(result.wire for result in job.results),
            bootable=state in {State.CUT_OVER, State.FINISHED},
        )

    @property
    def agents(self) -> tuple[Agent | None, Agent | None]:
        """The agents of the source and of the target that run now, for callers who want to ask them more."""
        return self._job.ends.source.agent, self._job.ends.target.agent

    def report(self) -> Report:
        """Return everything so far."""
        job = self._job
        tracking = job.ends.tracking
        known: dict[str, Any] = job.checkpoint.get("tracking") or {"rung": None, "refused": {}}
        seconds: float | None = job.checkpoint.get("seconds")
        record = job.checkpoint.get("cutover")
        return Report(
            state=job.checkpoint.state.value,
            source=job.source.description,
            target=job.target.description,
            disks=job.pairs(),
            started=job.started,
            seconds=time.time() - job.started if seconds is None else seconds,
            passes=tuple(job.results),
            rung=known["rung"] if tracking is None else tracking.rung,
            refused=known["refused"] if tracking is None else dict(tracking.refused),
            cutover=self._cutover or (None if record is None else CutoverResult.from_dict(record)),
            findings=(*job.findings, *self._unfinished()),
        )

    @property
    def half_way(self) -> str | None:
        """In which state the instance that is the target may be now, so that somebody has to go on or give up.

        ``None`` where nothing is left to be done: before the first change, and after a successful :meth:`finish` or
        :meth:`abort`.
        """
        job = self._job
        if not isinstance(job.target, CvmTarget):
            return None
        if job.checkpoint.state in {State.FINISHED, State.ABORTED}:
            return None
        return job.target.half_way(job.checkpoint.notes)

    def _unfinished(self) -> tuple[Finding, ...]:
        left = self.half_way
        if left is None:
            return ()
        title = "This migration is half way"
        return (Finding(Severity.WARNING, title, left, "Repeat the last step, or call abort()"),)

    def target_was_written(self, *, reason: str = "the copy was adapted") -> None:
        """Say that something was written on the target, such as changes that make it boot.

        A later :meth:`delta_sync` or :meth:`cutover` then compares everything instead of trusting the tracker
        alone, so that a cutover that is taken back costs no full sync.

        Args:
            reason: What the report says.
        """
        for work in self._job.works:
            work.suspect = reason

    # Inside.

    @contextlib.contextmanager
    def _step(self, step: Step, *, connect: bool = True) -> Generator[State]:
        """Around every step: its order, its events, and what a failure means for the agents."""
        if self._closed:
            raise InvalidRequestError(
                "this Migration is closed", remedy="Make a new one with the same state directory"
            )
        if not self._busy.acquire(blocking=False):
            raise InvalidRequestError(
                "another step is running: steps are called one after another",
                remedy="Wait for its end, or call cancel()",
            )
        job = self._job
        try:
            before = job.checkpoint.state
            reached = after(step, before)
            if self._called_off and step in {Step.FINISH, Step.ABORT}:
                # The caller knows that the work has ended, and asks for something else.
                self._called_off = False
                self._cancel.renew()
            self._called_off = self._cancel.cancelled
            self._cancel.check()
            started = time.monotonic()
            job.emit(StepStarted(step.value))
            try:
                if connect and step not in {Step.CHECK, Step.PREPARE}:
                    job.ready()
                yield before
            except BaseException as error:
                if isinstance(error, CancelledError):
                    self._called_off = self._cancel.cancelled
                # What an agent was doing when the step failed is not known.
                job.ends.suspect()
                said = (
                    "interrupted"
                    if isinstance(error, KeyboardInterrupt)
                    else str(error) or repr(error)
                )
                job.emit(StepEnded(step.value, time.monotonic() - started, said))
                raise
            if reached is not before:
                job.checkpoint.set_state(reached)
            job.emit(StepEnded(step.value, time.monotonic() - started))
        finally:
            self._busy.release()

    def _persist(self, step: Callable[[], _Result]) -> _Result:
        """Repeat a step whose failure passes."""
        attempts = int(self._job.options.attempts)
        for attempt in range(1, attempts + 1):
            try:
                return step()
            except CancelledError:
                raise
            except TransientError as error:
                if attempt == attempts:
                    raise
                self._job.note(
                    Severity.WARNING,
                    "a step was repeated",
                    evidence=error.message,
                )
                self._cancel.wait(min(0.5 * 2.0**attempt, 30.0))
        raise ConditionError("no attempt was allowed")

    def _note_check(self, report: CheckReport) -> None:
        """Keep what a check found; what forbids going on is refused by prepare() with an error of its kind."""
        for finding in report.findings:
            if finding.severity is Severity.WARNING:
                self._job.note(
                    finding.severity,
                    finding.title,
                    evidence=finding.evidence,
                    remedy=finding.remedy,
                )

    def _end_agents(self) -> None:
        """End both agents; keep which of them could not be told to."""
        ends = self._job.ends
        ends.close()
        for end in (ends.source, ends.target):
            # A rescue system takes its agent along when the instance leaves it.
            if isinstance(end.endpoint, CvmTarget):
                continue
            for agent in end.still_lingering():
                by = datetime.fromtimestamp(agent.until, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
                self._job.note(
                    Severity.WARNING,
                    f"{agent.description} could not be told to end",
                    evidence=f"if it still runs, it ends by itself after {agent.silence:g} s without a word, by {by}",
                    remedy="Nothing has to be done; until then it may hold disks there",
                )

    def _note_left(self) -> None:
        """Keep what the end of the migration left in the cloud."""
        target = self._job.target
        if isinstance(target, CvmTarget):
            for finding in target.left:
                self._job.note(
                    finding.severity,
                    finding.title,
                    evidence=finding.evidence,
                    remedy=finding.remedy,
                )

    def _measure(self) -> None:
        """Measure the data's path, where the target had no agent that check() could have measured it with."""
        job = self._job

        def tell(severity: Severity, title: str, evidence: str, remedy: str) -> None:
            job.note(severity, title, evidence=evidence, remedy=remedy)

        PathCheck(job, tell).try_pumps()

    def _probe(self) -> None:
        """Freeze and thaw once, and move nothing once: what a cutover costs whatever is dirty."""
        job = self._job
        agent = job.ends.source_agent
        if job.mounts:
            with job.silence():
                try:
                    frozen = agent.freeze(job.mounts, limit=_PROBE_LIMIT)
                finally:
                    thawed = agent.thaw()
            job.emit(Frozen(frozen.frozen, dict(frozen.refused), frozen.seconds))
            job.emit(Thawed(thawed.held, thawed.lost))
            job.speak()
            job.unfreezable = job.disks_of(frozen.refused)
            job.freeze_seconds = frozen.seconds if frozen.frozen else None
            job.checkpoint.put("freeze_seconds", job.freeze_seconds)
        started = time.monotonic()
        for work in job.works:
            agent.stream(
                job.ends.sender,
                work.disk,
                ExtentMap(),
                chunk=job.options.chunk,
                cancel=self._cancel,
            )
            job.ends.target_agent.read_back(job.ends.receiver, work.disk)
        job.convergence.probe(freeze=job.freeze_seconds, fixed=time.monotonic() - started)

    def _keep_tracking_facts(self) -> None:
        tracking = self._job.ends.tracking
        if tracking is not None:
            self._job.checkpoint.put(
                "tracking", {"rung": tracking.rung, "refused": dict(tracking.refused)}
            )


def _endpoint(given: Endpoint | CvmInstance | Sequence[ImageFile], role: str) -> Endpoint:
    if isinstance(given, Endpoint):
        return given
    if isinstance(given, CvmInstance) and role == "target":
        return CvmTarget(given)
    # What callers without a type checker give is anything.
    given_: object = given
    if isinstance(given_, list | tuple):
        items = cast("Sequence[object]", given_)
        files = [item for item in items if isinstance(item, ImageFile)]
        if files and len(files) == len(items):
            return ImageFile([path for item in files for path in item.disks])
    raise InvalidRequestError(
        f"{given!r} cannot be a {role}",
        remedy="Give LocalHost(disks=...), SshHost(...), ImageFile(path), or a list of image files",
    )
