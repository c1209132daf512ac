"""Which device of a rescue system is which disk of the instance: names there need not follow the API's order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import attrs

from cvm_migrate.cloud import InstanceDisk
from cvm_migrate.errors import UnsafeTargetError
from cvm_migrate.model import HostFacts
from cvm_migrate.units import GiB, format_size

# A serial number of virtio has room for so many characters.
_SERIAL: Final = 20
# What a disk of an instance can be, but no loop device, volume, RAID or drive for discs.
_DISK: Final = re.compile(r"(?:vd|sd|hd|xvd)[a-z]+|nvme\d+n\d+")


@attrs.frozen
class Device:
    """A disk as the rescue system has it.

    Attributes:
        path: Its name there.
        size: Bytes.
        serial: On a CVM, the disk's id; ``None`` where there is none.
    """

    path: str
    size: int
    serial: str | None


def devices_of(facts: HostFacts) -> tuple[Device, ...]:
    """Return what of a rescue system's devices can be a disk of the instance, in the order of their names."""
    return tuple(
        Device(disk.path, disk.size, disk.serial)
        for disk in sorted(facts.disks, key=lambda disk: (len(disk.name), disk.name))
        if _DISK.fullmatch(disk.name) and not disk.removable
    )


def arrange(disks: Sequence[InstanceDisk], devices: Sequence[Device]) -> tuple[str, ...]:
    """Return the path of each disk, in their order.

    Serial numbers decide. Where there are none, each disk has to be told from all others by its size: names follow no
    order, and a rescue system may have a disk of its own.

    Args:
        disks: As the API lists them.
        devices: All that the rescue system has.

    Raises:
        UnsafeTargetError: They cannot be told apart, or one is not there.
    """
    by_serial = {device.serial: device for device in devices if device.serial}
    if any(disk.disk_id[:_SERIAL] in by_serial for disk in disks):
        chosen = [by_serial.get(disk.disk_id[:_SERIAL]) for disk in disks]
    else:
        chosen = [_only([device for device in devices if _fits(disk, device)]) for disk in disks]
    paths = [device.path for device in chosen if device is not None]
    if len(set(paths)) != len(disks):
        there = ", ".join(
            f"{one.path} {format_size(one.size)} {one.serial or 'without a serial number'}"
            for one in devices
        )
        raise UnsafeTargetError(
            f"it cannot be told which disk of the rescue system is which of "
            f"{', '.join(f'{disk.disk_id} ({format_size(disk.size)})' for disk in disks)}: there are {there or 'none'}",
            remedy="Look at them there (lsblk -o NAME,SIZE,SERIAL), and name the target's disks in the order of the"
            " source's",
        )
    return tuple(paths)


def _fits(disk: InstanceDisk, device: Device) -> bool:
    # The API counts in whole GiB.
    return disk.size - GiB < device.size <= disk.size


def _only(devices: Sequence[Device]) -> Device | None:
    return devices[0] if len(devices) == 1 else None
