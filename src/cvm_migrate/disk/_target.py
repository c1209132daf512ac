"""Whether a disk may be overwritten: everything that speaks against it, found before anything is written."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

import attrs

from cvm_migrate.disk._graph import Graph, Node, backing_path
from cvm_migrate.disk._inventory import graph_mounts, graph_swaps
from cvm_migrate.errors import UnsafeTargetError
from cvm_migrate.model import Finding, HostFacts, OpenDisk, Severity
from cvm_migrate.units import format_size

# The least that any disk is written in, in bytes.
_SECTOR = 512


@attrs.frozen
class Place:
    """A disk, or a file that stands for one, on a host.

    Attributes:
        facts: Of the host.
        path: As the host knows it; for a file, an absolute path.
        size: Bytes; ``None``: not known, or a file that is still to be made.
        identity: Of :class:`~cvm_migrate.model.OpenDisk`, where it is open; it also finds a disk that is named
            through a link.
    """

    facts: HostFacts
    path: str
    size: int | None = None
    identity: str | None = None

    @classmethod
    def of(cls, facts: HostFacts, disk: OpenDisk) -> Place:
        """Return the place of an open disk."""
        return cls(facts, disk.path, disk.size, disk.identity)


def check_target(target: Place, source: Place | None = None) -> tuple[Finding, ...]:
    """Return what speaks against overwriting a disk.

    Args:
        target: What would be written.
        source: What would be copied there, on the same host or on another one.

    Returns:
        Findings, those of severity ``BLOCKER`` first; none where all is well. :func:`refuse_unsafe` raises them.
    """
    graph = Graph(target.facts)
    node = _device(graph, target)
    found: list[Finding] = []
    if source is not None:
        found += _sizes(target, node, source)
        if _same_host(target.facts, source.facts):
            found += _against_source(graph, target, node, source)
        else:
            found += _shared(node, source)
    if node is not None:
        found += _in_use(graph, node)
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def refuse_unsafe(findings: Iterable[Finding], device: str) -> None:
    """Raise if any finding forbids writing.

    Args:
        findings: Of :func:`check_target`.
        device: The disk they are about.

    Raises:
        UnsafeTargetError: One is a ``BLOCKER``. The message holds all of them, the remedy is the first one's.
    """
    blockers = [finding for finding in findings if finding.severity is Severity.BLOCKER]
    if blockers:
        raise UnsafeTargetError(
            "; ".join(
                f"{finding.title} ({finding.evidence})" if finding.evidence else finding.title
                for finding in blockers
            ),
            device=device,
            remedy=blockers[0].remedy or None,
        )


def uneven(source: str, size: int, target: str, block: int) -> Finding | None:
    """Return what is wrong if a target cannot hold a source to its last byte.

    Args:
        source: What would be copied.
        size: Its bytes.
        target: The device that would be written.
        block: Its logical block size: it takes nothing smaller.
    """
    if not size % block:
        return None
    round_up = f"truncate -s %{block} {source} appends the zeroes that are missing"
    if size % _SECTOR:
        # No disk has such a size.
        remedy = (
            "Look whether the image is whole and raw: compare its size with that of the disk it was made of, and"
            f" convert other formats (qemu-img convert -O raw). If it is, {round_up}"
        )
    else:
        remedy = f"Use a target with logical blocks of {_SECTOR} bytes; or, if the source is an image file, {round_up}"
    return _blocker(
        f"The size of {source} is no multiple of what the target {target} is written in",
        f"{size} bytes are {size // block} blocks of {block} bytes and {size % block} bytes",
        remedy,
    )


def _device(graph: Graph, place: Place) -> Node | None:
    if place.identity is not None:
        kind, _, number = place.identity.partition(":")
        return graph.find(number) if kind == "block" else None
    return graph.find(place.path)


def _same_host(one: HostFacts, other: HostFacts) -> bool:
    return bool(one.boot_id) and one.boot_id == other.boot_id


def _blocker(title: str, evidence: str, remedy: str) -> Finding:
    return Finding(Severity.BLOCKER, title, evidence, remedy)


def _size(place: Place, node: Node | None) -> int | None:
    return place.size if place.size is not None else None if node is None else node.size


def _sizes(target: Place, node: Node | None, source: Place) -> list[Finding]:
    source_node = _device(Graph(source.facts), source)
    needed, room = _size(source, source_node), _size(target, node)
    found: list[Finding] = []
    is_device = node is not None or (target.identity or "").startswith("block:")
    if needed is not None and room is not None and room < needed and is_device:
        found.append(
            _blocker(
                f"The target {target.path} is smaller than the source",
                f"{room} bytes, and the source has {needed}: {needed - room} too few",
                f"Use a disk of at least {format_size(needed)} ({needed} bytes)",
            )
        )
    if needed is not None and room is not None and room > needed and is_device:
        found.append(
            Finding(
                Severity.INFO,
                f"The target {target.path} is larger than the source",
                f"{room} bytes, and the source has {needed}",
                "The rest stays as it is; partitions can be grown after the move",
            )
        )
    if needed is not None:
        # An image file is written in sectors as well.
        block = _SECTOR if node is None else node.disk.logical_block_size
        odd = uneven(source.path, needed, target.path, block)
        found += [] if odd is None else [odd]
    if node is not None and source_node is not None:
        here, there = node.disk.logical_block_size, source_node.disk.logical_block_size
        if here != there:
            found.append(
                Finding(
                    Severity.WARNING,
                    f"The target {target.path} has logical blocks of {here} bytes, the source of {there}",
                    "A partition table counts in logical blocks",
                    "Use a target with the source's logical block size, or expect to write the partition"
                    " table anew",
                )
            )
    return found


def _against_source(
    graph: Graph, target: Place, node: Node | None, source: Place
) -> list[Finding]:
    """Compare two places on one host."""
    source_node = _device(graph, source)
    another = "Choose another target: writing there would destroy the source while it is read"
    same = _same_thing(target, node, source, source_node)
    if same is not None:
        return [_blocker(f"The target {target.path} is the source itself", same, another)]
    lower = _lies_on(graph, target, node)
    upper = _lies_on(graph, source, source_node)
    if source_node is not None and any(n.number == source_node.number for n in lower):
        return [
            _blocker(
                f"The target {target.path} lies on the source {source.path}",
                "what is written to it would be written to the source",
                "Choose a target that is not stored on the source's disks",
            )
        ]
    if node is not None and any(n.number == node.number for n in upper):
        return [
            _blocker(
                f"The source {source.path} lies on the target {target.path}",
                "what is written to the target would overwrite it",
                another,
            )
        ]
    return []


def _same_thing(
    target: Place, node: Node | None, source: Place, source_node: Node | None
) -> str | None:
    """Return the evidence that both are one thing, or None."""
    if target.identity is not None and target.identity == source.identity:
        return f"both are {target.identity}"
    if node is not None and source_node is not None:
        return _same_device(node, source_node)
    if node is not None:
        return _same_file(source, node)
    if source_node is not None:
        return _same_file(target, source_node)
    same = posixpath.normpath(target.path) == posixpath.normpath(source.path)
    return f"both are {source.path}" if same else None


def _same_device(node: Node, source_node: Node) -> str | None:
    if node.number == source_node.number:
        return f"both are {node.path}, {node.number}"
    if node.partition is None and node.disk.number == source_node.disk.number:
        return f"{source_node.path} is a partition of {node.path}"
    if node.partition is not None or source_node.partition is not None:
        return None
    backing = _backing(node)
    known = node.disk.backing
    same = known is not None and known == source_node.disk.backing
    if same or (backing is not None and backing == _backing(source_node)):
        return f"both are loop devices over {backing or known}"
    return None


def _same_file(place: Place, node: Node) -> str | None:
    same = place.identity is not None and place.identity == node.disk.backing
    if node.partition is not None or not (
        same or _backing(node) == posixpath.normpath(place.path)
    ):
        return None
    return f"{place.path} is the file behind the loop device {node.path}"


def _backing(node: Node) -> str | None:
    if node.disk.backing_file is None or node.partition is not None:
        return None
    return posixpath.normpath(backing_path(node.disk.backing_file))


def _lies_on(graph: Graph, place: Place, node: Node | None) -> tuple[Node, ...]:
    """Return all devices that a disk or file is stored on, itself left out."""
    if node is not None:
        return tuple(other for other in graph.below([node]) if other.number != node.number)
    return graph.below(graph.file_on(place.path))


def _shared(node: Node | None, source: Place) -> list[Finding]:
    """Look for a disk that two hosts see."""
    source_node = _device(Graph(source.facts), source)
    if node is None or source_node is None:
        return []
    serial = node.disk.serial
    if (
        not serial
        or serial != source_node.disk.serial
        or node.disk.model != source_node.disk.model
    ):
        return []
    if node.size != source_node.size:
        return []
    return [
        Finding(
            Severity.WARNING,
            f"The target {node.path} may be the source's own disk, seen from another host",
            f"both are called {serial!r} and have {node.size} bytes",
            "Make sure that the disk is not attached to both hosts",
        )
    ]


def _in_use(graph: Graph, node: Node) -> list[Finding]:
    found: list[Finding] = []
    if node.disk.read_only:
        found.append(
            _blocker(
                f"The target {node.path} is read-only",
                "the kernel refuses writes to it",
                f"Make it writable (blockdev --setrw {node.path}), or choose another disk",
            )
        )
    above = graph.above([node])
    found += [
        _blocker(
            f"The target {node.path} is mounted at {mount.mount_point}",
            f"{mount.fs_type} on {mount.source}, {mount.options}",
            f"Unmount it (umount {mount.mount_point}), or choose another disk",
        )
        for mount in graph_mounts(graph, above)
    ]
    found += [
        _blocker(
            f"The target {node.path} is in use as swap",
            swap,
            f"Switch it off (swapoff {swap}), or choose another disk",
        )
        for swap in graph_swaps(graph, above)
    ]
    # The uppermost must be released first.
    holders = [n for n in reversed(above) if n.partition is None and n.number != node.number]
    found += [
        _blocker(
            f"The target {node.path} is held by {holder.path}",
            _holder_kind(holder),
            _release(holder),
        )
        for holder in holders
    ]
    return found


def _holder_kind(holder: Node) -> str:
    if holder.disk.backing_file is not None:
        return f"a loop device over {holder.disk.backing_file}"
    if holder.name.startswith("dm-"):
        return f"device-mapper: {', '.join(holder.disk.aliases) or holder.path}"
    if holder.name.startswith("md"):
        return f"md array {holder.path}"
    return f"made of {', '.join(holder.disk.slaves) or 'it'}"


def _release(holder: Node) -> str:
    if holder.disk.backing_file is not None:
        return f"Detach it (losetup --detach {holder.path}), or choose another disk"
    if holder.name.startswith("dm-"):
        return "Deactivate it (vgchange -an, cryptsetup close or dmsetup remove), or choose another disk"
    if holder.name.startswith("md"):
        return f"Stop it (mdadm --stop {holder.path}), or choose another disk"
    return "Take it apart, or choose another disk"
