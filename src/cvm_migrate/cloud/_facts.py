"""What the API says of an instance and its disks, as values. Sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import attrs

from cvm_migrate.cloud._json import JsonObject, child, children, texts
from cvm_migrate.cloud._states import STATES, InstanceState
from cvm_migrate.errors import ProtocolError
from cvm_migrate.units import GiB, format_size

# Instance families with ARM processors; the API has no field for it.
_ARM_FAMILIES: Final = ("SR1", "SR2", "CR1", "MR1")


@attrs.frozen
class InstanceDisk:
    """A disk of an instance.

    Attributes:
        disk_id: ``disk-...``; empty for a local disk.
        usage: Whether the instance boots from it.
        size: Bytes.
        disk_type: Such as ``CLOUD_PREMIUM``; ``LOCAL_...`` disks know no snapshots.
        path: Where the rescue system shows it, as far as the order tells: the system disk is ``/dev/vda``.
    """

    disk_id: str
    usage: Literal["system", "data"]
    size: int
    disk_type: str
    path: str

    @property
    def local(self) -> bool:
        """Whether it is a disk of the host machine, which knows no snapshots."""
        return self.disk_type.startswith("LOCAL")


@attrs.frozen
class LatestOperation:
    """The last thing that was done to an instance.

    Attributes:
        name: The call.
        state: ``SUCCESS``, ``OPERATING`` or ``FAILED``.
        request_id: The id its answer had.
        message: Why it failed.
    """

    name: str | None
    state: str | None
    request_id: str | None
    message: str | None = None


@attrs.frozen
class InstanceFacts:
    """An instance as ``DescribeInstances`` shows it.

    Attributes:
        state_text: The state as the API named it; differs from *state* only where that is ``UNKNOWN``.
        charge_type: Such as ``PREPAID`` or ``POSTPAID_BY_HOUR``.
        restrict_state: ``NORMAL``, ``EXPIRED`` or ``PROTECTIVELY_ISOLATED``.
        stop_charging_mode: ``STOP_CHARGING`` for an instance that was stopped in the mode that costs nothing.
        architecture: As far as the type's family tells.
        memory: Bytes.
        disks: The system disk, then the data disks in their order.
        security_groups: In the order in which their rules count.
        login_port: The port of the system's login service, as the API has it.
    """

    instance_id: str
    name: str
    state: InstanceState
    state_text: str
    region: str
    zone: str
    instance_type: str
    architecture: Literal["x86_64", "arm64"]
    cpus: int
    memory: int
    charge_type: str
    restrict_state: str
    stop_charging_mode: str
    os_name: str
    image_id: str
    disks: tuple[InstanceDisk, ...]
    private_addresses: tuple[str, ...]
    public_addresses: tuple[str, ...]
    security_groups: tuple[str, ...]
    login_port: int | None
    latest: LatestOperation

    @property
    def meaning(self) -> str:
        """The state in a few words."""
        return STATES[self.state].meaning

    @property
    def windows(self) -> bool:
        """Whether the API thinks that a Windows is installed."""
        return "windows" in self.os_name.lower()

    def __str__(self) -> str:
        """Name the instance, its state, type and disks."""
        disks = ", ".join(f"{disk.path} {format_size(disk.size)}" for disk in self.disks)
        return (
            f"{self.instance_id} ({self.name}) in {self.zone}: {self.state_text}, {self.meaning}; "
            f"{self.instance_type}, {self.cpus} CPU, {format_size(self.memory)}; {disks}"
        )

    @classmethod
    def from_wire(cls, instance: JsonObject, region: str) -> InstanceFacts:
        """Make the value from one element of ``InstanceSet``.

        Raises:
            ProtocolError: A field that is always there is missing.
        """
        try:
            state_text = str(instance["InstanceState"])
            instance_type = str(instance["InstanceType"])
            return cls(
                instance_id=str(instance["InstanceId"]),
                name=str(instance.get("InstanceName") or ""),
                state=InstanceState.parse(state_text),
                state_text=state_text,
                region=region,
                zone=str(child(instance, "Placement").get("Zone") or ""),
                instance_type=instance_type,
                architecture="arm64" if instance_type.startswith(_ARM_FAMILIES) else "x86_64",
                cpus=int(instance.get("CPU") or 0),
                memory=int(instance.get("Memory") or 0) * GiB,
                charge_type=str(instance.get("InstanceChargeType") or ""),
                restrict_state=str(instance.get("RestrictState") or "NORMAL"),
                stop_charging_mode=str(instance.get("StopChargingMode") or "NOT_APPLICABLE"),
                os_name=str(instance.get("OsName") or ""),
                image_id=str(instance.get("ImageId") or ""),
                disks=tuple(_disks(instance)),
                private_addresses=texts(instance, "PrivateIpAddresses"),
                public_addresses=texts(instance, "PublicIpAddresses"),
                security_groups=texts(instance, "SecurityGroupIds"),
                login_port=_port(instance.get("DefaultLoginPort")),
                latest=LatestOperation(
                    instance.get("LatestOperation"),
                    instance.get("LatestOperationState"),
                    instance.get("LatestOperationRequestId"),
                    instance.get("LatestOperationErrorMsg") or None,
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"DescribeInstances answered without a field that is always there: {error}",
                action="DescribeInstances",
            ) from error


def _disks(instance: JsonObject) -> Iterable[InstanceDisk]:
    system = child(instance, "SystemDisk")
    listed: list[tuple[Literal["system", "data"], JsonObject]] = []
    if system:
        listed.append(("system", system))
    listed.extend(("data", disk) for disk in children(instance, "DataDisks"))
    for index, (usage, disk) in enumerate(listed):
        yield InstanceDisk(
            str(disk.get("DiskId") or ""),
            usage,
            int(disk["DiskSize"]) * GiB,
            str(disk.get("DiskType") or ""),
            f"/dev/vd{chr(ord('a') + index)}",
        )


def _port(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value < 65536 else None
