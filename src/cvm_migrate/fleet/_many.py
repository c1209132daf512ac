"""Many migrations over any executor: one failing does not hurt the others, and all of it continues after a crash.

Theory of operation: each plan is one task; what it has reached lies in a folder of the plan's name below the fleet's
state directory, so a repeated call finds out there what is left to do. A task returns a value whatever happens. To call
the fleet off, a marker file is made in the state directory, which every task looks for: threads, processes and other
machines need nothing else in common.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import os
import pickle
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Final, Literal, Protocol

import attrs

from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import (
    CancelledError,
    ConditionError,
    CvmMigrateError,
    InvalidRequestError,
    TransientError,
)
from cvm_migrate.events import Event, Observer
from cvm_migrate.fleet._plan import Plan, refuse_conflicts
from cvm_migrate.fleet._report import Failure, FleetReport, Outcome
from cvm_migrate.migration import Migration, State

# How often a wish to end is looked for, in seconds.
_LOOK: Final = 0.25

_RECORD: Final = "plan.json"


class FleetObserver(Protocol):
    """Takes the events of all migrations, with the name of each one's plan; called from many threads."""

    def __call__(self, name: str, event: Event, /) -> None:
        """Take one event."""
        ...


class FleetHook(Protocol):
    """Takes part in a cutover as :meth:`~cvm_migrate.migration.Migration.cutover` says; told which plan's it is."""

    def __call__(self, plan: Plan, /) -> None:
        """Do what is to be done at that moment."""
        ...


def migrate_many(
    plans: Iterable[Plan],
    *,
    state: str | os.PathLike[str],
    executor: concurrent.futures.Executor | None = None,
    workers: int = 4,
    observer: FleetObserver | None = None,
    on_quiesced: FleetHook | None = None,
    on_proven: FleetHook | None = None,
    on_thawed: FleetHook | None = None,
    on_done: Callable[[Outcome], None] | None = None,
    cancel: CancelToken | None = None,
) -> FleetReport:
    """Run all steps of many migrations, side by side.

    Called again with the same state directory, it continues: finished migrations are not done again. What fails is
    in the report, with its remedy, and does not stop the others.

    Args:
        plans: What to migrate; no two with one name or one target.
        state: Directory for the state of all; each has a folder of its plan's name in it. Executors on other machines
            need it at the same path there, as on a shared file system with locks.
        executor: Where migrations run; ``None``: threads of this process. It is not shut down. With one whose workers
            are other processes, observer and hooks are called there, so they must pickle: functions of a module do.
        workers: How many run at the same time, without an *executor*.
        observer: Called with the plan's name and each event, where the migration runs.
        on_quiesced: As in :meth:`~cvm_migrate.migration.Migration.cutover`, with the plan.
        on_proven: As there.
        on_thawed: As there.
        on_done: Called in this thread with each outcome as it arrives.
        cancel: Calls off all: running migrations end at their next chunk, others do not start; what has been reached
            stays.

    Raises:
        InvalidRequestError: Plans are in each other's way, or *workers* is no number of them.
    """
    work = functools.partial(
        Work,
        observer=observer,
        on_quiesced=on_quiesced,
        on_proven=on_proven,
        on_thawed=on_thawed,
    )
    run = _Run(
        plans=tuple(plans),
        make=work,
        state=Path(state).absolute(),
        executor=executor,
        workers=workers,
        on_done=on_done,
        cancel=cancel,
    )
    return run()


def check_many(
    plans: Iterable[Plan],
    *,
    state: str | os.PathLike[str] | None = None,
    executor: concurrent.futures.Executor | None = None,
    workers: int = 4,
    observer: FleetObserver | None = None,
    on_done: Callable[[Outcome], None] | None = None,
    cancel: CancelToken | None = None,
) -> FleetReport:
    """Find out of many migrations whether they are possible; change nothing.

    Args:
        plans: What is to be migrated.
        state: Directory for the state of all, to leave out what is finished; it is not made.
        executor: As in :func:`migrate_many`.
        workers: As in :func:`migrate_many`.
        observer: As in :func:`migrate_many`.
        on_done: As in :func:`migrate_many`.
        cancel: As in :func:`migrate_many`, for tasks of this process.

    Raises:
        InvalidRequestError: Plans are in each other's way, or *workers* is no number of them.
    """
    work = functools.partial(Work, observer=observer, only_check=True)
    run = _Run(
        plans=tuple(plans),
        make=work,
        state=None if state is None else Path(state).absolute(),
        executor=executor,
        workers=workers,
        on_done=on_done,
        cancel=cancel,
        checks=True,
    )
    return run()


@attrs.frozen(kw_only=True)
class Work:
    """One task. It pickles if its hooks do."""

    plan: Plan
    state: Path | None
    marker: Path
    observer: FleetObserver | None = None
    on_quiesced: FleetHook | None = None
    on_proven: FleetHook | None = None
    on_thawed: FleetHook | None = None
    only_check: bool = False

    @property
    def cancelled(self) -> bool:
        """Whether the fleet was called off."""
        return self.marker.exists()

    def hook(self, given: FleetHook | None) -> Callable[[], None] | None:
        """Return a hook of the migration for one of the fleet."""
        return None if given is None else functools.partial(given, self.plan)

    def watch(self) -> Observer | None:
        """Return an observer of the migration for the fleet's."""
        return None if self.observer is None else functools.partial(self.observer, self.plan.name)


