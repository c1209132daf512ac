"""An agent as an object: its verbs with types, its refusals as exceptions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, cast

from cvm_migrate.closing import Closing
from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import InvalidRequestError, ProtocolError
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
from cvm_migrate.transport._batches import digest_batches, pieces, range_batches
from cvm_migrate.transport._child import Child
from cvm_migrate.transport._link import Answer, Link
from cvm_migrate.units import MiB

# All changes of one disk: 2**25 ranges, as many as a disk of 4 TiB can have in blocks of 64 KiB.
_CHANGES: Final = 512 * MiB
_SSH_LOST: Final = 255


class AgentSession(Closing):
    """One agent that runs, and the way to speak with it; implements :class:`~cvm_migrate.interfaces.Agent`.

    Made by :func:`~cvm_migrate.transport.start_local_agent` and
    :func:`~cvm_migrate.transport.start_ssh_agent`. Methods may be called from several threads. When the agent
    ends or falls silent, every call that waits and every later one raises
    :class:`~cvm_migrate.errors.AgentLostError`; bytes that no agent sends end it with
    :class:`~cvm_migrate.errors.ProtocolError`. Use it as a context manager, or call :meth:`close`.

    Memory: what the calls under way carry, and at most 20 MiB for each :meth:`digest`.

    Args:
        child: The process that is the agent, or leads to it.
        description: What messages call it, such as ``the agent on root@10.0.0.5``.
        silence: Seconds without a byte from it after which it counts as lost.
        patience: Seconds that it has for its greeting.
        received: What has been read from it already.
        secrets: Texts that no message may contain.
        notes: What a report should say about how it was reached.
        far: *child* only leads to it: it may go on when that has ended.

    Raises:
        AgentLostError: It ended before its greeting, or gave none in time.
        ProtocolError: It speaks another language.
    """

    def __init__(
        self,
        child: Child,
        *,
        description: str,
        silence: float = 30.0,
        patience: float = 60.0,
        received: bytes = b"",
        secrets: Sequence[str] = (),
        notes: Sequence[str] = (),
        far: bool = False,
    ) -> None:
        self._description = description
        self.silence = silence
        self._far = far
        self.notes = tuple(notes)
        self._link = Link(
            child,
            description=description,
            silence=silence,
            patience=patience,
            received=received,
            secrets=secrets,
        )
        try:
            hello = Fields(self._link.hello, f"the greeting of {description}")
            self._digests = tuple(hello.texts("digests"))
            self.python = hello.text("python")
            self.remote_pid = hello.number("pid")
            self.verbs = frozenset(hello.texts("verbs"))
            self.codecs = tuple(hello.texts("codecs"))
            self.version = hello.text("agent")
        except BaseException:
            self._link.close()
            raise

    def __repr__(self) -> str:
        return f"<AgentSession: {self._description}, Python {self.python}>"

    @property
    def description(self) -> str:
        """What messages call this agent."""
        return self._description

    @property
    def digests(self) -> tuple[str, ...]:
        """Digest algorithms it offers, best first."""
        return self._digests

    @property
    def pid(self) -> int:
        """Process number of the child on this machine: the agent itself, or the SSH client."""
        return self._link.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status of that child, once it has ended; negative for a signal."""
        return self._link.exit_status

    @property
    def may_linger(self) -> bool:
        """Whether it may still run after :meth:`close`: nobody answered. It ends after ``silence`` seconds."""
        if self._link.confirmed:
            return False
        status = self.exit_status
        # OpenSSH's client says 255 if the connection was lost, and else what the other end says; a signal ended itself.
        return status is None or (self._far and (status == _SSH_LOST or status < 0))

    def close(self) -> None:
        """Release everything and end the agent; can be called more than once."""
        self._link.close()

    def _ask(
        self,
        verb: str,
        blob: bytes = b"",
        *,
        on_part: Callable[[Answer], None] | None = None,
        cancel: CancelToken | None = None,
        **arguments: object,
    ) -> Fields:
        answer = self._link.request(verb, arguments, blob, on_part=on_part, cancel=cancel)
        return Fields(answer.header, f"the answer of {self._description} to {verb}", answer.blob)

    def facts(self) -> HostFacts:
        """Return what the agent finds out about its host without touching it."""
        answer = self._ask("facts")
        try:
            return HostFacts.from_wire(answer.all)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"{answer.of} makes no sense: {error!r}") from error

    def open_disk(
        self, path: str, *, mode: Literal["read", "write"] = "read", create_size: int | None = None
    ) -> OpenDisk:
        """Open a disk, or a file that stands for one.

        Args:
            path: As the agent's host knows it.
            mode: ``write`` also allows reading, and only of a disk that nobody uses.
            create_size: Bytes to which a file is made or grown; ``None``: it must exist.

        Raises:
            NotFoundError: There is no such disk.
            UnsafeTargetError: It is mounted, held or in use.
            PermissionDeniedError: Rights are missing.
        """
        answer = self._ask("open", path=path, mode=mode, create_size=create_size)
        kind = answer.text("kind")
        if kind not in ("block", "file"):
            raise ProtocolError(f"{answer.of} has the unknown kind {kind!r:.20}")
        return OpenDisk(
            handle=answer.number("handle"),
            path=answer.text("path"),
            kind="block" if kind == "block" else "file",
            size=answer.number("size"),
            logical_block_size=answer.number("logical_block_size"),
            physical_block_size=answer.number("physical_block_size"),
            identity=answer.text("identity"),
            direct=answer.flag("direct"),
        )

    def close_disk(self, disk: OpenDisk) -> None:
        """Close it."""
        self._ask("close", handle=disk.handle)

    def read(self, disk: OpenDisk, offset: int, length: int) -> bytes:
        """Return *length* bytes from *offset* on.

        Raises:
            SourceReadError: The disk refused; the error names the range.
        """
        parts: list[bytes] = []
        for at, count in pieces(offset, length):
            answer = self._ask("read", handle=disk.handle, offset=at, length=count)
            if len(answer.blob) != count:
                raise ProtocolError(f"{answer.of} has {len(answer.blob)} bytes, not {count}")
            parts.append(answer.blob)
        return b"".join(parts)

    def write(self, disk: OpenDisk, offset: int, data: bytes) -> None:
        """Write *data* at *offset*; on the disk only after :meth:`flush`."""
        for at, count in pieces(offset, len(data)):
            first = at - offset
            self._ask("write", data[first : first + count], handle=disk.handle, offset=at)

    def zero(self, disk: OpenDisk, offset: int, length: int) -> None:
        """Make a range read as zeroes."""
        self._ask("zero", handle=disk.handle, offset=offset, length=length)

    def flush(self, disk: OpenDisk) -> float:
        """Bring everything written to the disk itself; return the seconds that took."""
        return self._ask("flush", handle=disk.handle).seconds("seconds")

    def digest(
        self,
        disk: OpenDisk,
        ranges: ExtentMap,
        *,
        chunk: int,
        algorithm: str,
        cancel: CancelToken | None = None,
    ) -> Generator[tuple[int, list[bytes]]]:
        """Yield ``(offset, digests)``: digests of chunks that follow one another from *offset* on.

        Args:
            disk: What is read.
            ranges: Where; each begins on a multiple of *chunk*.
            chunk: Bytes of a chunk; the last of a range may be shorter.
            algorithm: One of :attr:`digests`.
            cancel: Ends it at the next chunk.

        Raises:
            CancelledError: *cancel* was set.
            SourceReadError: The disk refused a range.
        """
        if chunk <= 0:
            raise InvalidRequestError(f"a chunk of {chunk} bytes is none", length=chunk)
        for batch in digest_batches(ranges, chunk):
            yield from self._digest(disk, batch, chunk, algorithm, cancel)

    def _digest(
        self,
        disk: OpenDisk,
        ranges: ExtentMap,
        chunk: int,
        algorithm: str,
        cancel: CancelToken | None,
    ) -> Generator[tuple[int, list[bytes]]]:
        arguments = {"handle": disk.handle, "chunk": chunk, "algorithm": algorithm}
        expected = sum(-(-extent.length // chunk) for extent in ranges)
        answers = self._link.parts(
            "digest",
            arguments,
            ranges.to_wire(),
            # A digest has at most 64 bytes, and a part at least one digest.
            room=expected * (64 + 256),
            cancel=cancel,
        )
        previous: Answer | None = None
        with contextlib.closing(answers):
            for answer in answers:
                if previous is not None:
                    yield self._digests_of(previous)
                # The last answer is the RESULT: it has totals, no digests.
                previous = answer

    def _digests_of(self, answer: Answer) -> tuple[int, list[bytes]]:
        part = Fields(answer.header, f"a part of the digests of {self._description}")
        count, blob = part.number("count"), answer.blob
        if count <= 0 or len(blob) % count or not 4 <= len(blob) // count <= 64:
            raise ProtocolError(f"{part.of} has {len(blob)} bytes for {count} digests")
        size = len(blob) // count
        return part.number("offset"), [blob[i : i + size] for i in range(0, len(blob), size)]

    def start_tracking(
        self, disks: Sequence[OpenDisk], *, rungs: Sequence[str], block: int | None = None
    ) -> TrackingStart:
        """Start to track changes, with the first of *rungs* that works."""
        answer = self._ask(
            "track_start",
            handles=[disk.handle for disk in disks],
            rungs=list(rungs),
            block=block,
        )
        return TrackingStart(
            rung=answer.maybe_text("rung"),
            refused=answer.text_map("refused"),
            # Without a rung there is no granularity.
            block=0 if answer.value("block") is None else answer.number("block"),
        )

    def collect_changes(self, disk: OpenDisk) -> Changes:
        """Return what was written since the last collection, and begin anew."""
        written: list[bytes] = []
        discarded: list[bytes] = []
        last: Answer | None = None
        name = f"the changes of {self._description}"
        for answer in self._link.parts("track_collect", {"handle": disk.handle}, room=_CHANGES):
            if last is not None:
                what = Fields(last.header, name).text("what")
                if what not in ("written", "discarded"):
                    raise ProtocolError(f"{name}: unknown part {what!r:.20}")
                (written if what == "written" else discarded).append(last.blob)
            last = answer
        result = Fields({} if last is None else last.header, name)
        return Changes(
            written=ExtentMap.from_wire(*written),
            discarded=ExtentMap.from_wire(*discarded),
            certain=result.flag("certain"),
            reason=result.maybe_text("reason"),
            events=result.number("events"),
        )

    def peek_changes(self, disk: OpenDisk) -> Marked:
        """Return how many bytes are dirty, and whether that is all; clears nothing."""
        answer = self._ask("track_peek", handle=disk.handle)
        return Marked(
            total=answer.number("dirty_bytes"),
            certain=answer.flag("certain"),
            reason=answer.maybe_text("reason"),
        )

    def stop_tracking(self) -> None:
        """Stop to track, and take the tracker off the kernel."""
        self._ask("track_stop")

    def write_out(self, mounts: Sequence[str]) -> float:
        """Have file systems write what they hold back; return the seconds that took."""
        return self._ask("write_out", mounts=list(mounts)).seconds("seconds")

    def freeze(self, mounts: Sequence[str], *, limit: float) -> FreezeResult:
        """Freeze file systems, in this order, for at most *limit* seconds."""
        answer = self._ask("freeze", mounts=list(mounts), limit=limit)
        refused: dict[str, str] = {}
        for entry in answer.items("refused"):
            fields = Fields(entry, answer.of)
            refused[fields.text("mount")] = fields.text("reason")
        return FreezeResult(
            frozen=tuple(answer.texts("frozen")),
            refused=refused,
            seconds=answer.seconds("seconds"),
        )

    def thaw(self) -> ThawResult:
        """Thaw what :meth:`freeze` froze."""
        answer = self._ask("thaw")
        return ThawResult(held=answer.seconds("held"), lost=answer.flag("lost"))

    def frozen(self) -> bool:
        """Whether what was frozen still is."""
        return bool(self._ask("frozen").value("frozen"))

    def reach(self, host: str, port: int, *, timeout: float) -> Reach:
        """Connect to a port once from the agent's host, and send nothing.

        Args:
            host: A name or an address.
            port: Its port.
            timeout: Seconds, from 0.1 to 60, that it may take; finding the addresses of a name may take longer.
        """
        answer = self._ask("reach", host=host, port=port, timeout=timeout)
        return Reach(
            outcome=answer.text("outcome"),
            seconds=answer.seconds("seconds"),
            address=answer.maybe_text("address"),
            message=answer.maybe_text("message"),
            mtu=answer.maybe_number("mtu"),
            mss=answer.maybe_number("mss"),
        )

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
        """Start a receiving pump: it listens, and writes to *disks* what the right peer sends."""
        self._hide(tls, session)
        answer = self._ask(
            "receive",
            disks=_handles(disks),
            bind=bind,
            port=port,
            tls=_identity(tls),
            session=session,
            streams=streams,
        )
        return Listening(pump=answer.number("pump"), port=answer.number("port"))

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
        """Start a sending pump and connect it; return its number.

        Raises:
            PeerRefusedError: One end is not of this migration.
            ConnectionLostError: Nobody answered for *patience* seconds.
            CancelledError: It was called off before it was connected.
        """
        self._hide(tls, session)
        answer = self._ask(
            "connect",
            cancel=cancel,
            disks=_handles(disks),
            host=host,
            port=port,
            tls=_identity(tls),
            session=session,
            streams=streams,
            algorithm=algorithm,
            patience=patience,
        )
        return answer.number("pump")

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
        """Send *ranges* of a disk; return when they are on the target's disk.

        Args:
            pump: Number of the sending pump.
            disk: Number of the disk, as given to :meth:`connect`.
            ranges: What is sent.
            chunk: Bytes that are read, digested and sent at a time.
            codec: ``auto``, ``raw``, ``zlib`` or ``zstd``.
            level: How hard that codec tries.
            bandwidth: Bytes per second on the wire; ``None``: no limit.
            read_limit: Bytes per second read from the disk; ``None``: no limit.
            on_progress: Sees what has been done so far, from this thread.
            cancel: Ends it at the next chunk.

        Raises:
            SourceReadError: The source's disk refused a range.
            TargetWriteError: The target's disk did.
            ConnectionLostError: The path stayed cut.
            CancelledError: *cancel* was set.
        """
        done = Streamed(
            acked=0,
            wire=0,
            zero=0,
            read=0,
            seconds=0.0,
            flush_seconds=0.0,
            reconnects=0,
            codec=codec,
        )
        # Also for no ranges at all one request: its answer says that all before it is on the disk.
        batches = list(range_batches(ranges)) or [ranges]
        for batch in batches:
            before = done

            def progress(part: Answer, before: Streamed = before) -> None:
                if on_progress is not None:
                    fields = Fields(part.header, f"the progress of {self._description}")
                    on_progress(_sum(before, fields, last=False))

            answer = self._ask(
                "stream",
                batch.to_wire(),
                on_part=progress,
                cancel=cancel,
                pump=pump,
                disk=disk,
                chunk=chunk,
                codec=codec,
                level=level,
                bandwidth=bandwidth,
                read_limit=read_limit,
            )
            done = _sum(before, answer, last=True)
        return done

    def measure(
        self,
        pump: int,
        *,
        seconds: float,
        bandwidth: int | None = None,
        cancel: CancelToken | None = None,
    ) -> Measured:
        """Send noise over all connections of a pump, which its receiver throws away.

        Args:
            pump: Number of the sending pump.
            seconds: How long, from 0.1 to 10; a slow path takes a little longer to confirm it.
            bandwidth: Bytes per second on the wire; ``None``: no limit.
            cancel: Ends it.

        Raises:
            ConnectionLostError: Nothing came through.
            CancelledError: *cancel* was set.
        """
        answer = self._ask(
            "measure", cancel=cancel, pump=pump, seconds=seconds, bandwidth=bandwidth
        )
        return Measured(
            arrived=answer.number("bytes"),
            seconds=answer.seconds("seconds"),
            rate=answer.seconds("rate"),
            rtt=answer.seconds("rtt"),
            mtu=answer.maybe_number("mtu"),
            mss=answer.maybe_number("mss"),
            tls_version=answer.maybe_text("tls_version"),
            cipher=answer.maybe_text("cipher"),
        )

    def pace(self, pump: int, *, bandwidth: int | None, read_limit: int | None) -> None:
        """Change the limits of a stream that runs, in bytes per second."""
        self._ask("pace", pump=pump, bandwidth=bandwidth, read_limit=read_limit)

    def read_back(
        self, pump: int, disk: int, *, on_progress: Callable[[int], None] | None = None
    ) -> ReadBack:
        """Read from the disk what was received since the last call, and compare it with what was sent.

        Args:
            pump: Number of the receiving pump.
            disk: Number of the disk.
            on_progress: Sees how many bytes have been read so far.
        """

        def progress(part: Answer) -> None:
            if on_progress is not None:
                on_progress(Fields(part.header, "the progress of a reading back").number("done"))

        answer = self._ask("read_back", on_part=progress, pump=pump, disk=disk)
        pairs: list[tuple[int, int]] = []
        for pair in answer.items("wrong"):
            match pair:
                case [int(offset), int(length)] if offset >= 0 and length >= 0:
                    pairs.append((offset, length))
                case _:
                    raise ProtocolError(f"{answer.of} has a range that is none: {pair!r:.40}")
        return ReadBack(
            bytes=answer.number("bytes"),
            seconds=answer.seconds("seconds"),
            wrong=ExtentMap(pairs),
        )

    def received(self, pump: int) -> Mapping[str, int]:
        """Return what a receiving pump has counted: bytes, connections, peers turned away."""
        answer = self._ask("received", pump=pump)
        return {name: answer.number(name) for name in answer.all}

    def disconnect(self, pump: int) -> None:
        """End a pump of either kind."""
        self._ask("disconnect", pump=pump)

    def _hide(self, tls: TlsIdentity, session: str) -> None:
        # Line by line: a message may quote only a part of the key.
        self._link.hide(session, *(line for line in tls.key.splitlines() if len(line) >= 16))


class Fields:
    """The fields of an answer, which an agent of another version or mind may have got wrong.

    Args:
        header: The fields.
        of: What they belong to, for messages.
        blob: The bytes that came with them.
    """

    def __init__(self, header: object, of: str, blob: bytes = b"") -> None:
        if not isinstance(header, dict):
            raise ProtocolError(f"{of} has no fields")
        self.all = cast("dict[str, Any]", header)
        self.of = of
        self.blob = blob

    def value(self, name: str) -> object:
        """Return a field.

        Raises:
            ProtocolError: It is missing.
        """
        try:
            return self.all[name]
        except KeyError:
            raise ProtocolError(f"{self.of} lacks {name!r}") from None

    def _wrong(self, name: str) -> ProtocolError:
        return ProtocolError(f"{self.of} has {self.all.get(name)!r:.60} for {name!r}")

    def number(self, name: str) -> int:
        """Return a whole number that is not negative."""
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(name)
        return value

    def maybe_number(self, name: str) -> int | None:
        """Return a whole number that is not negative, or ``None``."""
        return None if self.value(name) is None else self.number(name)

    def seconds(self, name: str) -> float:
        """Return a duration."""
        value = self.value(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name)
        return float(value)

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self._wrong(name)
        return value

    def text(self, name: str) -> str:
        """Return a text."""
        value = self.value(name)
        if not isinstance(value, str):
            raise self._wrong(name)
        return value

    def maybe_text(self, name: str) -> str | None:
        """Return a text or ``None``."""
        return None if self.value(name) is None else self.text(name)

    def items(self, name: str) -> list[Any]:
        """Return a list of anything."""
        value = self.value(name)
        if not isinstance(value, list):
            raise self._wrong(name)
        return list(cast("Iterable[Any]", value))

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        found: list[str] = []
        for item in self.items(name):
            if not isinstance(item, str):
                raise self._wrong(name)
            found.append(item)
        return found

    def text_map(self, name: str) -> dict[str, str]:
        """Return texts by name."""
        value = self.value(name)
        if not isinstance(value, dict):
            raise self._wrong(name)
        return {str(key): str(text) for key, text in cast("dict[object, object]", value).items()}


def _handles(disks: Mapping[int, OpenDisk]) -> dict[str, int]:
    return {str(number): disk.handle for number, disk in disks.items()}


def _identity(tls: TlsIdentity) -> dict[str, str]:
    return {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key, "peer": tls.peer}


def _sum(before: Streamed, fields: Fields, *, last: bool) -> Streamed:
    return Streamed(
        acked=before.acked + fields.number("acked"),
        wire=before.wire + fields.number("wire"),
        zero=before.zero + fields.number("zero"),
        read=before.read + fields.number("read"),
        seconds=before.seconds + fields.seconds("seconds"),
        flush_seconds=before.flush_seconds + (fields.seconds("flush_seconds") if last else 0.0),
        reconnects=before.reconnects + (fields.number("reconnects") if last else 0),
        codec=fields.text("codec") if last else before.codec,
    )
