"""Two hosts in memory with agents that fail, disks that are written to, and a caller that crashes: all by a seed.

They answer as :class:`cvm_migrate.interfaces.Agent` does, so that a whole migration runs in milliseconds, and so
that faults come at every single call.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Literal

import attrs

from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import (
    AgentLostError,
    ConnectionLostError,
    InvalidRequestError,
    TargetWriteError,
)
from cvm_migrate.interfaces import Agent
from cvm_migrate.migration import DirectRoute
from cvm_migrate.model import (
    Changes,
    DiskFacts,
    ExtentMap,
    Finding,
    FreezeResult,
    HostFacts,
    Listening,
    Marked,
    Measured,
    MountFacts,
    OpenDisk,
    Reach,
    ReadBack,
    Streamed,
    ThawResult,
    TlsIdentity,
    TrackingFacts,
    TrackingStart,
)

BLOCK = 4096
PATHS = ("/dev/vda", "/dev/vdb")


class CrashError(BaseException):
    """The caller's process ends here and now: nothing catches it but the test."""


@attrs.define
class Tracker:
    """What one agent's tracker knows."""

    dirty: list[set[int]]
    doubtful: set[int] = attrs.field(factory=set[int])
    dead: bool = False


class World:
    """Both hosts, and what happens to them.

    Args:
        seed: Decides everything.
        sizes: Of the disks.
        faults: How often one of a hundred calls fails, in a hundred; 0: never.
        tracked: Whether a tracker can be used.
    """

    def __init__(self, seed: int, *, sizes: Sequence[int], faults: float, tracked: bool) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.tracked = tracked
        self.source = [bytearray(self.random.randbytes(size)) for size in sizes]
        self.target = [bytearray(size) for size in sizes]
        self.firmware = {"source": "bios", "target": "bios"}
        self.always_flips = False
        # By each file system on the source; None: as an agent that does not tell.
        self.used: int | None = None
        self.machines = {"source": "x86_64", "target": "x86_64"}
        # Facts that are otherwise than usual.
        self.altered: dict[str, dict[str, Any]] = {"source": {}, "target": {}}
        self.frozen = False
        self.tracker: Tracker | None = None
        self.agents: dict[str, MemoryAgent | None] = {"source": None, "target": None}
        self.log: list[str] = []

    def endpoint(self, role: Literal["source", "target"]) -> MemoryEndpoint:
        return MemoryEndpoint(self, role)

    def disks(self, role: str) -> list[bytearray]:
        return self.source if role == "source" else self.target

    def happen(self, agent: MemoryAgent, what: str) -> None:
        """Around each call: the source is written to, and something may break."""
        self.write_some()
        chance = self.random.random() * 100
        if chance >= self.faults:
            return
        fault = self.random.choice(["agent", "peer", "crash", "crash", "lie", "error", "error"])
        self.log.append(f"{fault} at {agent.role} {what}")
        if fault == "agent":
            agent.die()
            raise AgentLostError("lost by the test")
        if fault == "peer":
            other = self.agents["target" if agent.role == "source" else "source"]
            if other is not None:
                other.die()
        elif fault == "crash":
            raise CrashError
        elif fault == "lie" and self.tracker is not None:
            # It loses events, and says so; or it is dead, and says so for ever.
            self.tracker.dirty = [set() for _ in self.source]
            self.tracker.doubtful = set(range(len(self.source)))
            self.tracker.dead = self.random.random() < 0.3
        elif fault == "error":
            raise ConnectionLostError("cut by the test")

    def write_some(self) -> None:
        """What programs on the source do; nothing while they are frozen."""
        if self.frozen:
            return
        for _ in range(self.random.randrange(3)):
            disk = self.random.randrange(len(self.source))
            data = self.source[disk]
            # A few blocks are hot.
            blocks = -(-len(data) // BLOCK)
            block = self.random.choice([0, blocks - 1, self.random.randrange(blocks)])
            at = min(block * BLOCK + self.random.randrange(BLOCK), len(data) - 1)
            data[at] = self.random.randrange(256)
            if self.tracker is not None:
                self.tracker.dirty[disk].add(at // BLOCK)


class MemoryAgent:
    """An agent of one of the two hosts."""

    def __init__(self, world: World, role: Literal["source", "target"]) -> None:
        self.world = world
        self.role = role
        self.alive = True
        self.pumps: dict[int, list[tuple[int, int, int, bytes]]] = {}
        self.peers: dict[int, MemoryAgent] = {}
        self._held = 0.0
        self._lost = False
        world.agents[role] = self

    def die(self) -> None:
        self.alive = False
        if self.role == "source":
            self.world.tracker = None
            # Its watchdog thaws.
            self.world.frozen = False

    def _call(self, what: str, *, faults: bool = True) -> None:
        if not self.alive:
            raise AgentLostError(f"the {self.role}'s agent is gone")
        if faults:
            self.world.happen(self, what)

    @property
    def description(self) -> str:
        return f"the agent in memory, {self.role}"

    @property
    def digests(self) -> tuple[str, ...]:
        return ("sha256",)

    def facts(self) -> HostFacts:
        self._call("facts")
        disks = self.world.disks(self.role)
        facts = HostFacts(
            system="Linux",
            kernel="6",
            machine=self.world.machines[self.role],
            python="3",
            executable="python",
            hostname=self.role,
            boot_id=self.role,
            euid=0,
            time=time.time(),
            firmware=self.world.firmware[self.role],
            memory_total=1 << 30,
            memory_available=1 << 30,
            os_release=None,
            legacy_release=None,
            lockdown=None,
            dmi={},
            disks=tuple(
                DiskFacts(
                    name=path.removeprefix("/dev/"),
                    path=path,
                    number=f"253:{number}",
                    size=len(data),
                    logical_block_size=512,
                    physical_block_size=512,
                    rotational=False,
                    removable=False,
                    read_only=False,
                    model=None,
                    serial=f"{self.role}-{number}",
                    backing_file=None,
                )
                for number, (path, data) in enumerate(zip(PATHS, disks, strict=False))
            ),
            mounts=tuple(
                MountFacts(
                    id=number + 10,
                    parent=1,
                    number=f"253:{number}",
                    root="/",
                    mount_point=f"/mnt/{number}",
                    fs_type="ext4",
                    source=path,
                    options="rw",
                    size=len(disks[number]),
                    used=self.world.used,
                )
                for number, path in enumerate(PATHS[: len(disks)])
                if self.role == "source"
            ),
            swaps=(),
            addresses=(),
            tracking=TrackingFacts({"ebpf": None if self.world.tracked else "the test has none"}),
            can_freeze=True,
            tools={},
            services=(),
        )
        return attrs.evolve(facts, **self.world.altered[self.role])

    def open_disk(
        self, path: str, *, mode: Literal["read", "write"] = "read", create_size: int | None = None
    ) -> OpenDisk:
        del mode, create_size
        self._call("open")
        number = PATHS.index(path)
        return OpenDisk(
            handle=number,
            path=path,
            kind="block",
            size=len(self.world.disks(self.role)[number]),
            logical_block_size=512,
            physical_block_size=512,
            identity=f"block:253:{number}",
            direct=True,
        )

    def close_disk(self, disk: OpenDisk) -> None:
        self._call(f"close {disk.path}", faults=False)

    def read(self, disk: OpenDisk, offset: int, length: int) -> bytes:
        self._call("read")
        return bytes(self.world.disks(self.role)[disk.handle][offset : offset + length])

    def write(self, disk: OpenDisk, offset: int, data: bytes) -> None:
        raise NotImplementedError

    def zero(self, disk: OpenDisk, offset: int, length: int) -> None:
        raise NotImplementedError

    def flush(self, disk: OpenDisk) -> float:
        raise NotImplementedError

    def digest(
        self,
        disk: OpenDisk,
        ranges: ExtentMap,
        *,
        chunk: int,
        algorithm: str,
        cancel: CancelToken | None = None,
    ) -> Iterator[tuple[int, list[bytes]]]:
        del algorithm
        data = self.world.disks(self.role)[disk.handle]
        for extent in ranges:
            for offset in range(extent.offset, extent.end, chunk):
                if cancel is not None:
                    cancel.check()
                # Two threads ask at once: the order of their faults is not the seed's, so they get none.
                self._call("digest", faults=False)
                end = min(offset + chunk, extent.end)
                yield offset, [hashlib.sha256(data[offset:end]).digest()]

    def start_tracking(
        self, disks: Sequence[OpenDisk], *, rungs: Sequence[str], block: int | None = None
    ) -> TrackingStart:
        del block, rungs
        self._call("track_start")
        if not self.world.tracked:
            return TrackingStart(None, {"ebpf": "the test has none"}, 0)
        self.world.tracker = Tracker([set() for _ in disks])
        return TrackingStart("ebpf", {}, BLOCK)

    def collect_changes(self, disk: OpenDisk) -> Changes:
        self._call("collect")
        tracker = self.world.tracker
        assert tracker is not None
        blocks: set[int] = tracker.dirty[disk.handle]
        tracker.dirty[disk.handle] = set()
        certain = disk.handle not in tracker.doubtful and not tracker.dead
        tracker.doubtful.discard(disk.handle)
        if tracker.dead:
            blocks = set()
        size = len(self.world.source[disk.handle])
        written = ExtentMap((block * BLOCK, BLOCK) for block in blocks).clip(0, size)
        # The answer can be lost on its way.
        self._call("answer to collect")
        return Changes(written, ExtentMap(), certain, None if certain else "events were lost", 0)

    def peek_changes(self, disk: OpenDisk) -> Marked:
        self._call("peek", faults=False)
        tracker = self.world.tracker
        assert tracker is not None
        certain = disk.handle not in tracker.doubtful and not tracker.dead
        count = 0 if tracker.dead else len(tracker.dirty[disk.handle]) * BLOCK
        return Marked(count, certain, None if certain else "events were lost")

    def stop_tracking(self) -> None:
        self.world.tracker = None

    def write_out(self, mounts: Sequence[str]) -> float:
        self._call(f"write_out {mounts}")
        return 0.0

    def freeze(self, mounts: Sequence[str], *, limit: float) -> FreezeResult:
        del limit
        self._call("freeze")
        self.world.frozen = True
        self._lost = False
        return FreezeResult(tuple(mounts), {}, 0.001)

    def thaw(self) -> ThawResult:
        self._call("thaw", faults=False)
        self.world.frozen = False
        return ThawResult(0.01, self._lost)

    def frozen(self) -> bool:
        self._call("frozen", faults=False)
        return self.world.frozen

    def lose_freeze(self) -> None:
        """As the watchdog does at the limit."""
        self.world.frozen = False
        self._lost = True

    def reach(self, host: str, port: int, *, timeout: float) -> Reach:
        del host, timeout
        self._call("reach")
        peer = self.world.agents["target"]
        here = peer is not None and peer.alive and port in peer.pumps
        return Reach("open" if here else "refused", 0.001, "memory", None, 1500, 1448)

    def receive(
        self,
        disks: Mapping[int, OpenDisk],
        *,
        bind: str,
        port: int,
        tls: TlsIdentity,
        session: str,
        streams: int,
    ) -> Listening:
        del disks, bind, port, tls, session, streams
        self._call("receive")
        number = len(self.pumps) + 1
        self.pumps[number] = []
        return Listening(number, number)

    def connect(
        self,
        disks: Mapping[int, OpenDisk],
        *,
        host: str,
        port: int,
        tls: TlsIdentity,
        session: str,
        streams: int,
        algorithm: str,
        patience: float,
        cancel: CancelToken | None = None,
    ) -> int:
        del disks, host, tls, session, streams, algorithm, patience, cancel
        self._call("connect")
        peer = self.world.agents["target"]
        if peer is None or not peer.alive or port not in peer.pumps:
            raise ConnectionLostError("nobody listens")
        self.peers[port] = peer
        return port

    def stream(
        self,
        pump: int,
        disk: int,
        ranges: ExtentMap,
        *,
        chunk: int,
        codec: str = "auto",
        level: int = 1,
        bandwidth: int | None = None,
        read_limit: int | None = None,
        on_progress: Callable[[Streamed], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> Streamed:
        del level, bandwidth, read_limit
        peer = self.peers[pump]
        done = 0
        for extent in ranges:
            for offset in range(extent.offset, extent.end, chunk):
                if cancel is not None:
                    cancel.check()
                self._call("stream")
                if not peer.alive or pump not in peer.pumps:
                    raise ConnectionLostError("the target is gone")
                end = min(offset + chunk, extent.end)
                data = bytes(self.world.source[disk][offset:end])
                peer.pumps[pump].append((disk, offset, end, hashlib.sha256(data).digest()))
                self._arrive(disk, offset, data)
                done += end - offset
                if on_progress is not None:
                    on_progress(Streamed(done, done, 0, done, 0.001, 0.0, 0, codec))
        return Streamed(done, done, 0, done, 0.001, 0.0, 0, codec)

    def _arrive(self, disk: int, offset: int, data: bytes) -> None:
        """Write on the target's disk, which now and then keeps something else, or refuses."""
        world = self.world
        chance = world.random.random() * 100
        if chance < world.faults / 10:
            raise TargetWriteError("refused by the test", offset=offset, length=len(data))
        world.target[disk][offset : offset + len(data)] = data
        if world.always_flips or chance > 100 - world.faults / 2:
            world.log.append(f"a bit flips at {offset}")
            world.target[disk][offset] ^= 1

    def measure(
        self,
        pump: int,
        *,
        seconds: float,
        bandwidth: int | None = None,
        cancel: CancelToken | None = None,
    ) -> Measured:
        del seconds, bandwidth, cancel
        self._call("measure")
        if not self.peers[pump].alive:
            raise ConnectionLostError("the target is gone")
        return Measured(1 << 30, 1.0, float(1 << 30), 0.001, 1500, 1448, "TLSv1.3", "memory")

    def pace(self, pump: int, *, bandwidth: int | None, read_limit: int | None) -> None:
        raise NotImplementedError

    def read_back(
        self, pump: int, disk: int, *, on_progress: Callable[[int], None] | None = None
    ) -> ReadBack:
        del on_progress
        self._call("read_back")
        # The last that was written to a place counts.
        last: dict[int, tuple[int, bytes]] = {}
        kept: list[tuple[int, int, int, bytes]] = []
        for entry in self.pumps[pump]:
            if entry[0] == disk:
                last[entry[1]] = (entry[2], entry[3])
            else:
                kept.append(entry)
        self.pumps[pump] = kept
        data = self.world.target[disk]
        wrong = ExtentMap(
            (offset, end - offset)
            for offset, (end, digest) in last.items()
            if hashlib.sha256(data[offset:end]).digest() != digest
        )
        total = sum(end - offset for offset, (end, _) in last.items())
        return ReadBack(total - wrong.total, 0.001, wrong)

    def received(self, pump: int) -> Mapping[str, int]:
        self._call("received", faults=False)
        return {"bytes": len(self.pumps[pump])}

    def disconnect(self, pump: int) -> None:
        self._call("disconnect", faults=False)
        self.pumps.pop(pump, None)
        self.peers.pop(pump, None)

    def close(self) -> None:
        if self.alive:
            self.die()


@attrs.frozen
class MemoryEndpoint:
    """One of the two hosts as an endpoint."""

    world: World
    role: Literal["source", "target"]

    description = "memory"
    creates = False
    reachable = True
    local = False
    ssh = None
    data_port = None

    @property
    def disks(self) -> tuple[str, ...]:
        return PATHS[: len(self.world.disks(self.role))]

    def bind_address(self, *, same_host: bool) -> str:
        return f"{same_host}"

    def route(self, port: int, *, same_host: bool) -> DirectRoute:
        del same_host
        return DirectRoute("memory", port)

    def check(self, role: Literal["source", "target"]) -> Sequence[Finding]:
        del role
        return ()

    def begin(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        if role != self.role:
            raise InvalidRequestError(f"{self.role} is begun as {role}")
        notes["begun"] = role

    def open_agent(self) -> Agent:
        return MemoryAgent(self.world, self.role)

    def finish(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Stay in use."""

    def abort(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Leave it."""
