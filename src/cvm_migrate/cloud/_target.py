"""An instance as the target of one migration: what is done to it before, after, and when it is given up.

Everything that is done is noted first, so that a new process with the same notes can go on, or undo it. The password of
the rescue system is never noted: a new process leaves and enters anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Callable, Generator, MutableMapping, Sequence
from typing import Final, Literal

import attrs

from cvm_migrate.cloud._checks import (
    TargetWish,
    check_facts,
    check_instance,
    check_login,
    login_questions,
)
from cvm_migrate.cloud._facts import InstanceFacts
from cvm_migrate.cloud._instance import CvmInstance, InstanceHealth, RescueAccess
from cvm_migrate.cloud._ledger import LedgerStatus, MigrationLedger
from cvm_migrate.cloud._security_groups import SecurityGroupRule, SecurityGroups
from cvm_migrate.cloud._snapshots import DiskSnapshot, Snapshots
from cvm_migrate.cloud._states import InstanceState
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import (
    CancelledError,
    CvmMigrateError,
    InstanceStateError,
    PermissionDeniedError,
    StepOrderError,
)
from cvm_migrate.model import Finding, Severity

_log: Final = logging.getLogger("cvm_migrate.cloud")

# What is noted.
_TAG: Final = "cvm.tag"
_WAS: Final = "cvm.was"
_SNAPSHOTS: Final = "cvm.snapshots"
_PORT: Final = "cvm.port"
_ENTERED: Final = "cvm.entered"
_WRITTEN: Final = "cvm.written"
_LEDGER: Final = "cvm.ledger"
# Since then the instance may run the copy.
_HANDED_OVER: Final = "cvm.handed-over"
# Since then the disks may be neither what they were nor the copy.
_UNDOING: Final = "cvm.undoing"

# How long a state is asked for once a step has been called off.
_LOOK_SECONDS: Final = 20.0

_RUNS: Final = frozenset({InstanceState.STARTING, InstanceState.RUNNING, InstanceState.REBOOTING})


@attrs.frozen
class AbortReport:
    """What giving up did to the instance.

    Attributes:
        state: The state it was left in.
        restored: Whether its disks are again what they were (or were never written).
        done: What was done, one sentence each.
        snapshots: Those of its disks that remain.
    """

    state: InstanceState
    restored: bool
    done: tuple[str, ...]
    snapshots: tuple[DiskSnapshot, ...] = ()


class RescueTarget:
    """An instance as the target of one migration.

    Args:
        instance: Which.
        notes: What is remembered about this migration, across processes; names and texts.
        wish: What the migration asks of it.
        ledger: Name for an entry in the Migration Service Platform; ``None`` for none.
    """

    def __init__(
        self,
        instance: CvmInstance,
        notes: MutableMapping[str, str],
        *,
        wish: TargetWish | None = None,
        ledger: str | None = None,
    ) -> None:
        self.instance = instance
        self._notes = notes
        self._wish = TargetWish() if wish is None else wish
        self._ledger_name = ledger
        self._snapshots = Snapshots(instance)
        self._groups = SecurityGroups(instance)

    def check(self, *, deadline: Deadline | None = None) -> tuple[Finding, ...]:
        """Tell what can be known before anything is touched."""
        wish = attrs.evolve(self._wish, take_over=self._wish.take_over or _ENTERED in self._notes)
        return check_instance(self.instance, wish, tag=self._notes.get(_TAG), deadline=deadline)

    def before_prepare(
        self, *, deadline: Deadline | None = None, cancel: CancelToken | None = None
    ) -> RescueAccess:
        """Make snapshots, open the data port, put the instance into waiting for migration.

        Can be repeated, also by a new process: what is done stays done.

        Raises:
            StepOrderError: The instance runs the copy already, or giving up has begun.
            CvmMigrateError: What the part raises that failed; the instance is as the remedy says.
        """
        self._refuse_undone()
        facts = self.instance.describe(deadline=deadline, cancel=cancel)
        self._refuse_live(facts)
        # What this migration entered it may leave and enter again; what someone else did, only if told so.
        renew = self._wish.take_over or _ENTERED in self._notes
        if _ENTERED not in self._notes:
            self._refuse(check_facts(facts, self._wish))
            # Once it is in rescue mode, its own system is off: a door that is closed has to show before that.
            self._refuse(check_login(facts, self._rules(facts, deadline, cancel)))
        if _TAG not in self._notes:
            self._notes[_TAG] = secrets.token_hex(6)
        if _WAS not in self._notes:
            resting = facts.state is InstanceState.STOPPED
            self._notes[_WAS] = "STOPPED" if resting else "RUNNING"
        if self._wish.snapshots and _SNAPSHOTS not in self._notes:
            if self.written:
                raise StepOrderError(
                    f"disks of {self.instance.instance_id} were written before their snapshots were made",
                    remedy="Go on with snapshots=False",
                )
            made = self._snapshots.create(self._notes[_TAG], deadline=deadline, cancel=cancel)
            self._note_snapshots(made)
        if self._wish.open_port and self._wish.data_port is not None and self._wish.source:
            self._notes[_PORT] = str(self._wish.data_port)
            self._groups.open_port(
                self._wish.data_port,
                self._wish.source,
                self._notes[_TAG],
                deadline=deadline,
                cancel=cancel,
            )
        self._notes[_ENTERED] = "perhaps"
        access = self.instance.enter_migration(
            renew=renew and not self.instance.knows_password, deadline=deadline, cancel=cancel
        )
        self._notes[_ENTERED] = "yes"
        self._report("migrating")
        return access

    def writing(self) -> None:
        """Note that from now on the disks may be written."""
        self._notes[_WRITTEN] = "perhaps"

    @property
    def written(self) -> bool:
        """Whether the disks may have been written."""
        return _WRITTEN in self._notes

    def after_cutover(
        self,
        *,
        connect: Callable[[str, int, float], bool] | None = None,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> InstanceHealth:
        """Bring the instance to its new system, start it, close the data port.

        The snapshots stay until :meth:`discard_snapshots`.

        Args:
            connect: See :meth:`CvmInstance.health`.
            deadline: For all of it.
            cancel: Ends the waits.

        Raises:
            StepOrderError: Giving up has begun: the disks are not the copy any more.
            CancelledError: *cancel* was set; the message says how the instance was left. Can be repeated.
            CvmMigrateError: What the part raises that failed; can be repeated.
        """
        self._refuse_undone()
        self._notes[_HANDED_OVER] = "perhaps"
        with self._called_off("finish()"):
            self.instance.leave_migration(deadline=deadline, cancel=cancel)
            self._notes[_ENTERED] = "left"
            self._close_port(deadline, cancel)
            health = self.instance.health(connect=connect, deadline=deadline, cancel=cancel)
        self._report("finish")
        return health

    def discard_snapshots(
        self, *, deadline: Deadline | None = None, cancel: CancelToken | None = None
    ) -> int:
        """Delete the snapshots, once the new system has proved itself; return how many there were."""
        snapshots = self.snapshots
        for number, snapshot in enumerate(snapshots, start=1):
            self._snapshots.delete([snapshot], deadline=deadline, cancel=cancel)
            self._note_snapshots(snapshots[number:])
        return len(snapshots)

    def _note_snapshots(self, snapshots: Sequence[DiskSnapshot]) -> None:
        self._notes[_SNAPSHOTS] = json.dumps([attrs.asdict(snapshot) for snapshot in snapshots])

    @property
    def snapshots(self) -> tuple[DiskSnapshot, ...]:
        """The snapshots of this migration."""
        listed: list[dict[str, str]] = json.loads(self._notes.get(_SNAPSHOTS, "[]"))
        return tuple(DiskSnapshot(**snapshot) for snapshot in listed)

    @property
    def half_way(self) -> str | None:
        """In which state the instance may be because of this migration; ``None`` where nothing is left to be done."""
        own, entered = self.instance.instance_id, self._notes.get(_ENTERED)
        if _UNDOING in self._notes:
            return f"{own} is off, or in rescue mode, and its disks are half put back: only abort() mends that"
        if entered in {"perhaps", "yes"}:
            return f"{own} waits for migration (rescue mode), or may: go on, or bring it back with abort()"
        if _HANDED_OVER not in self._notes and entered == "left":
            return f"{own} left rescue mode and was not started: abort() ends what it began"
        if _PORT in self._notes:
            return f"the rule for the data port of {own} may still be in its security group: repeat the last step"
        return None

    def on_abort(
        self,
        *,
        restore: Literal["if written", "always", "never"] = "if written",
        prove: Callable[[RescueAccess], bool] | None = None,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> AbortReport:
        """Give up: back to a bootable instance in the state it was in before.

        Leaves rescue mode, puts the disks back from the snapshots, starts the instance if it ran before, closes the
        data port. An instance whose disks were written and cannot be put back is left off: it holds half a system. One
        that runs the copy already is left alone.

        Args:
            restore: When the disks are put back.
            prove: Looks at disks that were put back, in rescue mode, which is entered once more for it; returns
                whether they are what they were. What it does not find proven is put back once more, and then
                left off.
            deadline: For all of it.
            cancel: Ends the waits.

        Raises:
            StepOrderError: The instance runs the copy already.
            CancelledError: *cancel* was set; the message says how the instance was left. Can be repeated.
            CvmMigrateError: The first part that failed; the others were tried. Can be repeated.
        """
        with self._called_off("abort()"):
            return self._give_up(restore, prove, deadline, cancel)

    # Inside

    def _give_up(
        self,
        restore: Literal["if written", "always", "never"],
        prove: Callable[[RescueAccess], bool] | None,
        deadline: Deadline | None,
        cancel: CancelToken | None,
    ) -> AbortReport:
        if _HANDED_OVER in self._notes:
            self._refuse_live(self.instance.describe(deadline=deadline, cancel=cancel))
            # It was not started: what it runs from now on is what giving up starts.
            self._notes.pop(_HANDED_OVER, None)
        done: list[str] = []
        failed: list[CvmMigrateError] = []
        try:
            self._close_port(deadline, cancel)
        except CvmMigrateError as error:
            failed.append(error)
        put_back = self.written
        restored = self._back(restore, prove, done, deadline, cancel)
        facts = self.instance.describe(deadline=deadline, cancel=cancel)
        if restored and self._notes.get(_WAS) == "RUNNING":
            facts = self.instance.start(deadline=deadline, cancel=cancel)
            done.append("it was started, as it ran before")
        if not restored:
            done.append(
                "it was left off: its disks were written and there are no snapshots to put them back. "
                "Migrate again, or reinstall it in the console"
            )
        if failed:
            raise failed[0]
        if restored and self.snapshots and not put_back:
            self.discard_snapshots(deadline=deadline, cancel=cancel)
            done.append("its snapshots were deleted: the disks were never written")
        self._report("fail")
        remain = self.snapshots
        if restored:
            # What comes next is a migration of its own; its snapshots are its own, too.
            for name in (_TAG, _WAS, _SNAPSHOTS, _ENTERED, _LEDGER):
                self._notes.pop(name, None)
        return AbortReport(facts.state, restored, tuple(done), remain)

    @contextlib.contextmanager
    def _called_off(self, step: str) -> Generator[None]:
        """Have the error of a step that was called off say how the instance was left."""
        try:
            yield
        except CancelledError as error:
            own = self.instance.instance_id
            try:
                # Not with the token: it is set, and this is what the caller has to know.
                facts = self.instance.describe(
                    deadline=Deadline(_LOOK_SECONDS, clock=self.instance.policy.clock)
                )
                left = f"{own} {facts.meaning} ({facts.state_text})"
            except CvmMigrateError as unknown:
                left = f"how {own} was left is not known ({unknown.message})"
            half = _UNDOING in self._notes
            if half:
                left += ", and its disks are half overwritten"
            raise CancelledError(
                f"{step} was called off: {left}",
                remedy=f"Call {step} again, it goes on from there"
                + ("; do not start the instance before" if half else ""),
                device=own,
            ) from error

    def _back(
        self,
        restore: Literal["if written", "always", "never"],
        prove: Callable[[RescueAccess], bool] | None,
        done: list[str],
        deadline: Deadline | None,
        cancel: CancelToken | None,
    ) -> bool:
        """Leave rescue mode and put the disks back; return whether they are what they were."""
        snapshots: Sequence[DiskSnapshot] = self.snapshots
        wanted = restore == "always" or (restore == "if written" and self.written)
        if _ENTERED not in self._notes and not self.written:
            return True
        facts = self.instance.leave_migration(start=False, deadline=deadline, cancel=cancel)
        self._notes[_ENTERED] = "left"
        done.append("it left rescue mode")
        if not (wanted and snapshots):
            return not self.written
        if facts.state is not InstanceState.STOPPED:
            self.instance.stop(deadline=deadline, cancel=cancel)
        self._notes[_UNDOING] = "perhaps"
        try:
            self._restore(snapshots, prove, done, deadline, cancel)
        except CancelledError:
            raise
        except CvmMigrateError as error:
            note = "The instance is off and its disks are half overwritten: do not start it before abort() succeeds"
            error.remedy = f"{error.remedy.rstrip('. ')}. {note}" if error.remedy else note
            raise
        self._notes.pop(_WRITTEN, None)
        self._notes.pop(_UNDOING, None)
        done.append(f"its disks were put back from {len(snapshots)} snapshots")
        return True

    def _restore(
        self,
        snapshots: Sequence[DiskSnapshot],
        prove: Callable[[RescueAccess], bool] | None,
        done: list[str],
        deadline: Deadline | None,
        cancel: CancelToken | None,
    ) -> None:
        """Put the disks back, and see to it that they are: the API does not tell of a roll-back that failed."""
        for again in (False, True):
            self._snapshots.restore(snapshots, deadline=deadline, cancel=cancel)
            if prove is None:
                return
            if self._looked_at(prove, deadline, cancel):
                done.append("its disks were looked at in rescue mode: they are what they were")
                return
            if not again:
                done.append("its disks were not what they were, and were put back once more")
        own = self.instance.instance_id
        raise InstanceStateError(
            f"the disks of {own} were put back twice, and are not what they were",
            remedy="Call abort() again. If it recurs, apply the snapshots "
            f"{', '.join(snapshot.snapshot_id for snapshot in snapshots)} in the console",
            device=own,
        )

    def _looked_at(
        self,
        prove: Callable[[RescueAccess], bool],
        deadline: Deadline | None,
        cancel: CancelToken | None,
    ) -> bool:
        self._notes[_ENTERED] = "perhaps"
        access = self.instance.enter_migration(deadline=deadline, cancel=cancel)
        try:
            return prove(access)
        finally:
            # Called off or not: what was put back for a look is brought back from it.
            self.instance.leave_migration(start=False, deadline=deadline)
            self._notes[_ENTERED] = "left"

    def _close_port(self, deadline: Deadline | None, cancel: CancelToken | None) -> None:
        if _PORT not in self._notes:
            return
        self._groups.close_port(self._notes[_TAG], deadline=deadline, cancel=cancel)
        self._notes.pop(_PORT, None)

    def _report(self, status: LedgerStatus) -> None:
        if self._ledger_name is None:
            return
        ledger = MigrationLedger(self.instance)
        try:
            if _LEDGER not in self._notes:
                source = self._wish.source or ""
                self._notes[_LEDGER] = ledger.register(self._ledger_name, source=source)
            ledger.update(self._notes[_LEDGER], status)
        except CvmMigrateError as error:
            # No migration fails for a line in a list.
            _log.warning("the migration could not be entered in the list: %s", error)

    def _rules(
        self, facts: InstanceFacts, deadline: Deadline | None, cancel: CancelToken | None
    ) -> Sequence[SecurityGroupRule]:
        groups = self._groups
        try:
            rules = groups.rules(facts.security_groups, deadline=deadline, cancel=cancel)
            return groups.known(rules, login_questions(facts), deadline=deadline, cancel=cancel)
        except PermissionDeniedError:
            # Who makes no rule needs no rights for rules.
            if self._wish.open_port:
                raise
            return ()

    def _refuse_live(self, facts: InstanceFacts) -> None:
        """A server that has begun to work on the copy is never stopped or overwritten."""
        if _HANDED_OVER in self._notes and facts.state in _RUNS:
            raise StepOrderError(
                f"{facts.instance_id} runs the copy already ({facts.state_text}); nothing was undone",
                remedy="Call finish() to end the migration. If the copy is not wanted, stop the instance in the "
                "console first, then call abort()",
                device=facts.instance_id,
            )

    def _refuse_undone(self) -> None:
        if _UNDOING in self._notes:
            raise StepOrderError(
                f"the disks of {self.instance.instance_id} were being put back: they are not the copy any more",
                remedy="Call abort() again until it succeeds; then the migration can begin anew",
                device=self.instance.instance_id,
            )

    def _refuse(self, findings: Sequence[Finding]) -> None:
        """Raise for the first finding that forbids it, before anything is touched."""
        for finding in findings:
            if finding.severity is Severity.BLOCKER:
                evidence = f" ({finding.evidence})" if finding.evidence else ""
                raise InstanceStateError(
                    f"{self.instance.instance_id} cannot be the target: {finding.title}{evidence}",
                    remedy=finding.remedy or None,
                    device=self.instance.instance_id,
                )
