"""What upper layers ask of the world, as protocols: anything that answers so will do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from cvm_migrate.deadline import CancelToken
from cvm_migrate.model import (
    Changes,
    ExtentMap,
    FreezeResult,
    HostFacts,
    Listening,
    Marked,
    Measured,
    OpenDisk,
    Reach,
    ReadBack,
    Streamed,
    ThawResult,
    TlsIdentity,
    TrackingStart,
)


class Agent(Protocol):
    """One host's agent: the typed form of ``docs/reference/agent-protocol.md``.

    Every method raises :class:`~cvm_migrate.errors.AgentLostError` when the agent ends or falls silent, and the
    error its page names for what the agent refuses. Methods may be called from several threads.
    """

    @property
    def description(self) -> str:
        """What messages call this agent, such as ``the agent on root@10.0.0.5``."""
        ...

    @property
    def digests(self) -> tuple[str, ...]:
        """Digest algorithms it offers, best first."""
        ...

    def facts(self) -> HostFacts:
        """Return everything the agent finds out about its host without touching it."""
        ...

    def open_disk(
        self, path: str, *, mode: Literal["read", "write"] = "read", create_size: int | None = None
    ) -> OpenDisk:
        """Open a disk or file; *create_size* makes a file, or grows it, to so many bytes."""
        ...

    def close_disk(self, disk: OpenDisk) -> None:
        """Let go of a disk."""
        ...

    def read(self, disk: OpenDisk, offset: int, length: int) -> bytes:
        """Return bytes of a disk, read past the page cache."""
        ...

    def write(self, disk: OpenDisk, offset: int, data: bytes) -> None:
        """Write bytes to a disk opened for writing."""
        ...

    def zero(self, disk: OpenDisk, offset: int, length: int) -> None:
        """Make a range read as zeroes."""
        ...

    def flush(self, disk: OpenDisk) -> float:
        """Bring what was written onto the medium; return the seconds it took."""
        ...

    def digest(
        self,
        disk: OpenDisk,
        ranges: ExtentMap,
        *,
        chunk: int,
        algorithm: str,
        cancel: CancelToken | None = None,
    ) -> Iterator[tuple[int, list[bytes]]]:
        """Yield ``(offset, digests)``: digests of chunks that follow one another from *offset* on."""
        ...

    def start_tracking(
        self, disks: Sequence[OpenDisk], *, rungs: Sequence[str], block: int | None = None
    ) -> TrackingStart:
        """Track what is written from now on, by the first of *rungs* that starts."""
        ...

    def collect_changes(self, disk: OpenDisk) -> Changes:
        """Return and clear what was written since the last collection."""
        ...

    def peek_changes(self, disk: OpenDisk) -> Marked:
        """Return how many bytes are marked as written, and whether that is all; clears nothing."""
        ...

    def stop_tracking(self) -> None:
        """End tracking."""
        ...

    def write_out(self, mounts: Sequence[str]) -> float:
        """Write out the caches of mounted file systems; return the seconds it took."""
        ...

    def freeze(self, mounts: Sequence[str], *, limit: float) -> FreezeResult:
        """Freeze file systems in this order; *limit* seconds later they thaw by themselves."""
        ...

    def thaw(self) -> ThawResult:
        """Thaw what was frozen."""
        ...

    def frozen(self) -> bool:
        """Return whether something is frozen."""
        ...

    def reach(self, host: str, port: int, *, timeout: float) -> Reach:
        """Connect to a port once, send nothing, and return what came of it within *timeout* seconds."""
        ...

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
        """Start a receiving pump that listens for the peer of this migration; without disks it can be measured only."""
        ...

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
        """Start a sending pump and connect it; return its number."""
        ...

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
        """Send ranges of a disk; what it returns for is on the target's disk."""
        ...

    def measure(
        self,
        pump: int,
        *,
        seconds: float,
        bandwidth: int | None = None,
        cancel: CancelToken | None = None,
    ) -> Measured:
        """Send noise through a sending pump for some time, and return what the path carried."""
        ...

    def pace(self, pump: int, *, bandwidth: int | None, read_limit: int | None) -> None:
        """Change the limits of a pump, in bytes per second, while it works."""
        ...

    def read_back(
        self, pump: int, disk: int, *, on_progress: Callable[[int], None] | None = None
    ) -> ReadBack:
        """Read what was received since the last call, and compare it with what the source sent."""
        ...

    def received(self, pump: int) -> Mapping[str, int]:
        """Return what a receiving pump has counted: bytes, connections, peers refused."""
        ...

    def disconnect(self, pump: int) -> None:
        """End a pump of either kind."""
        ...

    def close(self) -> None:
        """Release everything and end the agent; can be called more than once."""
        ...
