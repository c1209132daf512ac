"""The actions of CVM 2017-03-12."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from cvm_migrate.testing import _tables
from cvm_migrate.testing._actions import Action, filtered, page
from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._world import REGIONS, Call, Machine, World, utc
from cvm_migrate.units import GiB

Answer = dict[str, Any]

_FILTERS: Final = [{"Name": str, "Values": [str]}]
_STOP_TYPES: Final = frozenset({"SOFT", "HARD", "SOFT_FIRST"})
_MOST_IDS: Final = 100

_BY_FILTER: Final[dict[str, Callable[[Machine], Sequence[str]]]] = {
    "zone": lambda machine: [machine.zone],
    "instance-id": lambda machine: [machine.id],
    "instance-name": lambda machine: [machine.name],
    "instance-state": lambda machine: [machine.state],
    "instance-charge-type": lambda machine: [machine.charge_type],
    "private-ip-address": lambda machine: machine.private_addresses,
    "public-ip-address": lambda machine: machine.public_addresses,
    "security-group-id": lambda machine: machine.security_groups,
    "uuid": lambda machine: [machine.uuid],
}


def _describe(machine: Machine) -> Answer:
    system = machine.disks[0]
    operation = machine.operation
    windows = "windows" in machine.os_name.lower()
    return {
        "Placement": {"Zone": machine.zone, "ProjectId": 0},
        "InstanceId": machine.id,
        "InstanceType": machine.instance_type,
        "CPU": machine.cpus,
        "Memory": machine.memory // GiB,
        "RestrictState": machine.restrict_state,
        "InstanceName": machine.name,
        "InstanceChargeType": machine.charge_type,
        "SystemDisk": {
            "DiskType": system.disk_type,
            "DiskId": system.id,
            "DiskSize": system.gib,
        },
        "DataDisks": [
            {
                "DiskSize": disk.gib,
                "DiskType": disk.disk_type,
                "DiskId": disk.id,
                "DeleteWithInstance": not disk.portable,
                "Encrypt": False,
            }
            for disk in machine.disks[1:]
        ],
        "PrivateIpAddresses": list(machine.private_addresses),
        "PublicIpAddresses": list(machine.public_addresses) or None,
        "IPv6Addresses": None,
        "PublicIPv6Addresses": None,
        "InternetAccessible": {
            "InternetChargeType": "TRAFFIC_POSTPAID_BY_HOUR",
            "InternetMaxBandwidthOut": 100 if machine.public_addresses else 0,
            "PublicIpAssigned": bool(machine.public_addresses),
        },
        "VirtualPrivateCloud": {
            "VpcId": "vpc-00000000",
            "SubnetId": "subnet-00000000",
            "AsVpcGateway": False,
        },
        "ImageId": "img-00000000",
        "RenewFlag": "NOTIFY_AND_MANUAL_RENEW" if machine.charge_type == "PREPAID" else None,
        "CreatedTime": utc(machine.created),
        "ExpiredTime": None,
        "OsName": machine.os_name,
        "SecurityGroupIds": list(machine.security_groups),
        "LoginSettings": {"Password": None, "KeyIds": None, "KeepImageLogin": None},
        "InstanceState": machine.state,
        "Tags": [],
        "StopChargingMode": machine.stop_charging_mode,
        "Uuid": machine.uuid,
        "LatestOperation": operation.name if operation else None,
        "LatestOperationState": operation.state if operation else None,
        "LatestOperationRequestId": operation.request_id if operation else None,
        "LatestOperationErrorMsg": operation.message if operation else None,
        "DisasterRecoverGroupId": "",
        "CamRoleName": "",
        "LicenseType": "TencentCloud",
        "DisableApiTermination": False,
        "DefaultLoginUser": "Administrator" if windows else "root",
        # The real service answers 22 or 3389. Here the rescue system's sshd has a port of its own.
        "DefaultLoginPort": machine.rescue.port,
        "IsolatedSource": "NOTISOLATED",
    }


def _choose(world: World, call: Call) -> list[Machine]:
    """Return the machines that ``InstanceIds`` or ``Filters`` name, in the order of their creation."""
    ids: list[str] | None = call.params.get("InstanceIds")
    filters: list[dict[str, Any]] = call.params.get("Filters") or []
    if ids and filters:
        raise ApiError(
            "InvalidParameter.OnlyOneOf", "InstanceIds and Filters cannot be used together."
        )
    if ids:
        if len(ids) > _MOST_IDS:
            raise ApiError(
                "InvalidParameterValue.LimitExceeded", "At most 100 instance ids are allowed."
            )
        return [world.machine(one, call.region) for one in ids]
    found = [machine for machine in world.machines.values() if machine.region == call.region]
    return filtered(found, call.params, _BY_FILTER)


def _describe_instances(world: World, call: Call) -> Answer:
    with world.lock:
        found = _choose(world, call)
        return {
            "TotalCount": len(found),
            "InstanceSet": [_describe(machine) for machine in page(found, call.params)],
        }


def _describe_instances_status(world: World, call: Call) -> Answer:
    with world.lock:
        found = _choose(world, call)
        return {
            "TotalCount": len(found),
            "InstanceStatusSet": [
                {"InstanceId": machine.id, "InstanceState": machine.state}
                for machine in page(found, call.params)
            ],
        }


def _check_stop_type(call: Call, *force: str) -> None:
    stop_type = call.params.get("StopType")
    if stop_type is not None and stop_type not in _STOP_TYPES:
        raise ApiError(
            "InvalidParameterValue", f"The StopType `{stop_type}` is not one of {_STOP_TYPES}."
        )
    if stop_type is not None and any(name in call.params for name in force):
        raise ApiError(
            "InvalidParameterCombination", f"StopType cannot be used together with {force[0]}."
        )


def check_password(password: str, *, windows: bool) -> None:
    """Hold a password against Tencent's rules.

    Raises:
        ApiError: It is too short, too long or too simple.
    """
    least, classes = (12, 3) if windows else (8, 2)
    kinds = ("[a-z]", "[A-Z]", "[0-9]", r"[^a-zA-Z0-9\s]")
    used = sum(bool(re.search(kind, password)) for kind in kinds)
    good = least <= len(password) <= 30 and used >= classes
    if not good or not password.isascii() or not password.isprintable() or " " in password:
        raise ApiError(
            "InvalidParameterValue.InvalidPassword",
            f"The password must have {least} to 30 characters of at least {classes} kinds.",
        )


def _enter_rescue_mode(world: World, call: Call, *, fails: bool) -> Answer:
    _check_stop_type(call, "ForceStop")
    with world.lock:
        machine = world.machine(call.params["InstanceId"], call.region)
        check_password(call.params["Password"], windows="windows" in machine.os_name.lower())
        _check_restricted(machine)
        if machine.architecture != "x86_64":
            raise ApiError(
                "UnsupportedOperation.ArmArchitecture",
                f"The instance `{machine.id}` has ARM processors, which rescue mode does not support.",
            )
        if machine.state == "STOPPED" and machine.stop_charging_mode == "STOP_CHARGING":
            raise ApiError(
                "UnsupportedOperation.StoppedModeStopCharging",
                f"The instance `{machine.id}` was stopped in the mode that stops charging.",
            )
        password: str = call.params["Password"]
        soft = _soft(call)

        def work() -> None:
            machine.guest.stop(soft=soft)
            machine.rescue.start(password, machine.rescue_disks)

        world.begin(machine, call.action, call.request_id, fails=fails, work=work)
    return {}


def _soft(call: Call) -> bool:
    """Whether the guest's system is asked before it is powered off."""
    forced = call.params.get("ForceStop") or call.params.get("ForceReboot")
    return call.params.get("StopType") != "HARD" and not forced


