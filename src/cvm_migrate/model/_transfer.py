"""What agents answer about disks, changes, freezes and streams. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Literal

import attrs

from cvm_migrate.model._extents import ExtentMap


@attrs.frozen
class OpenDisk:
    """A disk or file that an agent has open.

    Attributes:
        handle: The agent's number for it.
        path: As the agent knows it.
        kind: A block device, or a regular file that stands for a disk.
        size: Bytes.
        logical_block_size: What offsets and lengths are multiples of, in bytes.
        identity: Equal for two names of the same thing on one host: ``block:MAJOR:MINOR`` or
            ``file:DEVICE:INODE``.
        direct: Whether it is read without the page cache.
    """

    handle: int
    path: str
    kind: Literal["block", "file"]
    size: int
    logical_block_size: int
    physical_block_size: int
    identity: str
    direct: bool


@attrs.frozen
class TrackingStart:
    """How changes are tracked.

    Attributes:
        rung: ``ebpf``, ``tracefs``, or ``None`` where no tracker could start and digests serve.
        refused: Why each rung above it could not be used.
        block: Granularity in bytes.
    """

    rung: str | None
    refused: dict[str, str]
    block: int


@attrs.frozen
class Changes:
    """What was written to a disk since the last collection.

    Attributes:
        written: Ranges that were written.
        discarded: Ranges that were discarded, and not written afterwards.
        certain: Whether nothing can have been missed. If not, compare digests of everything.
        reason: Why it is not certain.
        events: Requests seen since the tracker started.
    """

    written: ExtentMap
    discarded: ExtentMap
    certain: bool
    reason: str | None
    events: int


@attrs.frozen
class Marked:
    """What is marked as written at a moment; nothing is cleared.

    Attributes:
        total: Bytes that are marked.
        certain: Whether that is all. If not, only a comparison can tell what was written.
        reason: Why it is not certain.
    """

    total: int
    certain: bool = True
    reason: str | None = None


@attrs.frozen
class FreezeResult:
    """What a freeze froze; *refused* maps mount points to the reason."""

    frozen: tuple[str, ...]
    refused: dict[str, str]
    seconds: float


@attrs.frozen
class ThawResult:
    """How long file systems were frozen; *lost* if the watchdog thawed them before the call."""

    held: float
    lost: bool


@attrs.frozen
class TlsIdentity:
    """One end's keys for one migration, as PEM text. They stay in memory."""

    ca: str = attrs.field(repr=False)
    certificate: str = attrs.field(repr=False)
    key: str = attrs.field(repr=False)
    peer: str


@attrs.frozen
class Listening:
    """A receiver that waits for its peer; *pump* is the agent's number for it."""

    pump: int
    port: int


@attrs.frozen
class Reach:
    """Whether a port could be reached from an agent's host.

    Attributes:
        outcome: ``open``; ``refused``: the way is there, and nobody listens; ``timeout``; ``unreachable``: the system
            or a router said so; ``unknown-name``.
        seconds: Until that was known; for the first two about one round trip.
        address: The one that was tried; ``None`` for an unknown name.
        message: What the system said; ``None`` where it is open.
        mtu: Of the path, as far as the system knows it.
        mss: Bytes of a segment, likewise.
    """

    outcome: str
    seconds: float
    address: str | None
    message: str | None
    mtu: int | None
    mss: int | None


@attrs.frozen
class Measured:
    """What a path between two pumps can carry.

    Attributes:
        arrived: Bytes that came to the other end.
        seconds: From the first byte to the last confirmation.
        rate: Bytes per second, once connections had picked up speed.
        rtt: Round trip in seconds.
        mtu: Of the path, as far as the source's system knows it.
        mss: Bytes of a segment, likewise.
        tls_version: Of the connections, such as ``TLSv1.3``.
        cipher: Likewise.
    """

    arrived: int
    seconds: float
    rate: float
    rtt: float
    mtu: int | None
    mss: int | None
    tls_version: str | None
    cipher: str | None


@attrs.frozen
class Streamed:
    """What a stream did. It is on the target's disk.

    Attributes:
        acked: Bytes of the disk that were confirmed.
        wire: Bytes sent, TLS records not counted.
        zero: Bytes that were zeroes and sent as facts.
        read: Bytes read from the source.
        seconds: From the first read to the last confirmation.
        flush_seconds: The target's last flush, part of *seconds*.
        reconnects: How often the path was cut and made anew.
        codec: What compressed most of it.
    """

    acked: int
    wire: int
    zero: int
    read: int
    seconds: float
    flush_seconds: float
    reconnects: int
    codec: str


@attrs.frozen
class ReadBack:
    """What the target proved by reading its disk back.

    Attributes:
        bytes: Bytes whose digest equals what the source sent.
        wrong: Ranges that differ.
    """

    bytes: int
    seconds: float
    wrong: ExtentMap
