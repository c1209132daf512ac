"""Nobody but the source of this very migration gets a byte onto the target's disk."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import attrs
import pytest

from capabilities import require
from cvm_migrate.agent.pump import frames
from cvm_migrate.errors import ConnectionLostError, PeerRefusedError
from cvm_migrate.model import TlsIdentity
from cvm_migrate.transport import SOURCE_NAME, mint_identities
from rig import loopdev, pumps
from rig.pumps import MiB, Pair

_SIZE = MiB


@pytest.fixture(name="receiver")
def _receiver(tmp_path: Path) -> Generator[Pair]:
    """A receiver whose disk must look the same afterwards."""
    require("root", "loop")
    with pumps.disks(tmp_path, _SIZE, kinds="n") as (source, target):
        before = loopdev.read_direct(target)
        with pumps.pair(source, target) as pair:
            yield pair

            assert pair.received("bytes") == 0
            assert pair.received("connections") == 0
            # The sender of this migration is still welcome.
            pair.connect(patience=30.0)
            assert loopdev.read_direct(target) == before
            pair.stream()
        assert loopdev.first_difference(source, target) is None


def _context(folder: Path, identity: TlsIdentity | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        chain = folder / "stranger.pem"
        chain.write_text(identity.certificate + identity.key)
        context.load_cert_chain(chain)
    return context


def _hello(pair: Pair, session: str) -> bytes:
    return frames.encode_json(
        frames.HELLO,
        {
            "protocol": 1,
            "session": session,
            "sender": "0" * 32,
            "lane": 0,
            "algorithm": "sha256",
            "codecs": ["raw"],
            "disks": {"1": pair.source_disk.size},
        },
    )


def _chunk() -> bytes:
    return (
        frames.encode_header(frames.DATA, size=4096, disk=1, sequence=1, length=4096) + b"X" * 4096
    )


def _push(pair: Pair, context: ssl.SSLContext, session: str) -> bytes:
    """Send a HELLO and a chunk behind it without waiting to be let in; return what comes back."""
    answer = b""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(("127.0.0.1", pair.listening.port), timeout=20) as plain,
        context.wrap_socket(plain) as secure,
    ):
        secure.sendall(_hello(pair, session) + _chunk())
        while data := secure.recv(65536):
            answer += data
    return answer


def _refused(pair: Pair, count: int = 1) -> None:
    pumps.wait_until(lambda: pair.received("refused") >= count)
    assert pair.received("refused") == count


def _self_signed(folder: Path) -> TlsIdentity:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", "key.pem", "-out", "certificate.pem"),
            *("-subj", f"/CN={SOURCE_NAME}", "-addext", f"subjectAltName=DNS:{SOURCE_NAME}"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return TlsIdentity(
        ca="",
        certificate=(folder / "certificate.pem").read_text(),
        key=(folder / "key.pem").read_text(),
        peer="",
    )


@pytest.mark.parametrize("who", ["no-certificate", "self-signed", "another-migration", "target"])
def test_a_wrong_certificate_gets_nothing_written(
    receiver: Pair, tmp_path: Path, who: str
) -> None:
    identity = {
        "no-certificate": None,
        "self-signed": _self_signed(tmp_path),
        "another-migration": mint_identities().source,
        "target": receiver.identities.target,
    }[who]

    answer = _push(receiver, _context(tmp_path, identity), receiver.identities.session)

    assert answer == b""
    _refused(receiver)


def test_a_wrong_session_gets_nothing_written(receiver: Pair, tmp_path: Path) -> None:
    context = _context(tmp_path, receiver.identities.source)

    answer = _push(receiver, context, mint_identities().session)

    header = frames.decode_header(answer[: frames.HEADER.size], from_sender=False)
    assert header.kind == frames.REFUSED
    assert json.loads(answer[frames.HEADER.size :])["code"] == "peer"
    _refused(receiver)


def test_plain_bytes_get_nothing_written(receiver: Pair) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", _chunk(), b"\x16\x03\x01" + b"\xff" * 600):
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", receiver.listening.port), timeout=20) as plain,
        ):
            plain.sendall(data)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(4096):
                pass

    _refused(receiver, 3)


def test_connections_that_are_held_open_do_not_keep_the_sender_away(receiver: Pair) -> None:
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", receiver.listening.port), timeout=20)
            )
            for _ in range(80)
        ]
        began = time.monotonic()
        receiver.connect(patience=30.0)
        assert time.monotonic() - began < 9, "it waited for the strangers to time out"
        assert len(held) == 80
        receiver.source.disconnect(receiver.pump)
    pumps.wait_until(lambda: receiver.received("refused") == 80)
    pumps.wait_until(lambda: receiver.received("connections") == 0)


def test_a_stranger_who_says_nothing_is_sent_away(receiver: Pair) -> None:
    with socket.create_connection(("127.0.0.1", receiver.listening.port), timeout=60) as plain:
        assert plain.recv(1) == b""
    _refused(receiver)


@pytest.fixture(name="pair")
def _pair(tmp_path: Path) -> Generator[Pair]:
    require("root", "loop")
    with pumps.disks(tmp_path, _SIZE, kinds="n") as (source, target):
        before = loopdev.read_direct(target)
        with pumps.pair(source, target) as pair:
            yield pair

            assert pair.received("bytes") == 0
        assert loopdev.read_direct(target) == before


def test_a_sender_of_another_migration_is_told_that_it_is_refused(pair: Pair) -> None:
    with pytest.raises(PeerRefusedError):
        pair.connect(identities=mint_identities())

    assert pumps.pump_pids(pair.source) == []


def test_a_sender_with_another_session_is_told_that_it_is_refused(pair: Pair) -> None:
    with pytest.raises(PeerRefusedError, match="session"):
        pair.connect(session=mint_identities().session)
    # Every lane tries for itself, perhaps more than once.
    pumps.wait_until(lambda: pair.received("refused") >= 1)


@pytest.mark.parametrize("by", ["the sender", "the receiver"])
def test_an_expired_certificate_is_refused(pair: Pair, tmp_path: Path, by: str) -> None:
    minted = mint_identities(
        valid=dt.timedelta(hours=1), now=dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
    )
    # Expired, but signed by a CA that the other end trusts: both are of the same old migration.
    listening = pair.target.receive(
        {1: pair.target_disk},
        bind="127.0.0.1",
        port=0,
        tls=minted.target,
        session=minted.session,
        streams=2,
    )
    pair.listening = listening
    if by == "the sender":
        with pytest.raises(PeerRefusedError):
            pair.connect(identities=minted)
    else:
        # This one would believe the receiver.
        answer = _push(pair, _context(tmp_path, minted.source), minted.session)
        assert answer == b""
    pumps.wait_until(lambda: pair.received("refused") >= 1)


def test_the_receiver_must_have_the_targets_role(pair: Pair) -> None:
    ours = pair.identities
    listening = pair.target.receive(
        {1: pair.target_disk},
        bind="127.0.0.1",
        port=0,
        # The source's own certificate, shown by an end that listens.
        tls=attrs.evolve(ours.source, peer=SOURCE_NAME),
        session=ours.session,
        streams=2,
    )
    pair.listening = listening

    with pytest.raises(PeerRefusedError):
        pair.connect()


def test_a_certificate_of_another_name_is_refused_by_both_ends(pair: Pair) -> None:
    ours = pair.identities
    with pytest.raises(PeerRefusedError, match=r"not for elsewhere\.invalid"):
        pair.connect(
            identities=attrs.evolve(
                ours, source=attrs.evolve(ours.source, peer="elsewhere.invalid")
            )
        )
    refused = pair.received("refused")
    pair.listening = pair.target.receive(
        {1: pair.target_disk},
        bind="127.0.0.1",
        port=0,
        tls=attrs.evolve(ours.target, peer="elsewhere.invalid"),
        session=ours.session,
        streams=2,
    )

    with pytest.raises(PeerRefusedError, match=r"not for elsewhere\.invalid"):
        pair.connect()

    assert refused >= 1
    pumps.wait_until(lambda: pair.received("refused") >= 1)


def test_where_nobody_listens_patience_has_an_end(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    with pytest.raises(ConnectionLostError, match=str(port)):
        pair.source.connect(
            {1: pair.source_disk},
            host="127.0.0.1",
            port=port,
            tls=pair.identities.source,
            session=pair.identities.session,
            streams=2,
            algorithm="sha256",
            patience=1.0,
        )


def test_an_end_that_speaks_no_tls_is_refused(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pair.listening = attrs.evolve(pair.listening, port=listener.getsockname()[1])

        def answer() -> None:
            # Ended by the listener's end.
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock:
                        sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" + struct.pack(">I", 0))
                        sock.recv(65536)

        with _background(answer), pytest.raises(PeerRefusedError):
            pair.connect(streams=2, patience=10.0)
    pair.listening = pair.target.receive(
        {1: pair.target_disk},
        bind="127.0.0.1",
        port=0,
        tls=pair.identities.target,
        session=pair.identities.session,
        streams=2,
    )


@contextlib.contextmanager
def _background(work: Callable[[], None]) -> Generator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(20)
