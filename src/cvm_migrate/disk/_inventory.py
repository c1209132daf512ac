"""Which disks a host has, and which mounted file systems lie on them."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from cvm_migrate.disk._graph import Graph, Node, backing_path
from cvm_migrate.errors import InvalidRequestError, NotFoundError
from cvm_migrate.model import DiskFacts, ExtentMap, HostFacts, MountFacts, OpenDisk
from cvm_migrate.units import format_size

_UNFREEZABLE = MappingProxyType(
    {
        "vfat": "FAT has no freeze",
        "msdos": "FAT has no freeze",
        "exfat": "exFAT has no freeze",
        "fuseblk": "a file system in user space (such as ntfs-3g) has no freeze",
        "fuse": "a file system in user space has no freeze",
        "ntfs": "this NTFS driver has no freeze",
        "ntfs3": "this NTFS driver has no freeze",
        "hfs": "HFS has no freeze",
        "hfsplus": "HFS+ has no freeze",
        "minix": "Minix has no freeze",
        "udf": "UDF has no freeze",
        "zfs": "ZFS has no freeze, and its pool does not say which disks it lies on",
    }
)


# Disks that a message names: a host can have hundreds.
_LISTED = 12
_MADE = ("loop", "ram", "zram", "nbd")

# Nothing can write to these, so there is nothing to freeze, and FIFREEZE refuses them.
_READ_ONLY = frozenset({"cramfs", "erofs", "iso9660", "romfs", "squashfs"})


def find_disk(facts: HostFacts, path: str) -> DiskFacts:
    """Return the whole disk that *path* names.

    Args:
        facts: Of the host.
        path: A path such as ``/dev/sda``, another name the facts know, a bare name such as ``sda``, or
            ``MAJOR:MINOR``. Links such as those in ``/dev/disk/by-id`` are followed by the agent when it opens
            a disk; the facts do not know them.

    Raises:
        NotFoundError: The host has no such disk.
        InvalidRequestError: It is a partition of a disk.
    """
    node = Graph(facts).find(path)
    if node is None:
        raise NotFoundError(
            f"{facts.hostname} has no disk {path}", device=path, remedy=missing_remedy(facts, path)
        )
    if node.partition is not None:
        raise _a_partition(path, node.disk)
    return node.disk


def refuse_partition(facts: HostFacts, disk: OpenDisk) -> None:
    """Refuse a partition as what is moved.

    Args:
        facts: Of the host.
        disk: As the agent has opened it, whatever name it was given.

    Raises:
        InvalidRequestError: It is a partition of a disk.
    """
    if disk.kind != "block":
        return
    node = Graph(facts).find(disk.identity.removeprefix("block:"))
    if node is not None and node.partition is not None:
        raise _a_partition(disk.path, node.disk)


def _a_partition(path: str, disk: DiskFacts) -> InvalidRequestError:
    return InvalidRequestError(
        f"{path} is a partition of {disk.path}",
        device=path,
        remedy=f"Give the whole disk, {disk.path}: a system is moved with its partition table",
    )


def missing_remedy(facts: HostFacts, path: str) -> str:
    """Return what to do where a host has no disk or image file of that name.

    Args:
        facts: Of the host.
        path: What was looked for.
    """
    host = facts.hostname
    if path.startswith("/") and not path.startswith("/dev/"):
        return f"Look at the path on {host}: the file must be there, and its file system mounted"
    # Those that a system lies on first, then what is made in memory or of files.
    disks = sorted(facts.disks, key=lambda disk: disk.name.startswith(_MADE))
    known = [f"{disk.path} ({format_size(disk.size)})" for disk in disks if disk.size]
    there = ", ".join(known[:_LISTED]) + (", ..." if len(known) > _LISTED else "")
    found = f"its disks are: {there}" if known else "it lists no disk at all"
    return f"List the disks on {host} with lsblk, and name one of them; {found}"


def mounts_on(facts: HostFacts, disks: Iterable[str | DiskFacts]) -> tuple[MountFacts, ...]:
    """Return the mounted file systems that lie on *disks*, in the order to freeze them.

    A file system lies on a disk through its partitions, through device-mapper (LVM, LUKS, multipath) and md,
    and through a loop device whose file lies on a file system of the disk; also if only a part of it does. One
    entry a file system, however often it is mounted: the mount of its top folder that can be reached. Those
    that are read-only by their nature (squashfs, ISO 9660, ...) are left out.

    Those on loop devices come before those their files lie on; otherwise the most recently mounted first.

    Args:
        facts: Of the host.
        disks: Paths (or facts) of disks or partitions.

    Raises:
        NotFoundError: The host has no such disk.
    """
    graph = Graph(facts)
    mounts = graph_mounts(graph, graph.above([node_of(graph, disk) for disk in disks]))
    return tuple(mount for mount in mounts if mount.fs_type not in _READ_ONLY)


def graph_mounts(graph: Graph, nodes: Iterable[Node]) -> tuple[MountFacts, ...]:
    """Return one mount a file system of those directly on *nodes*, in the order to freeze them."""
    ranked = [
        (_depth(graph, mounts[0][1]), mounts[0][0], _to_freeze(graph, [m for _, m in mounts]))
        for mounts in file_systems(graph, nodes)
    ]
    # Mount ids are used again, so they tell no age; the kernel lists mounts by age.
    return tuple(mount for _, _, mount in sorted(ranked, key=lambda r: r[:2], reverse=True))


def file_systems(graph: Graph, nodes: Iterable[Node]) -> list[list[tuple[int, MountFacts]]]:
    """Return the file systems directly on *nodes*: all mounts of each, with their places among the facts."""
    wanted = frozenset(node.number for node in nodes)
    systems: dict[tuple[str, str], list[tuple[int, MountFacts]]] = {}
    for index, mount in enumerate(graph.facts.mounts):
        if wanted.isdisjoint(node.number for node in graph.devices_of(mount)):
            continue
        systems.setdefault(_file_system(graph, mount), []).append((index, mount))
    return list(systems.values())


def ranges_on(facts: HostFacts, mount: MountFacts, disk: str | DiskFacts) -> ExtentMap:
    """Return which bytes of a disk a mounted file system may write to.

    Exact where it lies on partitions of the disk; the whole disk where device-mapper, md or a file is in between,
    or where it lies on the disk itself; nothing where it does not lie on it. A file system that cannot be
    frozen, such as the FAT of an EFI partition, concerns no more of the disk than this.

    Raises:
        NotFoundError: The host has no such disk.
    """
    graph = Graph(facts)
    node = node_of(graph, disk)
    devices = graph.devices_of(mount)
    upper = {other.number for other in graph.above([node])}
    if not any(device.number in upper for device in devices):
        return ExtentMap()
    found: list[tuple[int, int]] = []
    for device in devices:
        if device.number not in upper:
            continue
        if device.partition is None or device.disk.number != node.disk.number:
            return ExtentMap.whole(node.size)
        found.append((device.partition.start, device.partition.size))
    return ExtentMap(found) & ExtentMap.whole(node.disk.size)


def swaps_on(facts: HostFacts, disks: Iterable[str | DiskFacts]) -> tuple[str, ...]:
    """Return the swap partitions and swap files in use that lie on *disks*.

    Raises:
        NotFoundError: The host has no such disk.
    """
    graph = Graph(facts)
    return graph_swaps(graph, graph.above([node_of(graph, disk) for disk in disks]))


def graph_swaps(graph: Graph, nodes: Iterable[Node]) -> tuple[str, ...]:
    """Return the swaps that are one of *nodes*, or a file directly on one."""
    wanted = frozenset(node.number for node in nodes)
    found: list[str] = []
    for swap in graph.facts.swaps:
        node = graph.find(swap)
        lies_on = [node] if node is not None else graph.file_on(backing_path(swap))
        if any(device.number in wanted for device in lies_on):
            found.append(swap)
    return tuple(found)


def unfreezable(fs_type: str) -> str | None:
    """Return why file systems of this type cannot be frozen; ``None`` where nothing is known against it.

    A type that is not known here is tried: the kernel's answer decides.
    """
    reason = _UNFREEZABLE.get(fs_type)
    if reason is None and fs_type.startswith("fuse."):
        reason = _UNFREEZABLE["fuse"]
    return reason


def reachable(facts: HostFacts, mount: MountFacts) -> bool:
    """Whether the mount's path leads to it, and not to something mounted over it."""
    at = Graph(facts).mount_at(mount.mount_point)
    return at is not None and at.id == mount.id


