"""Snapshots of the target's disks: made before the first write, put back on request, deleted when all is well."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs

from cvm_migrate.cloud._calls import InstanceCalls
from cvm_migrate.cloud._facts import InstanceFacts
from cvm_migrate.cloud._json import JsonObject, children
from cvm_migrate.cloud._states import InstanceState
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import (
    CvmMigrateError,
    InstanceStateError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedError,
)

# A snapshot that everyone has forgotten deletes itself after so many days.
KEEP_DAYS: Final = 30

# A cloud disk keeps so many (tencentcloud.com/document/product/362/32413); no call of the API tells it.
MOST_SNAPSHOTS: Final = 64

# A first snapshot of a large disk takes long; in seconds.
SNAPSHOT_SECONDS: Final = 4 * 3600.0

# Roll-backs begin some time after the call: a disk counts as back after so many quiet looks.
_QUIET_LOOKS: Final = 2

# A snapshot that was promised and is not listed after so many looks is not made.
_LOOKS_FOR_IT: Final = 20

# States of a disk that end by themselves.
_MOVING: Final = frozenset({"ATTACHING", "DETACHING", "ROLLBACKING", "EXPANDING"})


@attrs.frozen
class DiskSnapshot:
    """A snapshot of one disk.

    Attributes:
        snapshot_id: ``snap-...``.
        disk_id: Of which disk.
        name: What it is called in the console.
        until: When the cloud deletes it by itself, in ISO 8601; empty where that is not known.
    """

    snapshot_id: str
    disk_id: str
    name: str
    until: str = attrs.field(default="", eq=False)


class Snapshots:
    """The snapshots that migrations made of an instance's disks.

    Args:
        instance: Whose.
        now: The time, with its zone.
    """

    def __init__(
        self,
        instance: InstanceCalls,
        *,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._instance = instance
        self._now = now

    def create(
        self,
        tag: str,
        *,
        keep_days: int = KEEP_DAYS,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> tuple[DiskSnapshot, ...]:
        """Make a snapshot of each disk, or find the one made before with the same tag, and wait until they are done.

        Args:
            tag: Tells this migration's snapshots from others; at most 20 letters and digits.
            keep_days: After so many days the cloud deletes them by itself, at least 1.
            deadline: For all of it; ``None`` is :data:`SNAPSHOT_SECONDS`.
            cancel: Ends the waits.

        Raises:
            InvalidRequestError: Tag or days are wrong.
            UnsupportedError: A disk knows no snapshots; none is made then.
            QuotaError: The account may have no more.
            DeadlineError: They were not done in time; the next call goes on waiting.
        """
        if not tag.isalnum() or len(tag) > 20 or keep_days < 1:
            raise InvalidRequestError(
                f"no snapshots with tag {tag!r} for {keep_days} days",
                remedy="Use a tag of at most 20 letters and digits, and at least 1 day",
            )
        deadline = self._deadline(deadline)
        facts = self._instance.describe(deadline=deadline, cancel=cancel)
        unable = self.unable(facts, deadline=deadline, cancel=cancel)
        if unable:
            raise UnsupportedError(
                f"{', '.join(unable)} of {self._instance.instance_id} knows no snapshots",
                remedy="Go on without (snapshots=False), or make an image of the instance first",
                device=self._instance.instance_id,
            )
        until = self._now().astimezone(dt.UTC) + dt.timedelta(days=keep_days, minutes=10)
        made = [
            self._create_one(disk.disk_id, tag, until, deadline, cancel) for disk in facts.disks
        ]
        for snapshot in made:
            self._wait_done(snapshot, deadline, cancel)
        return tuple(made)

    def unable(
        self,
        facts: InstanceFacts,
        *,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> tuple[str, ...]:
        """Return the disks that know no snapshots."""
        deadline = self._deadline(deadline)
        cloud = [disk.disk_id for disk in facts.disks if disk.disk_id and not disk.local]
        disks = self._disks(cloud, deadline, cancel)
        return (
            *(disk.disk_id or disk.path for disk in facts.disks if disk.local or not disk.disk_id),
            *(key for key, disk in disks.items() if disk.get("SnapshotAbility") is False),
        )

    def full(
        self,
        facts: InstanceFacts,
        tag: str | None = None,
        *,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> dict[str, int]:
        """Return the disks that :meth:`create` would find no room for another snapshot on, and how many each has.

        Args:
            facts: Of the instance.
            tag: A disk that has its snapshot with this tag needs no other.
            deadline: For all of it.
            cancel: Ends the waits.
        """
        deadline = self._deadline(deadline)
        found: dict[str, int] = {}
        for disk_id in (disk.disk_id for disk in facts.disks if disk.disk_id and not disk.local):
            answer = self._instance.read(
                partial(self._instance.client.describe_snapshots, {"disk-id": disk_id}),
                doing=f"counting the snapshots of {disk_id}",
                deadline=deadline,
                cancel=cancel,
            )
            count = int(answer.get("TotalCount") or 0)
            if count < MOST_SNAPSHOTS:
                continue
            if tag is None or self._find(disk_id, _name(disk_id, tag), deadline, cancel) is None:
                found[disk_id] = count
        return found

    def restore(
        self,
        snapshots: Sequence[DiskSnapshot],
        *,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """Make the disks again what they were; the instance has to be off, and stays so.

        Elastic disks are detached for it, and attached again in their order. Can be repeated after a failure.

        Raises:
            InstanceStateError: The instance is not off.
            NotFoundError: A snapshot is gone.
            DeadlineError: It was not done in time.
        """
        deadline = self._deadline(deadline)
        facts = self._instance.describe(deadline=deadline, cancel=cancel)
        if facts.state is not InstanceState.STOPPED:
            raise InstanceStateError(
                f"disks of {facts.instance_id} cannot be put back while it {facts.meaning} ({facts.state_text})",
                remedy="Call leave_migration(start=False) or stop() first",
                device=facts.instance_id,
            )
        disks = self._disks([snapshot.disk_id for snapshot in snapshots], deadline, cancel)
        for snapshot in snapshots:
            if snapshot.disk_id not in disks:
                raise NotFoundError(
                    f"there is no disk {snapshot.disk_id} any more",
                    remedy="Make a new disk from its snapshot in the console",
                    device=snapshot.disk_id,
                )
        elastic = [
            key
            for key, disk in disks.items()
            if disk.get("Portable") and disk.get("DiskUsage") != "SYSTEM_DISK"
        ]
        for disk_id in elastic:
            self._detach(disk_id, deadline, cancel)
        for snapshot in snapshots:
            self._apply(snapshot, deadline, cancel)
        for snapshot in snapshots:
            if snapshot.disk_id in elastic:
                self._attach(snapshot.disk_id, deadline, cancel)

    def delete(
        self,
        snapshots: Sequence[DiskSnapshot],
        *,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """Delete snapshots; one that is gone already is no error."""
        deadline = self._deadline(deadline)
        for snapshot in snapshots:
            try:
                self._instance.read(
                    partial(self._instance.client.delete_snapshots, [snapshot.snapshot_id]),
                    doing=f"deleting {snapshot.snapshot_id}",
                    deadline=deadline,
                    cancel=cancel,
                )
            except NotFoundError:
                continue

    # Inside

    def _deadline(self, deadline: Deadline | None) -> Deadline:
        if deadline is not None:
            return deadline
        return Deadline(SNAPSHOT_SECONDS, clock=self._instance.policy.clock)

    def _disks(
        self, disk_ids: Sequence[str], deadline: Deadline, cancel: CancelToken | None
    ) -> dict[str, JsonObject]:
        if not disk_ids:
            return {}
        answer = self._instance.read(
            lambda: self._instance.client.describe_disks(disk_ids),
            doing="describing the disks",
            deadline=deadline,
            cancel=cancel,
        )
        found = {str(disk["DiskId"]): disk for disk in children(answer, "DiskSet")}
        return {key: found[key] for key in disk_ids if key in found}

    def _find(
        self, disk_id: str, name: str, deadline: Deadline, cancel: CancelToken | None
    ) -> DiskSnapshot | None:
        offset = 0
        while True:
            answer = self._instance.read(
                partial(self._instance.client.describe_snapshots, {"disk-id": disk_id}, offset),
                doing=f"looking for snapshots of {disk_id}",
                deadline=deadline,
                cancel=cancel,
            )
            page = children(answer, "SnapshotSet")
            for snapshot in page:
                state = snapshot.get("SnapshotState")
                if snapshot.get("SnapshotName") == name and state != "TORECYCLE":
                    until = str(snapshot.get("DeadlineTime") or "")
                    return DiskSnapshot(str(snapshot["SnapshotId"]), disk_id, name, until)
            offset += len(page)
            if not page or offset >= int(answer.get("TotalCount") or 0):
                return None

    def _create_one(
        self,
        disk_id: str,
        tag: str,
        until: dt.datetime,
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> DiskSnapshot:
        name = _name(disk_id, tag)
        found = self._find(disk_id, name, deadline, cancel)
        if found is not None:
            return found

        def look() -> JsonObject | None:
            made = self._find(disk_id, name, deadline, cancel)
            return None if made is None else {"SnapshotId": made.snapshot_id}

        text = until.isoformat(timespec="seconds")
        answer = self._instance.change(
            lambda: self._instance.client.create_snapshot(disk_id, name, text),
            doing=f"making a snapshot of {disk_id}",
            look=look,
            deadline=deadline,
            cancel=cancel,
        )
        return DiskSnapshot(str(answer["SnapshotId"]), disk_id, name, text)

    def _wait_done(
        self, snapshot: DiskSnapshot, deadline: Deadline, cancel: CancelToken | None
    ) -> None:
        seen, looks = False, 0
        while True:
            answer = self._instance.read(
                lambda: self._instance.client.describe_snapshots(
                    {"snapshot-id": snapshot.snapshot_id}
                ),
                doing=f"looking at {snapshot.snapshot_id}",
                deadline=deadline,
                cancel=cancel,
            )
            page = children(answer, "SnapshotSet")
            if page and page[0].get("SnapshotState") == "NORMAL":
                return
            looks += 1
            if not page and (seen or looks >= _LOOKS_FOR_IT):
                raise NotFoundError(
                    f"the snapshot {snapshot.snapshot_id} of {snapshot.disk_id} vanished while it was made",
                    remedy="Repeat the step; if it recurs, look at the quota of snapshots",
                    device=snapshot.disk_id,
                )
            seen = seen or bool(page)
            self._instance.pause(
                f"making the snapshot {snapshot.snapshot_id} of {snapshot.disk_id}",
                deadline,
                cancel,
            )

    def _apply(
        self, snapshot: DiskSnapshot, deadline: Deadline, cancel: CancelToken | None
    ) -> None:
        try:
            # Twice the same snapshot on the same disk is once.
            self._instance.read(
                lambda: self._instance.client.apply_snapshot(
                    snapshot.snapshot_id, snapshot.disk_id
                ),
                doing=f"putting {snapshot.disk_id} back",
                deadline=deadline,
                cancel=cancel,
            )
        except CvmMigrateError as error:
            error.message = f"{snapshot.disk_id} is not yet what it was: {error.message}"
            raise
        quiet = 0
        while quiet < _QUIET_LOOKS:
            self._instance.pause(f"putting {snapshot.disk_id} back", deadline, cancel)
            disk = self._disks([snapshot.disk_id], deadline, cancel).get(snapshot.disk_id, {})
            busy = disk.get("Rollbacking") or disk.get("DiskState") == "ROLLBACKING"
            quiet = 0 if busy else quiet + 1

    def _detach(self, disk_id: str, deadline: Deadline, cancel: CancelToken | None) -> None:
        instance = self._instance
        state = self._settled(disk_id, deadline, cancel)
        if state() == "UNATTACHED":
            return
        instance.change(
            lambda: instance.client.detach_disks(instance.instance_id, [disk_id]),
            doing=f"detaching {disk_id}",
            look=lambda: {} if state() == "UNATTACHED" else None,
            settled=lambda _error: {} if state() == "UNATTACHED" else None,
            deadline=deadline,
            cancel=cancel,
        )
        while state() != "UNATTACHED":
            instance.pause(f"detaching {disk_id}", deadline, cancel)

    def _attach(self, disk_id: str, deadline: Deadline, cancel: CancelToken | None) -> None:
        instance = self._instance
        state = self._settled(disk_id, deadline, cancel)
        if state() == "ATTACHED":
            return
        instance.change(
            lambda: instance.client.attach_disks(instance.instance_id, [disk_id]),
            doing=f"attaching {disk_id} again",
            look=lambda: {} if state() == "ATTACHED" else None,
            settled=lambda _error: {} if state() == "ATTACHED" else None,
            deadline=deadline,
            cancel=cancel,
        )
        while state() != "ATTACHED":
            instance.pause(f"attaching {disk_id} again", deadline, cancel)

    def _settled(
        self, disk_id: str, deadline: Deadline, cancel: CancelToken | None
    ) -> Callable[[], str]:
        """Return what tells a disk's state, once it is none that ends by itself: an earlier call may be under way."""

        def settled() -> str:
            while True:
                disk = self._disks([disk_id], deadline, cancel).get(disk_id, {})
                state = str(disk.get("DiskState"))
                if state not in _MOVING:
                    return state
                self._instance.pause(f"waiting while {disk_id} is {state}", deadline, cancel)

        return settled


def _name(disk_id: str, tag: str) -> str:
    """Return what the snapshot of a disk is called; it is found again by that."""
    return f"cvm_migrate {disk_id} {tag}"
