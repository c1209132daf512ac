"""What a disk of the source is divided into, as a finding."""

from __future__ import annotations

from typing import Final

from cvm_migrate.disk import mounts_on, swaps_on
from cvm_migrate.model import DiskFacts, Finding, HostFacts, OpenDisk, PartitionFacts, Severity
from cvm_migrate.units import format_size

# Partitions that a finding names: a table has room for 128.
_LISTED: Final = 24


def partition_map(facts: HostFacts, disk: OpenDisk) -> Finding | None:
    """Return the partitions of a disk as the host's kernel knows them; ``None`` if it does not list the disk."""
    number = disk.identity.removeprefix("block:")
    found = next((one for one in facts.disks if one.number == number), None)
    if disk.kind != "block" or found is None:
        return None
    parts = found.partitions
    if not parts:
        return Finding(Severity.INFO, f"{disk.path} has no partitions", _holds(facts, found))
    lines = [
        f"{part.path}, {format_size(part.size)} at {format_size(part.start)}: {_holds(facts, part)}"
        for part in parts[:_LISTED]
    ]
    if len(parts) > _LISTED:
        lines.append(f"and {len(parts) - _LISTED} more")
    plural = "" if len(parts) == 1 else "s"
    return Finding(
        Severity.INFO, f"{disk.path} has {len(parts)} partition{plural}", "; ".join(lines)
    )


def _holds(facts: HostFacts, device: DiskFacts | PartitionFacts) -> str:
    mounts = [f"{one.fs_type} at {one.mount_point}" for one in mounts_on(facts, [device.number])]
    swaps = [f"swap {path}" for path in swaps_on(facts, [device.number])]
    return ", ".join(mounts + swaps) or "no mounted file system"
