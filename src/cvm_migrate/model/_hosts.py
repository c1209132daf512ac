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
    """A whole disk, as the kernel lists it; sizes in bytes."""

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


@attrs.frozen
class MountFacts:
    """A line of ``/proc/self/mountinfo``."""

    id: int
    parent: int
    number: str
    root: str
    mount_point: str
    fs_type: str
    source: str
    options: str


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

        Raises:
            KeyError: A field that the protocol promises is missing.
        """
        disks = tuple(
            DiskFacts(
                **{
                    **disk,
                    "slaves": tuple(disk["slaves"]),
                    "holders": tuple(disk["holders"]),
                    "partitions": tuple(
                        PartitionFacts(**{**part, "holders": tuple(part["holders"])})
                        for part in disk["partitions"]
                    ),
                }
            )
            for disk in facts["disks"]
        )
        plain = {
            name: facts[name]
            for name in (
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
        }
        return cls(
            **plain,
            memory_total=facts["memory"]["total"],
            memory_available=facts["memory"]["available"],
            disks=disks,
            mounts=tuple(MountFacts(**mount) for mount in facts["mounts"]),
            swaps=tuple(facts["swaps"]),
            addresses=tuple(facts["addresses"]),
            tracking=TrackingFacts(dict(facts["tracking"])),
            services=tuple(facts["services"]),
        )
