"""Which device lies on which: disks, partitions, device-mapper, md, and loop devices over files."""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Iterable, Mapping

import attrs

from cvm_migrate.model import DiskFacts, HostFacts, MountFacts, PartitionFacts


@attrs.frozen
class Node:
    """A block device: a disk, or a partition of one."""

    name: str
    path: str
    number: str
    size: int
    disk: DiskFacts
    partition: PartitionFacts | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All paths it is known by."""
        if self.partition is not None:
            return (self.path,)
        return (self.path, *self.disk.aliases)


class Graph:
    """The block devices of one host and what lies on them.

    Args:
        facts: What the host says of itself.
    """

    def __init__(self, facts: HostFacts) -> None:
        self.facts = facts
        nodes: list[Node] = []
        for disk in facts.disks:
            nodes.append(Node(disk.name, disk.path, disk.number, disk.size, disk))
            nodes += [
                Node(part.name, part.path, part.number, part.size, disk, part)
                for part in disk.partitions
            ]
        self._by_name: Mapping[str, Node] = {node.name: node for node in nodes}
        self._by_number: Mapping[str, Node] = {node.number: node for node in nodes}
        self._by_path: Mapping[str, Node] = {
            name: node for node in reversed(nodes) for name in node.names
        }
        self._up: dict[str, set[str]] = {}
        self._down: dict[str, set[str]] = {}
        self._connect()

    def find(self, path: str) -> Node | None:
        """Return the device with that path, name or ``MAJOR:MINOR``."""
        normal = posixpath.normpath(path)
        return self._by_path.get(normal) or self._by_name.get(path) or self._by_number.get(path)

    def above(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        """Return *nodes* and everything that lies on them, directly or not, the nearest first."""
        return self._closure(nodes, self._up)

    def below(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        """Return *nodes* and everything that they lie on."""
        return self._closure(nodes, self._down)

    def mounts_of(self, node: Node) -> tuple[MountFacts, ...]:
        """Return the mounts of the file system that lies directly on *node*."""
        return tuple(mount for mount in self.facts.mounts if node in self.devices_of(mount))

    def devices_of(self, mount: MountFacts) -> tuple[Node, ...]:
        """Return the devices that a mounted file system lies on; none where it has none."""
        numbers = [number for number in mount.devices if number in self._by_number]
        if mount.number in self._by_number:
            numbers.append(mount.number)
        found = {number: self._by_number[number] for number in numbers}
        if not found:
            # btrfs has a number of its own; it names its (first) device as the source.
            node = self.find(mount.source) if mount.source.startswith("/") else None
            if node is not None:
                found[node.number] = node
        return tuple(found.values())

    def mount_at(self, path: str) -> MountFacts | None:
        """Return the mount that *path* leads to, as the kernel walks it."""
        path = posixpath.normpath(path)
        listed = {mount.id for mount in self.facts.mounts}
        roots = [
            mount
            for mount in self.facts.mounts
            if mount.mount_point == "/"
            and (mount.parent not in listed or mount.parent == mount.id)
        ]
        # Kernels without mountinfo (CentOS 5) tell no parents.
        if not roots or not any(mount.parent in listed for mount in self.facts.mounts):
            return self._longest(path)
        here = roots[-1]
        seen = {here.id}
        while True:
            # Of the mounts on this one, the walk meets the shortest first; the newest lies on top.
            below = [
                mount
                for mount in self.facts.mounts
                if mount.parent == here.id
                and mount.id not in seen
                and is_under(path, mount.mount_point)
            ]
            if not below:
                return here
            shortest = min(len(mount.mount_point) for mount in below)
            here = [mount for mount in below if len(mount.mount_point) == shortest][-1]
            seen.add(here.id)

    def file_on(self, path: str) -> tuple[Node, ...]:
        """Return the devices that the file *path* lies on."""
        seen: set[int] = set()
        mount = self.mount_at(path)
        while mount is not None and mount.id not in seen:
            seen.add(mount.id)
            devices = self.devices_of(mount)
            upper = _option(mount.options, "upperdir")
            if devices or upper is None:
                return devices
            # What is written to an overlay lands on its upper folder.
            mount = self.mount_at(upper)
        return ()

    def _longest(self, path: str) -> MountFacts | None:
        """Return the newest of the mounts with the longest mount point over *path*."""
        over = [mount for mount in self.facts.mounts if is_under(path, mount.mount_point)]
        longest = max((len(mount.mount_point) for mount in over), default=0)
        return next((m for m in reversed(over) if len(m.mount_point) == longest), None)

    def _closure(self, nodes: Iterable[Node], edges: Mapping[str, set[str]]) -> tuple[Node, ...]:
        found = {node.name: node for node in nodes}
        waiting = deque(found)
        while waiting:
            for name in sorted(edges.get(waiting.popleft(), ())):
                if name not in found:
                    found[name] = self._by_name[name]
                    waiting.append(name)
        return tuple(found.values())

    def _behind(self, backing_file: str, backing: str | None) -> set[Node]:
        """Return what a loop device lies on: another device, or those of its file."""
        path = backing_path(backing_file)
        kind, _, number = (backing or "").partition(":")
        node = self._by_number.get(number) if kind == "block" else self.find(path)
        return set(self.file_on(path)) if node is None else {node}

    def _connect(self) -> None:
        """Note what lies directly on what."""
        for node in self._by_name.values():
            if node.partition is None:
                lower = {self._by_name[name] for name in node.disk.slaves if name in self._by_name}
                if node.disk.backing_file is not None:
                    lower |= self._behind(node.disk.backing_file, node.disk.backing)
                holders = node.disk.holders
            else:
                lower = {self._by_name[node.disk.name]}
                holders = node.partition.holders
            pairs = {(low.name, node.name) for low in lower}
            pairs |= {(node.name, name) for name in holders if name in self._by_name}
            for low, high in pairs:
                self._up.setdefault(low, set()).add(high)
                self._down.setdefault(high, set()).add(low)


def backing_path(backing_file: str) -> str:
    """Return the path of a loop device's file, without the kernel's note that it was deleted."""
    return backing_file.removesuffix(" (deleted)")


def is_under(path: str, folder: str) -> bool:
    """Whether *path* is *folder* or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _option(options: str, name: str) -> str | None:
    for option in options.split(","):
        key, _, value = option.partition("=")
        if key == name:
            return value
    return None