def _exit_rescue_mode(world: World, call: Call, *, fails: bool) -> Answer:
    with world.lock:
        machine = world.machine(call.params["InstanceId"], call.region)
        world.begin(machine, call.action, call.request_id, fails=fails, work=machine.rescue.stop)
    return {}


def _check_restricted(machine: Machine) -> None:
    if machine.restrict_state == "EXPIRED":
        raise ApiError(
            "UnsupportedOperation.InstanceStateIsolating",
            f"The instance `{machine.id}` has expired: renew it.",
        )
    if machine.restrict_state == "PROTECTIVELY_ISOLATED":
        raise ApiError(
            "UnsupportedOperation.InstanceStateBanning",
            f"The instance `{machine.id}` is isolated for its protection.",
        )


def _each(
    world: World, call: Call, *, fails: bool, work: Callable[[Machine], Callable[[], None]]
) -> Answer:
    """Begin the action on all instances, or on none if one refuses."""
    with world.lock:
        ids: list[str] = call.params["InstanceIds"]
        if not ids or len(ids) > _MOST_IDS:
            raise ApiError("InvalidParameterValue", "InstanceIds needs 1 to 100 instance ids.")
        machines = [world.machine(one, call.region) for one in dict.fromkeys(ids)]
        for machine in machines:
            if _tables.move(call.action, machine.state) is None:
                # Says why; nothing has begun yet.
                world.begin(machine, call.action, call.request_id)
        for machine in machines:
            world.begin(machine, call.action, call.request_id, fails=fails, work=work(machine))
    return {}


