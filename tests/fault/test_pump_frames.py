"""Whatever bytes come, a pump says what is wrong, keeps its memory, and goes on."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import attrs
import pytest
import zstandard

from capabilities import require
from cvm_migrate.agent import digests
from cvm_migrate.agent.pump import frames
from cvm_migrate.errors import (
    ConnectionLostError,
    CvmMigrateError,
    DefectError,
    PeerRefusedError,
)
from cvm_migrate.model import TlsIdentity
from cvm_migrate.transport import mint_identities
from rig import loopdev, pumps
from rig.pumps import MiB, Pair

_SIZE = 2 * MiB
_MEMORY = 100 * MiB


def _context(folder: Path, identity: TlsIdentity, *, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=identity.ca)
    chain = folder / f"chain-{server}.pem"
    chain.write_text(identity.certificate + identity.key)
    context.load_cert_chain(chain)
    return context


@pytest.fixture(name="pair")
def _pair(tmp_path: Path) -> Generator[Pair]:
    require("root", "loop")
    with (
        pumps.disks(tmp_path, _SIZE, kinds="n") as (source, target),
        pumps.pair(source, target) as pair,
    ):
        yield pair


@pytest.fixture(name="disk")
def _disk(pair: Pair) -> Generator[Path]:
    """The target's disk, which must be as it was."""
    path = Path(pair.target_disk.path)
    before = loopdev.read_direct(path)
    yield path
    assert loopdev.read_direct(path) == before