def node_of(graph: Graph, disk: str | DiskFacts) -> Node:
    """Return what a path or facts name.

    Raises:
        NotFoundError: The host has no such disk.
    """
    node = graph.find(disk.path if isinstance(disk, DiskFacts) else disk)
    if node is None:
        name = disk.path if isinstance(disk, DiskFacts) else disk
        raise NotFoundError(
            f"{graph.facts.hostname} has no disk {name}",
            device=name,
            remedy=missing_remedy(graph.facts, name),
        )
    return node


def _file_system(graph: Graph, mount: MountFacts) -> tuple[str, str]:
    """Return what is equal for two mounts of one file system."""
    devices = graph.devices_of(mount)
    if mount.number.startswith("0:") and devices:
        # Each subvolume of a btrfs may show a number of its own: the device decides.
        return "device", min(node.number for node in devices)
    return "number", mount.number


def _to_freeze(graph: Graph, mounts: list[MountFacts]) -> MountFacts:
    """Choose the mount by which a file system is frozen."""

    def rank(mount: MountFacts) -> tuple[bool, bool]:
        at = graph.mount_at(mount.mount_point)
        return (at is None or at.id != mount.id, mount.root != "/")

    return min(mounts, key=rank)


def _depth(graph: Graph, mount: MountFacts) -> int:
    """Return through how many loop devices a file system lies on its disks."""
    below = graph.below(graph.devices_of(mount))
    return sum(node.partition is None and node.disk.backing_file is not None for node in below)
