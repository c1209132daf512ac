"""The actions of CBS 2017-03-12: disks and their snapshots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cvm_migrate.errors import ConditionError
from cvm_migrate.testing._actions import Action, filtered, page
from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._world import Call, Disk, Snapshot, World, copy_disk, new_id, utc

Answer = dict[str, Any]

_FILTERS: Final = [{"Name": str, "Values": [str]}]
_DAY: Final = 86400.0
_MOST_ATTACHED: Final = 20

_DISK_FILTERS: Final[dict[str, Callable[[Disk], Sequence[str]]]] = {
    "disk-id": lambda disk: [disk.id],
    "disk-usage": lambda disk: [disk.usage],
    "disk-state": lambda disk: [disk.state],
    "disk-type": lambda disk: [disk.disk_type],
    "disk-charge-type": lambda disk: [disk.charge_type],
    "portable": lambda disk: ["TRUE" if disk.portable else "FALSE"],
    "instance-id": lambda disk: [disk.instance_id or ""],
    "zone": lambda disk: [disk.zone],
}
_SNAPSHOT_FILTERS: Final[dict[str, Callable[[Snapshot], Sequence[str]]]] = {
    "snapshot-id": lambda snapshot: [snapshot.id],
    "snapshot-name": lambda snapshot: [snapshot.name],
    "snapshot-state": lambda snapshot: [snapshot.state],
    "disk-id": lambda snapshot: [snapshot.disk.id],
    "disk-usage": lambda snapshot: [snapshot.disk.usage],
    "zone": lambda snapshot: [snapshot.disk.zone],
}


def _disk(world: World, disk_id: str, region: str) -> Disk:
    disk = world.disks.get(disk_id)
    if disk is None or disk.region != region:
        raise ApiError("InvalidDiskId.NotFound", f"The disk `{disk_id}` is not found.")
    return disk


def _snapshot(world: World, snapshot_id: str, region: str) -> Snapshot:
    snapshot = world.snapshots.get(snapshot_id)
    if snapshot is None or snapshot.disk.region != region:
        raise ApiError("InvalidSnapshotId.NotFound", f"The snapshot `{snapshot_id}` is not found.")
    return snapshot


def _has_snapshots(disk: Disk) -> bool:
    return not disk.disk_type.startswith("LOCAL")


def _describe_disk(world: World, disk: Disk) -> Answer:
    count = sum(snapshot.disk is disk for snapshot in world.snapshots.values())
    return {
        "DiskId": disk.id,
        "DiskName": disk.id,
        "DiskType": disk.disk_type,
        "DiskUsage": disk.usage,
        "DiskSize": disk.gib,
        "DiskState": disk.state,
        "DiskChargeType": disk.charge_type,
        "Placement": {"Zone": disk.zone, "ProjectId": 0},
        "Attached": disk.instance_id is not None,
        "InstanceId": disk.instance_id or "",
        "Portable": disk.portable,
        "SnapshotAbility": _has_snapshots(disk),
        "SnapshotCount": count,
        "Rollbacking": disk.state == "ROLLBACKING",
        "RollbackPercent": 50 if disk.state == "ROLLBACKING" else 100,
        "Encrypt": False,
        "DeleteWithInstance": not disk.portable,
        "CreateTime": utc(disk.created),
    }


def _describe_disks(world: World, call: Call) -> Answer:
    with world.lock:
        ids: list[str] = call.params.get("DiskIds") or []
        if ids and call.params.get("Filters"):
            raise ApiError("InvalidParameter", "DiskIds and Filters cannot be used together.")
        # Unlike CVM, CBS leaves out what it does not find.
        found = [disk for disk in world.disks.values() if disk.region == call.region]
        if ids:
            found = [disk for disk in found if disk.id in ids]
        found = filtered(found, call.params, _DISK_FILTERS)
        chosen = page(found, call.params)
        return {
            "TotalCount": len(found),
            "DiskSet": [_describe_disk(world, disk) for disk in chosen],
        }


def _check_deadline(world: World, text: str | None) -> None:
    if text is None:
        return
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ApiError(
            "InvalidParameterValue", f"The Deadline `{text}` is not ISO 8601."
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment.timestamp() < world.now() + _DAY - 60:
        raise ApiError("InvalidParameterValue", "The Deadline must be at least a day ahead.")


def _create_snapshot(world: World, call: Call, *, fails: bool) -> Answer:
    _check_deadline(world, call.params.get("Deadline"))
    with world.lock:
        disk = _disk(world, call.params["DiskId"], call.region)
        if not _has_snapshots(disk):
            raise ApiError(
                "InvalidDisk.NotSupportSnapshot", f"The disk `{disk.id}` knows no snapshots."
            )
        held = sum(one.disk is disk for one in world.snapshots.values())
        if held >= world.snapshot_quota:
            raise ApiError(
                "InsufficientSnapshotQuota",
                f"The disk `{disk.id}` has {held} snapshots, as many as it may have.",
            )
        if any(one.disk is disk and one.state == "CREATING" for one in world.snapshots.values()):
            raise ApiError(
                "ResourceUnavailable.SnapshotCreating", f"A snapshot of `{disk.id}` is being made."
            )
        snapshot_id = new_id("snap")
        snapshot = Snapshot(
            snapshot_id,
            call.params.get("SnapshotName", ""),
            disk,
            world.folder / f"{snapshot_id}.img",
            deadline=call.params.get("Deadline"),
        )
        world.snapshots[snapshot.id] = snapshot
    # A snapshot is the disk as it was at the moment of the call: copied before the answer, and outside the lock.
    try:
        copy_disk(disk.path, snapshot.path)
    except ConditionError:
        with world.lock:
            _forget(world, snapshot)
        raise

    def finish() -> None:
        with world.lock:
            if fails:
                _forget(world, snapshot)
            else:
                snapshot.state = "NORMAL"

    world.later(finish)
    return {"SnapshotId": snapshot.id}


def _forget(world: World, snapshot: Snapshot) -> None:
    world.snapshots.pop(snapshot.id, None)
    snapshot.path.unlink(missing_ok=True)


def _describe_snapshot(snapshot: Snapshot) -> Answer:
    return {
        "SnapshotId": snapshot.id,
        "SnapshotName": snapshot.name,
        "SnapshotState": snapshot.state,
        "SnapshotType": "PRIVATE_SNAPSHOT",
        "Percent": 50 if snapshot.state == "CREATING" else 100,
        "DiskId": snapshot.disk.id,
        "DiskUsage": snapshot.disk.usage,
        "DiskSize": snapshot.disk.gib,
        "Placement": {"Zone": snapshot.disk.zone, "ProjectId": 0},
        "IsPermanent": snapshot.deadline is None,
        "DeadlineTime": snapshot.deadline or "",
        "Encrypt": False,
        "CopyFromRemote": False,
        "CopyingToRegions": [],
        "Images": [],
        "ImageCount": 0,
        "ShareReference": 0,
        "CreateTime": utc(snapshot.created),
    }


def _describe_snapshots(world: World, call: Call) -> Answer:
    with world.lock:
        ids: list[str] = call.params.get("SnapshotIds") or []
        if ids and call.params.get("Filters"):
            raise ApiError("InvalidParameter", "SnapshotIds and Filters cannot be used together.")
        found = [one for one in world.snapshots.values() if one.disk.region == call.region]
        if ids:
            found = [one for one in found if one.id in ids]
        found = filtered(found, call.params, _SNAPSHOT_FILTERS)
        return {
            "TotalCount": len(found),
            "SnapshotSet": [_describe_snapshot(one) for one in page(found, call.params)],
        }


def _apply_snapshot(world: World, call: Call, *, fails: bool) -> Answer:
    with world.lock:
        snapshot = _snapshot(world, call.params["SnapshotId"], call.region)
        disk = _disk(world, call.params["DiskId"], call.region)
        if snapshot.disk is not disk:
            raise ApiError(
                "InvalidParameterValue", f"`{snapshot.id}` is no snapshot of `{disk.id}`."
            )
        if snapshot.state != "NORMAL":
            raise ApiError(
                "ResourceUnavailable.SnapshotCreating", f"`{snapshot.id}` is {snapshot.state}."
            )
        if disk.state not in {"ATTACHED", "UNATTACHED"}:
            raise ApiError("InvalidDisk.Busy", f"The disk `{disk.id}` is {disk.state}.")
        if disk.instance_id is not None:
            state = world.machines[disk.instance_id].state
            if state != "STOPPED" or disk.portable:
                raise ApiError(
                    "InvalidDisk.Busy",
                    f"The disk `{disk.id}` is attached to an instance in the state {state}.",
                )
        before, disk.state = disk.state, "ROLLBACKING"
        snapshot.state = "ROLLBACKING"

    def finish() -> None:
        try:
            if not fails:
                copy_disk(snapshot.path, disk.path)
        finally:
            with world.lock:
                disk.state = before
                snapshot.state = "NORMAL"

    world.later(finish)
    return {}


def _delete_snapshots(world: World, call: Call) -> Answer:
    with world.lock:
        snapshots = [_snapshot(world, one, call.region) for one in call.params["SnapshotIds"]]
        for snapshot in snapshots:
            if snapshot.state != "NORMAL":
                raise ApiError(
                    "ResourceBusy", f"The snapshot `{snapshot.id}` is {snapshot.state}."
                )
        for snapshot in snapshots:
            _forget(world, snapshot)
    return {}


def _attach_disks(world: World, call: Call) -> Answer:
    with world.lock:
        machine = world.machine(call.params["InstanceId"], call.region)
        disks = [_disk(world, one, call.region) for one in call.params["DiskIds"]]
        if len(machine.disks) - 1 + len(disks) > _MOST_ATTACHED:
            raise ApiError("LimitExceeded.InstanceAttachedDisk", "At most 20 data disks.")
        for disk in disks:
            if disk.instance_id is not None or disk.state != "UNATTACHED":
                raise ApiError("InvalidDisk.Busy", f"The disk `{disk.id}` is not free.")
        for disk in disks:
            disk.instance_id = machine.id
            disk.state = "ATTACHING"

    def finish() -> None:
        with world.lock:
            machine.disks.extend(disks)
            for disk in disks:
                disk.state = "ATTACHED"

    world.later(finish)
    return {}


def _detach_disks(world: World, call: Call) -> Answer:
    with world.lock:
        disks = [_disk(world, one, call.region) for one in call.params["DiskIds"]]
        for disk in disks:
            if not disk.portable:
                raise ApiError("InvalidDisk.NotPortable", f"The disk `{disk.id}` is not portable.")
            if disk.instance_id is None or disk.state != "ATTACHED":
                raise ApiError("InvalidDisk.Busy", f"The disk `{disk.id}` is not attached.")
        for disk in disks:
            disk.state = "DETACHING"

    def finish() -> None:
        with world.lock:
            for disk in disks:
                if disk.instance_id is not None:
                    world.machines[disk.instance_id].disks.remove(disk)
                disk.instance_id = None
                disk.state = "UNATTACHED"

    world.later(finish)
    return {}


def _describe_instances_disk_num(world: World, call: Call) -> Answer:
    with world.lock:
        machines = [world.machine(one, call.region) for one in call.params["InstanceIds"]]
        return {
            "AttachDetail": [
                {
                    "InstanceId": machine.id,
                    "AttachedDiskCount": len(machine.disks),
                    "MaxAttachCount": _MOST_ATTACHED + 1,
                }
                for machine in machines
            ]
        }


def _describe_disk_config_quota(world: World, call: Call) -> Answer:
    del world
    usages = [call.params["DiskUsage"]] if call.params.get("DiskUsage") else None
    types = call.params.get("DiskTypes") or [
        "CLOUD_PREMIUM",
        "CLOUD_BSSD",
        "CLOUD_SSD",
        "CLOUD_HSSD",
    ]
    zones = call.params.get("Zones") or [f"{call.region}-1"]
    configurations = [
        {
            "Available": True,
            "DiskChargeType": call.params.get("DiskChargeType", "POSTPAID_BY_HOUR"),
            "DiskType": disk_type,
            "DiskUsage": usage,
            "Zone": zone,
            "MinDiskSize": 20 if usage == "SYSTEM_DISK" or disk_type == "CLOUD_HSSD" else 10,
            "MaxDiskSize": 2048 if usage == "SYSTEM_DISK" else 32000,
            "StepSize": 1 if usage == "SYSTEM_DISK" else 10,
        }
        for zone in zones
        for disk_type in types
        for usage in usages or ["SYSTEM_DISK", "DATA_DISK"]
    ]
    return {"DiskConfigSet": configurations}


def _describe_snapshot_overview(world: World, call: Call) -> Answer:
    with world.lock:
        found = [one for one in world.snapshots.values() if one.disk.region == call.region]
        size = float(sum(one.disk.gib for one in found))
        return {
            "TotalNums": len(found),
            "TotalSize": size,
            "FreeQuota": 80.0,
            "RealTradeSize": 0.0,
        }


_LIST: Final = {"Filters": _FILTERS, "Offset": int, "Limit": int, "Order": str, "OrderField": str}

ACTIONS: Final[dict[str, Action]] = {
    "DescribeDisks": Action(
        _describe_disks, {**_LIST, "DiskIds": [str], "ReturnBindAutoSnapshotPolicy": bool}
    ),
    "CreateSnapshot": Action.operation(
        _create_snapshot,
        {
            "DiskId": str,
            "SnapshotName": str,
            "Deadline": str,
            "DiskBackupId": str,
            "Tags": [{"Key": str, "Value": str}],
            "LocalSnap": bool,
            "DiskUsage": str,
        },
        "DiskId",
    ),
    "DescribeSnapshots": Action(_describe_snapshots, {**_LIST, "SnapshotIds": [str]}),
    "ApplySnapshot": Action.operation(
        _apply_snapshot,
        {
            "SnapshotId": str,
            "DiskId": str,
            "AutoStopInstance": bool,
            "AutoStartInstance": bool,
        },
        "SnapshotId",
        "DiskId",
    ),
    "DeleteSnapshots": Action(
        _delete_snapshots,
        {"SnapshotIds": [str], "DeleteBindImages": bool},
        frozenset({"SnapshotIds"}),
    ),
    "AttachDisks": Action(
        _attach_disks,
        {"InstanceId": str, "DiskIds": [str], "DeleteWithInstance": bool, "AttachMode": str},
        frozenset({"InstanceId", "DiskIds"}),
    ),
    "DetachDisks": Action(
        _detach_disks, {"InstanceId": str, "DiskIds": [str]}, frozenset({"DiskIds"})
    ),
    "DescribeInstancesDiskNum": Action(
        _describe_instances_disk_num, {"InstanceIds": [str]}, frozenset({"InstanceIds"})
    ),
    "DescribeDiskConfigQuota": Action(
        _describe_disk_config_quota,
        {
            "InquiryType": str,
            "DiskChargeType": str,
            "InstanceFamilies": [str],
            "DiskTypes": [str],
            "Zones": [str],
            "Memory": int,
            "DiskUsage": str,
            "CPU": int,
            "DedicatedClusterId": str,
        },
        frozenset({"InquiryType"}),
    ),
    "DescribeSnapshotOverview": Action(_describe_snapshot_overview, {}),
}
