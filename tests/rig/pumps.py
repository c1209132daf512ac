"""Two agents with a pump each, and disks between which they work."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path

import attrs

from cvm_migrate.model import ExtentMap, Listening, OpenDisk, ReadBack, Streamed
from cvm_migrate.transport import AgentSession, Identities, mint_identities, start_local_agent
from rig import loopdev
from rig.proxy import Proxy, proxy
from rig.pythons import interpreters

MiB = 1 << 20


def fill(path: Path, size: int, *, seed: int = 1, kinds: str = "nzt") -> None:
    """Write a file of *size* bytes: noise, zeroes and text in turn, in pieces of some 100 KiB."""
    generator = random.Random(seed)
    with path.open("wb") as file:
        done = 0
        while done < size:
            length = min(size - done, generator.choice((4096, 65536, 300_000, 1 << 20)))
            kind = generator.choice(kinds)
            if kind == "n":
                file.write(generator.randbytes(length))
            elif kind == "t":
                line = b"%d: something happened, and here is what\n" % generator.getrandbits(30)
                file.write((line * (length // len(line) + 1))[:length])
            else:
                file.seek(length, os.SEEK_CUR)
            done += length
        file.truncate(size)


@attrs.define
class Pair:
    """A sender and a receiver, connected or not yet."""

    source: AgentSession
    target: AgentSession
    source_disk: OpenDisk
    target_disk: OpenDisk
    identities: Identities
    listening: Listening
    proxy: Proxy | None = None
    pump: int = -1

    @property
    def port(self) -> int:
        """Where the sender connects to."""
        return self.proxy.port if self.proxy is not None else self.listening.port

    def algorithm(self) -> str:
        """The best digest that both have."""
        return next(name for name in self.source.digests if name in self.target.digests)

    def connect(
        self,
        *,
        streams: int = 2,
        patience: float = 20.0,
        identities: Identities | None = None,
        session: str | None = None,
    ) -> int:
        """Connect the sender, by default with the right keys."""
        known = identities or self.identities
        self.pump = self.source.connect(
            {1: self.source_disk},
            host="127.0.0.1",
            port=self.port,
            tls=known.source,
            session=session or known.session,
            streams=streams,
            algorithm=self.algorithm(),
            patience=patience,
        )
        return self.pump

    def stream(
        self,
        ranges: ExtentMap | None = None,
        *,
        chunk: int = MiB,
        codec: str = "auto",
        bandwidth: int | None = None,
        read_limit: int | None = None,
        on_progress: Callable[[Streamed], None] | None = None,
    ) -> Streamed:
        """Send ranges, by default all of the disk."""
        return self.source.stream(
            self.pump,
            1,
            ExtentMap.whole(self.source_disk.size) if ranges is None else ranges,
            chunk=chunk,
            codec=codec,
            bandwidth=bandwidth,
            read_limit=read_limit,
            on_progress=on_progress,
        )

    def read_back(self) -> ReadBack:
        """Prove what arrived."""
        return self.target.read_back(self.listening.pump, 1)

    def received(self, name: str) -> int:
        """One of the receiver's counts."""
        return self.target.received(self.listening.pump)[name]


@contextlib.contextmanager
def pair(
    source: Path,
    target: Path,
    *,
    python: tuple[str | None, str | None] = (None, None),
    streams: int = 2,
    through_proxy: bool = False,
    create_size: int | None = None,
) -> Generator[Pair]:
    """Two agents on this machine, the receiver listening."""
    with contextlib.ExitStack() as stack:
        agents = [stack.enter_context(_agent(version)) for version in python]
        identities = mint_identities()
        source_disk = agents[0].open_disk(str(source))
        target_disk = agents[1].open_disk(str(target), mode="write", create_size=create_size)
        listening = agents[1].receive(
            {1: target_disk},
            bind="127.0.0.1",
            port=0,
            tls=identities.target,
            session=identities.session,
            streams=streams,
        )
        made = Pair(agents[0], agents[1], source_disk, target_disk, identities, listening)
        if through_proxy:
            made.proxy = stack.enter_context(proxy(listening.port))
        yield made


def _agent(version: str | None) -> AgentSession:
    return (
        start_local_agent()
        if version is None
        else start_local_agent(python=interpreters()[version])
    )


@contextlib.contextmanager
def disks(
    folder: Path,
    size: int,
    *,
    target_size: int | None = None,
    sectors: tuple[int, int] = (512, 512),
    kinds: str = "nzt",
    target_content: bool = True,
) -> Generator[tuple[Path, Path]]:
    """Two loop devices: one filled, the other with something else on it."""
    fill(folder / "source.img", size, seed=1, kinds=kinds)
    if target_content:
        fill(folder / "target.img", target_size or size, seed=2, kinds="n")
    with (
        loopdev.loop_device(folder / "source.img", sector=sectors[0]) as source,
        loopdev.loop_device(
            folder / "target.img", target_size or size, sector=sectors[1]
        ) as target,
    ):
        yield source, target


def pump_pids(agent: AgentSession) -> list[int]:
    """Processes of the agent's pumps."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == agent.pid and b"--pump" in command:
            found.append(int(entry.name))
    return found


def kill(pid: int) -> None:
    """End a process at once, as the kernel does when memory is short."""
    os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Wait for something that must become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def peak_memory(pid: int) -> int:
    """Most bytes of memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no VmHWM")