def work_on(work: Work) -> Outcome:
    """Do one plan; whatever happens is in the outcome.

    A function of the module, so that any executor can take it.
    """
    began = time.monotonic()
    if work.cancelled:
        return Outcome(work.plan.name, "not started", 0.0)
    left = _Left()
    state: Literal["cancelled", "failed"] = "failed"
    try:
        done = _check(work) if work.only_check else _migrate(work, left)
    except CancelledError as error:
        # Of this fleet, or of whoever else calls off single migrations: what is to be done is the same.
        state, failure = "cancelled", Failure.of(error)
    except CvmMigrateError as error:
        failure = Failure.of(error)
    except Exception as error:  # noqa: BLE001 - a hook may raise anything, and the others go on
        failure = _strange(error)
    else:
        return attrs.evolve(done, seconds=time.monotonic() - began)
    return Outcome(
        work.plan.name,
        state,
        time.monotonic() - began,
        failure=failure,
        half_way=left.half_way,
    )


@attrs.define
class _Left:
    """How a migration that failed left its instance."""

    half_way: str | None = None

    @contextlib.contextmanager
    def minding(self, migration: Migration) -> Generator[None]:
        """Look at it when something fails."""
        try:
            yield
        except BaseException:
            self.half_way = migration.half_way
            raise


def _migrate(work: Work, left: _Left) -> Outcome:
    plan = work.plan
    assert work.state is not None  # noqa: S101 - only checks do without
    folder = work.state / plan.name
    with plan.to_migration(state=folder, observer=work.watch()) as migration:
        # The state directory is ours from here on.
        _refuse_other_plan(plan, folder)
        earlier = migration.status().state == State.FINISHED.value
        with _cancelling(work, migration), left.minding(migration):
            report = migration.run(
                on_quiesced=work.hook(work.on_quiesced),
                on_proven=work.hook(work.on_proven),
                on_thawed=work.hook(work.on_thawed),
                force=plan.force,
            )
    return Outcome(plan.name, "finished", 0.0, earlier=earlier, report=report)


def _check(work: Work) -> Outcome:
    plan = work.plan
    folder = None if work.state is None else work.state / plan.name
    if folder is not None and not (folder / _RECORD).exists():
        folder = None
    with plan.to_migration(state=folder, observer=work.watch()) as migration:
        if folder is not None:
            _refuse_other_plan(plan, folder)
            if migration.status().state == State.FINISHED.value:
                return Outcome(plan.name, "finished", 0.0, earlier=True, report=migration.report())
        with _cancelling(work, migration):
            found = migration.check()
    return Outcome(plan.name, "possible" if found.possible else "not possible", 0.0, check=found)


def _refuse_other_plan(plan: Plan, folder: Path) -> None:
    """Keep a plan that was changed from being taken for done, or continued on other disks."""
    record = folder / _RECORD
    now = {"source": plan.source.identity, "target": plan.target.identity}
    try:
        if record.exists():
            before = json.loads(record.read_text(encoding="utf-8"))
            if before != now:
                raise InvalidRequestError(
                    f"the state in {folder} is of another migration: {_told(before)}; the plan"
                    f" {plan.name} says {_told(now)}",
                    remedy="Give the plan another name, or remove that folder if its migration is over",
                    device=str(folder),
                )
            return
        fresh = folder / f".{_RECORD}.{os.getpid()}"
        fresh.write_text(json.dumps(now), encoding="utf-8")
        fresh.replace(record)
    except OSError as error:
        raise ConditionError(
            f"{record}: {error.strerror}",
            remedy="Look at the rights and the free space of the state directory, then call it again",
            device=str(record),
            errno=error.errno,
        ) from error
    except ValueError as error:
        if isinstance(error, CvmMigrateError):
            raise
        raise InvalidRequestError(
            f"{record} is damaged: {error}",
            remedy="Remove that file if the folder is this plan's",
            device=str(record),
        ) from error


def _told(ends: object) -> str:
    if isinstance(ends, dict) and {"source", "target"} <= ends.keys():
        return f"{ends['source']} to {ends['target']}"
    return "nothing that can be read"


def _strange(error: BaseException) -> Failure:
    return Failure(
        type=type(error).__name__,
        message=str(error) or repr(error),
        remedy="If it comes from a hook or observer of yours, mend it there; else please report it",
        trace="".join(traceback.format_exception(error)),
    )


