"""How much of a host's disks its mounted file systems use, as far as they say it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from cvm_migrate.disk._graph import Graph, Node
from cvm_migrate.disk._inventory import file_systems, node_of, reachable
from cvm_migrate.model import DiskFacts, HostFacts, MountFacts

# What the kernel shows of an extended partition: a stand-in that holds nothing itself.
_STAND_IN = 1024


@attrs.frozen
class Usage:
    """What is in use on some disks.

    Attributes:
        used: Bytes that the mounted file systems on them use, each counted once; ``None`` if none of them says it.
        unknown: Bytes of the partitions and volumes of which nothing is known: without a mounted file system, with
            one that does not say, or with one that reaches beyond these disks.
        to_send: Bytes that are not known to be free, at most those of the disks: what is used, as often as mirrors
            keep it, and what is unknown. Free space that still holds what was deleted comes on top.
    """

    used: int | None
    unknown: int
    to_send: int


def used_on(facts: HostFacts, disks: Sequence[str | DiskFacts]) -> Usage:
    """Return how much of *disks* is in use.

    Args:
        facts: Of the host.
        disks: Paths (or facts) of disks, or their numbers.

    Raises:
        NotFoundError: The host has no such disk.
    """
    graph = Graph(facts)
    roots = [node_of(graph, disk) for disk in disks]
    nodes = _direct(graph, roots)
    total = sum(root.size for root in {root.number: root for root in roots}.values())
    known: list[int] = []
    sent = 0
    full: set[str] = set()
    for listed in file_systems(graph, nodes):
        mounts = [mount for _, mount in listed]
        devices = {device.number: device for mount in mounts for device in graph.devices_of(mount)}
        used = _used(facts, mounts)
        below = graph.below(devices.values())
        if used is None or not _within(graph, below, roots):
            continue
        known.append(used)
        full.update(devices)
        mirrored = len(devices) > 1 or any(node.name.startswith("md") for node in below)
        wide = {node.number for node in below} & {root.number for root in roots}
        sent += used * (max(len(devices), len(wide)) if mirrored else 1)
    unknown = sum(leaf.size for leaf in _leaves(graph, nodes) if leaf.number not in full)
    return Usage(sum(known) if known else None, unknown, min(total, sent + unknown))


def _used(facts: HostFacts, mounts: Iterable[MountFacts]) -> int | None:
    """Return what a file system says of itself at one of its mounts that can be reached."""
    said = (mount.used for mount in mounts if mount.used is not None and reachable(facts, mount))
    return next(said, None)


def _within(graph: Graph, below: Iterable[Node], roots: Iterable[Node]) -> bool:
    """Whether what lies on *below* lies on nothing but *roots*."""
    allowed = {node.number for node in (*graph.below(roots), *graph.above(roots))}
    return all(node.number in allowed for node in below)


def _direct(graph: Graph, roots: Sequence[Node]) -> tuple[Node, ...]:
    """Return what lies on *roots*, without what is a file in one of their file systems."""
    loops = _loops(graph.below(roots))
    return tuple(node for node in graph.above(roots) if _loops(graph.below([node])) <= loops)


def _loops(nodes: Iterable[Node]) -> frozenset[str]:
    return frozenset(
        node.number
        for node in nodes
        if node.partition is None and node.disk.backing_file is not None
    )


def _leaves(graph: Graph, nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return those of *nodes* that nothing else of them lies on."""
    numbers = {node.number for node in nodes}
    return tuple(
        node
        for node in nodes
        if node.size > _STAND_IN
        and not any(
            other.number in numbers and other.number != node.number
            for other in graph.above([node])
        )
    )