def _start_instances(world: World, call: Call, *, fails: bool) -> Answer:
    with world.lock:
        for one in call.params["InstanceIds"]:
            machine = world.machine(one, call.region)
            _check_restricted(machine)
            if machine.state == "STOPPED":
                machine.stop_charging_mode = "NOT_APPLICABLE"
        return _each(
            world,
            call,
            fails=fails,
            work=lambda machine: lambda: machine.guest.start(machine.files),
        )


def _stop_instances(world: World, call: Call, *, fails: bool) -> Answer:
    _check_stop_type(call, "ForceStop")
    mode = call.params.get("StoppedMode", "KEEP_CHARGING")
    if mode not in {"KEEP_CHARGING", "STOP_CHARGING"}:
        raise ApiError("InvalidParameterValue", f"The StoppedMode `{mode}` is not known.")

    soft = _soft(call)

    def work(machine: Machine) -> Callable[[], None]:
        def stop() -> None:
            machine.guest.stop(soft=soft)
            with world.lock:
                prepaid = machine.charge_type == "PREPAID"
                machine.stop_charging_mode = "NOT_APPLICABLE" if prepaid else mode

        return stop

    return _each(world, call, fails=fails, work=work)


def _reboot_instances(world: World, call: Call, *, fails: bool) -> Answer:
    _check_stop_type(call, "ForceReboot")

    def work(machine: Machine) -> Callable[[], None]:
        if machine.state == "RESCUE_MODE":
            return machine.rescue.restart
        return lambda: machine.guest.restart(machine.files, soft=_soft(call))

    return _each(world, call, fails=fails, work=work)


def _describe_regions(world: World, call: Call) -> Answer:
    del world, call
    regions = [
        {"Region": region, "RegionName": region, "RegionState": "AVAILABLE"} for region in REGIONS
    ]
    return {"TotalCount": len(regions), "RegionSet": regions}


def _describe_zones(world: World, call: Call) -> Answer:
    del world
    zones = [
        {
            "Zone": f"{call.region}-{number}",
            "ZoneName": f"{call.region} zone {number}",
            "ZoneId": str(number),
            "ZoneState": "AVAILABLE",
        }
        for number in (1, 2, 3)
    ]
    return {"TotalCount": len(zones), "ZoneSet": zones}


_DESCRIBE: Final = {"InstanceIds": [str], "Offset": int, "Limit": int}

ACTIONS: Final[dict[str, Action]] = {
    "DescribeInstances": Action(_describe_instances, {**_DESCRIBE, "Filters": _FILTERS}),
    "DescribeInstancesStatus": Action(_describe_instances_status, _DESCRIBE),
    "EnterRescueMode": Action.operation(
        _enter_rescue_mode,
        {
            "InstanceId": str,
            "Password": str,
            "Username": str,
            "ForceStop": bool,
            "StopType": str,
        },
        "InstanceId",
        "Password",
    ),
    "ExitRescueMode": Action.operation(_exit_rescue_mode, {"InstanceId": str}, "InstanceId"),
    "StartInstances": Action.operation(_start_instances, {"InstanceIds": [str]}, "InstanceIds"),
    "StopInstances": Action.operation(
        _stop_instances,
        {"InstanceIds": [str], "ForceStop": bool, "StopType": str, "StoppedMode": str},
        "InstanceIds",
    ),
    "RebootInstances": Action.operation(
        _reboot_instances,
        {"InstanceIds": [str], "ForceReboot": bool, "StopType": str},
        "InstanceIds",
    ),
    "DescribeRegions": Action(_describe_regions, {}, regional=False),
    "DescribeZones": Action(_describe_zones, {}),
}