@contextlib.contextmanager
def _cancelling(work: Work, migration: Migration) -> Generator[None]:
    """Look for the marker while the migration runs."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK):
            if work.cancelled:
                migration.cancel()
                return

    watcher = threading.Thread(target=look, name=f"cancel-{work.plan.name}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


# In the caller's process.


class _MakeWork(Protocol):
    def __call__(self, *, plan: Plan, state: Path | None, marker: Path) -> Work: ...


_Future = concurrent.futures.Future[Outcome]


@attrs.frozen(kw_only=True)
class _Run:
    """One call of the caller's."""

    plans: tuple[Plan, ...]
    make: _MakeWork
    state: Path | None
    executor: concurrent.futures.Executor | None
    workers: int
    on_done: Callable[[Outcome], None] | None
    cancel: CancelToken | None
    checks: bool = False
    outcomes: dict[int, Outcome] = attrs.field(factory=dict[int, Outcome], init=False)

    def __call__(self) -> FleetReport:
        """Do it."""
        refuse_conflicts(self.plans)
        if isinstance(self.workers, bool) or not 1 <= self.workers <= 1024:
            raise InvalidRequestError(f"{self.workers!r} workers", remedy="Give 1 to 1024")
        started, began = time.time(), time.monotonic()
        with contextlib.ExitStack() as stack:
            marker = stack.enter_context(_marker(None if self.checks else self.state))
            executor = self.executor
            if executor is None:
                # Its end waits for the tasks, which have been waited for by then.
                executor = stack.enter_context(
                    concurrent.futures.ThreadPoolExecutor(
                        self.workers, thread_name_prefix="cvm-migrate"
                    )
                )
            futures: dict[_Future, int] = {}
            try:
                self._submit(executor, marker, futures)
                self._wait(marker, futures)
            except BaseException:
                # Nothing may go on that nobody waits for.
                marker.set()
                concurrent.futures.wait(futures)
                marker.over = True
                raise
            marker.over = True
        ordered = tuple(self.outcomes[number] for number in range(len(self.plans)))
        return FleetReport(ordered, started, time.monotonic() - began)

    def _submit(
        self, executor: concurrent.futures.Executor, marker: _Marker, futures: dict[_Future, int]
    ) -> None:
        for number, plan in enumerate(self.plans):
            work = self.make(plan=plan, state=self.state, marker=marker.file)
            try:
                futures[executor.submit(work_on, work)] = number
            except RuntimeError as error:
                self._ended(number, _not_taken(plan, error))

    def _wait(self, marker: _Marker, futures: dict[_Future, int]) -> None:
        waiting = set(futures)
        while waiting:
            if self.cancel is not None and self.cancel.cancelled:
                marker.set()
            over, waiting = concurrent.futures.wait(
                waiting, _LOOK, concurrent.futures.FIRST_COMPLETED
            )
            for future in sorted(over, key=futures.__getitem__):
                number = futures[future]
                self._ended(number, _outcome(self.plans[number], future))

    def _ended(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number] = outcome
        if self.on_done is not None:
            self.on_done(outcome)


@attrs.define
class _Marker:
    """The file that calls all tasks off; it is taken away when no task is left to look for it."""

    file: Path
    over: bool = False

    def set(self) -> None:
        """Call them off; can be done more than once."""
        self.file.touch()


@contextlib.contextmanager
def _marker(folder: Path | None) -> Generator[_Marker]:
    with contextlib.ExitStack() as stack:
        if folder is None:
            made = tempfile.TemporaryDirectory(prefix="cvm-migrate-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
        else:
            _make_folder(folder)
        marker = _Marker(folder / f".cancel-{uuid.uuid4().hex}")
        try:
            yield marker
        finally:
            if marker.over:
                marker.file.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConditionError(
            f"the state directory {folder} cannot be made: {error.strerror}",
            remedy="Give one that can be written, as --state or state=",
            device=str(folder),
            errno=error.errno,
        ) from error


def _not_taken(plan: Plan, error: RuntimeError) -> Outcome:
    """Return what to say of a task that the executor did not take."""
    if isinstance(error, concurrent.futures.BrokenExecutor):
        return Outcome(plan.name, "failed", 0.0, failure=Failure.of(_lost(plan, error)))
    refused = InvalidRequestError(
        f"the executor takes no work: {error}", remedy="Give one that has not been shut down"
    )
    return Outcome(plan.name, "failed", 0.0, failure=Failure.of(refused))


def _lost(plan: Plan, error: BaseException) -> TransientError:
    return TransientError(
        f"the worker of {plan.name}, or one beside it, has ended: {error}",
        remedy="Call it again with the same state directory, and a new executor; what was reached stays",
    )


def _outcome(plan: Plan, future: concurrent.futures.Future[Outcome]) -> Outcome:
    """Return what a task returned, or what kept it from returning anything."""
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        return Outcome(plan.name, "not started", 0.0)
    except concurrent.futures.BrokenExecutor as error:
        return Outcome(plan.name, "failed", 0.0, failure=Failure.of(_lost(plan, error)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        # Tasks return a value whatever happens: this is about getting it there.
        refused = InvalidRequestError(
            f"the work on {plan.name} cannot be sent to the executor's processes: {error}",
            remedy="Use functions of a module as observer and hooks, no lambdas or closures",
        )
        return Outcome(plan.name, "failed", 0.0, failure=Failure.of(refused))
    except Exception as error:  # noqa: BLE001 - each executor has errors of its own
        return Outcome(plan.name, "failed", 0.0, failure=_strange(error))
