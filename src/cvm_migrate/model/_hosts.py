"""What a host says of itself: ``facts`` of the agent protocol as values."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen
class PartitionFacts:
    """A partition; *start* and *size* in bytes, *number* is ``MAJOR:MINOR``."""

    name: str
    path: str
    number: str
    start: int
    size: int
    holders: tuple[str, ...] = ()


@attrs.frozen
class DiskFacts:
    """A whole disk, as the kernel lists it; sizes in bytes.

    Attributes:
        slaves: Names of the disks and partitions this one is made of (device-mapper, md).
        holders: Names of the disks that are made of this one.
        backing_file: The file behind a loop device.
        aliases: Other paths of the same device, such as ``/dev/mapper/vg-root``.
        backing: What a loop device lies on, as the identity of an open disk says it; ``None``: not known.
    """

    name: str
    path: str
    number: str
    size: int
    logical_block_size: int
    physical_block_size: int
    rotational: bool
    removable: bool
    read_only: bool
    model: str | None
    serial: str | None
    backing_file: str | None
    slaves: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    partitions: tuple[PartitionFacts, ...] = ()
    aliases: tuple[str, ...] = ()
    backing: str | None = None


@attrs.frozen
class MountFacts:
    """A line of ``/proc/self/mountinfo``.

    Attributes:
        number: ``MAJOR:MINOR`` of the file system; ``0:N`` where it has no device of its own, as with btrfs.
        root: Which folder of the file system is mounted.
        devices: ``MAJOR:MINOR`` of all devices of a file system that spans several, as btrfs can.
        size: Bytes that the file system says it holds; ``None`` where it was not asked: it lies on no disk, or asking
            could hang.
        used: Bytes that it says it uses.
    """

    id: int
    parent: int
    number: str
    root: str
    mount_point: str
    fs_type: str
    source: str
    options: str
    devices: tuple[str, ...] = ()
    size: int | None = None
    used: int | None = None


@attrs.frozen
class TrackingFacts:
    """Which rungs of the ladder can be used: ``None``, or the reason why not."""

    rungs: dict[str, str | None]


@attrs.frozen
class HostFacts:
    """Everything an agent found out about its host without touching it."""

    system: str
    kernel: str
    machine: str
    python: str
    executable: str
    hostname: str
    boot_id: str
    euid: int
    time: float
    firmware: str
    memory_total: int
    memory_available: int
    os_release: dict[str, str] | None
    legacy_release: str | None
    lockdown: str | None
    dmi: dict[str, str]
    disks: tuple[DiskFacts, ...]
    mounts: tuple[MountFacts, ...]
    swaps: tuple[str, ...]
    addresses: tuple[str, ...]
    tracking: TrackingFacts
    can_freeze: bool
    tools: dict[str, str]
    services: tuple[str, ...]

    @classmethod
    def from_wire(cls, facts: dict[str, Any]) -> HostFacts:
        """Make the value from the JSON of the verb ``facts``.

        What a newer agent tells beside it is passed over.

        Raises:
            KeyError: A field that the protocol promises is missing.
            TypeError: A field is of another type than the protocol says.
        """
        plain = {name: facts[name] for name in _PLAIN}
        return cls(
            **plain,
            memory_total=facts["memory"]["total"],
            memory_available=facts["memory"]["available"],
            disks=tuple(_disk(disk) for disk in facts["disks"]),
            mounts=tuple(_mount(mount) for mount in facts["mounts"]),
            swaps=tuple(facts["swaps"]),
            addresses=tuple(facts["addresses"]),
            tracking=TrackingFacts(dict(facts["tracking"])),
            services=tuple(facts["services"]),
        )


_PLAIN = (
    "system",
    "kernel",
    "machine",
    "python",
    "executable",
    "hostname",
    "boot_id",
    "euid",
    "time",
    "firmware",
    "os_release",
    "legacy_release",
    "lockdown",
    "dmi",
    "can_freeze",
    "tools",
)


def _disk(disk: dict[str, Any]) -> DiskFacts:
    partitions = tuple(
        PartitionFacts(**_fields(PartitionFacts, part, "holders")) for part in disk["partitions"]
    )
    plain = _fields(DiskFacts, disk, "slaves", "holders", "aliases")
    return DiskFacts(partitions=partitions, backing=disk.get("backing"), **plain)


def _mount(mount: dict[str, Any]) -> MountFacts:
    plain = _fields(MountFacts, mount, "devices")
    return MountFacts(size=mount.get("size"), used=mount.get("used"), **plain)


def _fields(kind: type[attrs.AttrsInstance], given: dict[str, Any], *lists: str) -> dict[str, Any]:
    """Pick the fields of *kind*; those named in *lists* may be missing and become tuples."""
    picked: dict[str, Any] = {}
    for field in attrs.fields(kind):
        if field.name in lists:
            picked[field.name] = tuple(given.get(field.name) or ())
        elif field.default is attrs.NOTHING:
            picked[field.name] = given[field.name]
    return picked
