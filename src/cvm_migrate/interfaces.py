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
    OpenDisk,
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

    def facts(self) -> HostFacts: ...

    def open_disk(
        self, path: str, *, mode: Literal["read", "write"] = "read", create_size: int | None = None
    ) -> OpenDisk: ...

    def close_disk(self, disk: OpenDisk) -> None: ...

    def read(self, disk: OpenDisk, offset: int, length: int) -> bytes: ...

    def write(self, disk: OpenDisk, offset: int, data: bytes) -> None: ...

    def zero(self, disk: OpenDisk, offset: int, length: int) -> None: ...

    def flush(self, disk: OpenDisk) -> float: ...

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
    ) -> TrackingStart: ...

    def collect_changes(self, disk: OpenDisk) -> Changes: ...

    def peek_changes(self, disk: OpenDisk) -> int: ...

    def stop_tracking(self) -> None: ...

    def write_out(self, mounts: Sequence[str]) -> float: ...

    def freeze(self, mounts: Sequence[str], *, limit: float) -> FreezeResult: ...

    def thaw(self) -> ThawResult: ...

    def frozen(self) -> bool: ...

    def receive(
        self,
        disks: Mapping[int, OpenDisk],
        *,
        bind: str,
        port: int,
        tls: TlsIdentity,
        session: str,
        streams: int,
    ) -> Listening: ...

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
    ) -> Streamed: ...

    def pace(self, pump: int, *, bandwidth: int | None, read_limit: int | None) -> None: ...

    def read_back(
        self, pump: int, disk: int, *, on_progress: Callable[[int], None] | None = None
    ) -> ReadBack: ...

    def received(self, pump: int) -> Mapping[str, int]: ...

    def disconnect(self, pump: int) -> None: ...

    def close(self) -> None:
        """Release everything and end the agent; can be called more than once."""
        ...