class _Line:
    """A sender made by hand, with the right keys."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._held = b""

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self._sock.sendall(data)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            # The TLS socket's own method would take TLS away from what is still to be read.
            socket.socket.shutdown(self._sock, socket.SHUT_WR)

    def _fill(self, count: int) -> bool:
        while len(self._held) < count:
            try:
                data = self._sock.recv(65536)
            except (ConnectionError, ssl.SSLError):
                return False
            if not data:
                return False
            self._held += data
        return True

    def next(self) -> tuple[frames.Header, dict[str, Any]] | None:
        """The next frame that is not ALIVE; None at the end."""
        while self._fill(frames.HEADER.size):
            header = frames.decode_header(self._held[: frames.HEADER.size], from_sender=False)
            size = frames.HEADER.size + header.size
            if not self._fill(size):
                return None
            payload, self._held = self._held[frames.HEADER.size : size], self._held[size:]
            if header.kind != frames.ALIVE:
                return header, json.loads(payload) if payload else {}
        return None


def _hello(pair: Pair, **changes: object) -> bytes:
    return frames.encode_json(
        frames.HELLO,
        {
            "protocol": 1,
            "session": pair.identities.session,
            "sender": "f" * 32,
            "lane": 0,
            "algorithm": "sha256",
            "codecs": ["zstd", "zlib", "raw"],
            "disks": {"1": _SIZE},
        }
        | changes,
    )


@contextlib.contextmanager
def _line(pair: Pair, folder: Path, *, hello: bool = True) -> Generator[_Line]:
    context = _context(folder, pair.identities.source, server=False)
    with (
        socket.create_connection(("127.0.0.1", pair.listening.port), timeout=30) as plain,
        context.wrap_socket(plain) as secure,
    ):
        line = _Line(secure)
        if hello:
            line.send(_hello(pair))
            answer = line.next()
            assert answer is not None
            assert answer[0].kind == frames.WELCOME
        yield line


def _data(payload: bytes, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "size": len(payload),
        "disk": 1,
        "sequence": 1,
        "offset": 0,
        "length": len(payload),
        "digest": digests.digest("sha256", payload),
    }
    return frames.encode_header(frames.DATA, **(fields | changes)) + payload


def _probe(payload: bytes, **changes: Any) -> bytes:
    fields: dict[str, Any] = {"size": len(payload), "sequence": 1, "length": len(payload)}
    return frames.encode_header(frames.PROBE, **(fields | changes)) + payload


_BLOCK = b"\xab" * 4096

_ENDING = {
    "unknown-kind": frames.encode_header(99),
    "a-frame-of-the-receiver": frames.encode_header(frames.ACK, sequence=1),
    "a-second-hello": frames.encode_json(frames.HELLO, {}),
    "a-number-left-out": _data(_BLOCK, sequence=2),
    "another-disk": _data(_BLOCK, disk=2),
    "past-the-end": _data(_BLOCK, offset=_SIZE),
    "far-past-the-end": _data(_BLOCK, offset=(1 << 64) - 4096),
    "across-the-end": _data(_BLOCK, offset=_SIZE - 512),
    "inside-a-sector": _data(_BLOCK, offset=100),
    "ends-inside-a-sector": _data(_BLOCK[:1000]),
    "no-length": _data(b"", length=0),
    "an-enormous-chunk": frames.encode_header(
        frames.DATA, size=1 << 31, disk=1, sequence=1, length=1 << 31
    ),
    "more-bytes-than-length": _data(_BLOCK, length=2048),
    "an-unknown-codec": _data(_BLOCK, codec=9),
    "enormous-zeroes": frames.encode_header(frames.ZERO, disk=1, sequence=1, length=1 << 40),
    "zeroes-past-the-end": frames.encode_header(
        frames.ZERO, disk=1, sequence=1, offset=_SIZE, length=4096
    ),
    "zeroes-with-a-payload": frames.encode_header(
        frames.ZERO, size=9, disk=1, sequence=1, length=4096
    )
    + b"x" * 9,
    "an-empty-probe": frames.encode_header(frames.PROBE, sequence=1),
    "an-enormous-probe": frames.encode_header(
        frames.PROBE, size=1 << 31, sequence=1, length=1 << 31
    ),
    "a-probe-of-two-sizes": frames.encode_header(frames.PROBE, size=9, sequence=1, length=8)
    + b"x" * 9,
    "a-probe-that-is-compressed": frames.encode_header(
        frames.PROBE, size=9, codec=frames.ZLIB, sequence=1, length=9
    )
    + b"x" * 9,
    "a-probe-for-a-disk": frames.encode_header(frames.PROBE, size=9, disk=1, sequence=1, length=9)
    + b"x" * 9,
    "a-probe-with-an-offset": frames.encode_header(
        frames.PROBE, size=9, sequence=1, offset=4096, length=9
    )
    + b"x" * 9,
    "a-probe-out-of-order": _probe(b"x", sequence=2),
    "enormous-json": struct.pack(">BBHI", frames.HELLO, 0, 0, 1 << 31) + b"\0" * 56,
    "zero-bytes": b"\0" * 64,
}


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("name", sorted(_ENDING))
def test_a_frame_that_breaks_a_rule_ends_the_connection_with_a_reason(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    with _line(pair, tmp_path) as line:
        line.send(_ENDING[name])
        answer = line.next()

        assert answer is not None
        header, facts = answer
        assert header.kind == frames.REFUSED
        assert facts["code"] in {"internal", "bad-request"}
        assert facts["message"]
        assert line.next() is None
    assert pair.received("bytes") == 0


def _bomb(codec: int) -> bytes:
    """Bytes that become 64 MiB where they were announced as 64 KiB."""
    zeroes = b"\0" * (64 * MiB)
    packed = zlib.compress(zeroes, 9) if codec == frames.ZLIB else zstandard.compress(zeroes, 1)
    return _data(packed, codec=codec, length=max(65536, len(packed) + 4096 & ~4095))


_FAILING = {
    "a-wrong-digest": _data(_BLOCK, digest=b"\1" * 32),
    "zlib-that-is-none": _data(_BLOCK[:100], codec=frames.ZLIB, length=4096),
    "zstd-that-is-none": _data(_BLOCK[:100], codec=frames.ZSTD, length=4096),
    "zlib-that-is-too-short": _data(zlib.compress(_BLOCK), codec=frames.ZLIB, length=8192),
    "zlib-that-is-cut": _data(zlib.compress(_BLOCK)[:-6], codec=frames.ZLIB, length=4096),
    "zstd-that-is-too-short": _data(zstandard.compress(_BLOCK), codec=frames.ZSTD, length=8192),
    "zstd-that-announces-a-terabyte": _data(
        b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + b"\0" * 20,
        codec=frames.ZSTD,
        length=4096,
    ),
    "a-zlib-bomb": _bomb(frames.ZLIB),
    "a-zstd-bomb": _bomb(frames.ZSTD),
}


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("name", sorted(_FAILING))
def test_a_chunk_that_is_not_what_it_says_is_not_written(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    with _line(pair, tmp_path) as line:
        line.send(_FAILING[name])
        answer = line.next()

        assert answer is not None
        header, facts = answer
        assert (header.kind, header.sequence, facts["code"]) == (frames.FAILED, 1, "internal")
    (pid,) = pumps.pump_pids(pair.target)
    assert pumps.peak_memory(pid) < _MEMORY


@pytest.mark.usefixtures("disk")
def test_probes_are_answered_and_written_nowhere(pair: Pair, tmp_path: Path) -> None:
    with _line(pair, tmp_path) as line:
        line.send(_probe(_BLOCK) + _probe(b"\xff" * frames.MAX_CHUNK, sequence=2))
        last = 0
        while last < 2:
            answer = line.next()
            assert answer is not None
            assert answer[0].kind == frames.ACK
            last = answer[0].sequence
    assert pair.received("bytes") == 0
    assert pair.read_back().bytes == 0
    (pid,) = pumps.pump_pids(pair.target)
    assert pumps.peak_memory(pid) < _MEMORY


@pytest.mark.usefixtures("disk")
def test_nothing_is_taken_in_before_a_hello(pair: Pair, tmp_path: Path) -> None:
    with _line(pair, tmp_path, hello=False) as line:
        line.send(_probe(_BLOCK))
        answer = line.next()

        assert answer is not None
        assert answer[0].kind == frames.REFUSED
    assert pair.received("refused") == 1
    assert pair.received("wire") == 0


@pytest.mark.usefixtures("disk")
def test_a_frame_that_is_cut_off_counts_as_never_sent(pair: Pair, tmp_path: Path) -> None:
    whole = _data(_BLOCK)
    for length in (1, 63, 64, 65, len(whole) - 1):
        with _line(pair, tmp_path) as line:
            line.send(whole[:length])
            line.end()
            assert line.next() is None
    assert pair.received("bytes") == 0


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": 2},
        {"lane": 2},
        {"lane": -1},
        {"lane": "0"},
        {"sender": None},
        {"algorithm": "md5"},
        {"disks": {"2": 4096}},
        {"disks": {"x": 4096}},
        {"disks": {"1": "4096"}},
        {"disks": None},
        {"session": None},
        {"session": ["0"]},
    ],
    ids=str,
)
def test_a_hello_that_makes_no_sense_is_refused(
    pair: Pair, tmp_path: Path, changes: dict[str, object]
) -> None:
    with _line(pair, tmp_path, hello=False) as line:
        line.send(_hello(pair, **changes))
        answer = line.next()

        assert answer is not None
        assert answer[0].kind == frames.REFUSED
    assert pair.received("refused") == 1


@pytest.mark.usefixtures("disk")
def test_random_bytes_after_a_right_handshake_harm_nothing(pair: Pair, tmp_path: Path) -> None:
    generator = random.Random(7)
    for turn in range(30):
        with _line(pair, tmp_path, hello=turn % 2 == 0) as line:
            line.send(generator.randbytes(generator.choice((1, 64, 65, 5000, 100_000))))
            line.end()
            while line.next() is not None:
                pass
    (pid,) = pumps.pump_pids(pair.target)
    assert pair.received("bytes") == 0
    assert pumps.peak_memory(pid) < _MEMORY


# -- the sender's end


@contextlib.contextmanager
def _false_receiver(
    pair: Pair, folder: Path, behave: Callable[[ssl.SSLSocket], None]
) -> Generator[None]:
    """Something in the receiver's place that has its keys, and other manners."""
    context = _context(folder, pair.identities.target, server=True)
    listener = socket.create_server(("127.0.0.1", 0))
    pair.listening = attrs.evolve(pair.listening, port=listener.getsockname()[1])
    closed = threading.Event()

    def serve(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            plain.settimeout(30)
            with context.wrap_socket(plain, server_side=True) as secure:
                behave(secure)

    def accept() -> None:
        while not closed.is_set():
            with contextlib.suppress(TimeoutError):
                plain, _ = listener.accept()
                threading.Thread(target=serve, args=(plain,), daemon=True).start()

    listener.settimeout(0.1)
    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join(20)
        listener.close()


def _welcome(secure: ssl.SSLSocket) -> None:
    secure.recv(65536)
    secure.sendall(
        frames.encode_json(
            frames.WELCOME, {"protocol": 1, "codecs": ["raw"], "disks": {"1": _SIZE}}
        )
    )


def _await_end(secure: ssl.SSLSocket) -> None:
    while secure.recv(65536):
        pass


_INSTEAD_OF_WELCOME = {
    "random-bytes": random.Random(1).randbytes(4096),
    "an-ack": frames.encode_header(frames.ACK, sequence=1),
    "nothing-of-use": frames.encode_json(frames.WELCOME, {}),
    "no-json": frames.encode_header(frames.WELCOME, size=4) + b"\xff{}x",
    "lists": frames.encode_json(frames.WELCOME, {"protocol": 1, "codecs": {}, "disks": []}),
    "a-refusal-of-odd-types": frames.encode_json(frames.REFUSED, {"code": 7, "message": [1]}),
}


@pytest.mark.parametrize("name", sorted(_INSTEAD_OF_WELCOME))
def test_a_receiver_that_welcomes_nobody_is_an_error(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    def behave(secure: ssl.SSLSocket) -> None:
        secure.recv(65536)
        secure.sendall(_INSTEAD_OF_WELCOME[name])
        _await_end(secure)

    with (
        _false_receiver(pair, tmp_path, behave),
        pytest.raises((PeerRefusedError, DefectError)),
    ):
        pair.connect(patience=20.0)


_INSTEAD_OF_ACK = {
    "random-bytes": random.Random(2).randbytes(4096),
    "an-ack-of-the-future": frames.encode_header(frames.ACK, sequence=1 << 40),
    "a-second-welcome": frames.encode_json(frames.WELCOME, {}),
    "flushed": frames.encode_json(frames.FLUSHED, {"seconds": 1}, sequence=1),
    "a-failure-without-facts": frames.encode_json(frames.FAILED, {}, sequence=1),
    "a-chunk": _data(_BLOCK),
    "a-probe": _probe(_BLOCK),
}


@pytest.mark.parametrize("name", sorted(_INSTEAD_OF_ACK))
def test_a_receiver_that_answers_with_something_else_is_an_error(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    def behave(secure: ssl.SSLSocket) -> None:
        _welcome(secure)
        secure.recv(65536)
        secure.sendall(_INSTEAD_OF_ACK[name])
        _await_end(secure)

    with _false_receiver(pair, tmp_path, behave):
        pair.connect(patience=20.0, streams=1)
        with pytest.raises(DefectError):
            pair.stream()
        (pid,) = pumps.pump_pids(pair.source)
        assert pumps.peak_memory(pid) < _MEMORY


def test_a_receiver_that_confirms_no_probe_is_an_error_in_time(pair: Pair, tmp_path: Path) -> None:
    def behave(secure: ssl.SSLSocket) -> None:
        _welcome(secure)
        _await_end(secure)

    with _false_receiver(pair, tmp_path, behave):
        pair.connect(patience=20.0, streams=1)
        with pytest.raises(ConnectionLostError):
            pair.source.measure(pair.pump, seconds=0.2)


def test_a_receiver_that_hangs_up_again_and_again_uses_patience_up(
    pair: Pair, tmp_path: Path
) -> None:
    def behave(secure: ssl.SSLSocket) -> None:
        _welcome(secure)
        secure.recv(65536)

    with _false_receiver(pair, tmp_path, behave):
        pair.connect(patience=2.0, streams=1)
        with pytest.raises(CvmMigrateError, match="no connection"):
            pair.stream()


def test_what_the_target_could_not_write_is_told_with_its_place(
    pair: Pair, tmp_path: Path
) -> None:
    failure = {
        "code": "no-room",
        "message": "writing /target: No space left on device",
        "errno": 28,
        "device": "/target",
        "offset": 4096,
        "length": 512,
    }

    def behave(secure: ssl.SSLSocket) -> None:
        _welcome(secure)
        # An answer that comes before the whole chunk was sent would be one out of order.
        left = frames.HEADER.size + MiB
        while left:
            left -= len(secure.recv(left))
        secure.sendall(frames.encode_json(frames.FAILED, failure, sequence=1))
        _await_end(secure)

    with _false_receiver(pair, tmp_path, behave):
        pair.connect(patience=20.0, streams=1)
        with pytest.raises(CvmMigrateError) as caught:
            pair.stream()

    error = caught.value
    assert type(error).__name__ == "NoRoomError"
    assert (error.device, error.offset, error.length, error.errno) == ("/target", 4096, 512, 28)


def test_a_sender_of_another_migration_does_not_believe_the_receiver(
    pair: Pair, tmp_path: Path
) -> None:
    asked: list[int] = []
    stranger = mint_identities()
    real = pair.identities
    pair.identities = attrs.evolve(real, target=attrs.evolve(stranger.target, ca=real.target.ca))

    with (
        _false_receiver(pair, tmp_path, lambda secure: asked.append(len(secure.recv(65536)))),
        pytest.raises(PeerRefusedError),
    ):
        pair.connect(patience=20.0)

    assert sum(asked) == 0
