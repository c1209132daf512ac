"""Agents try ports and measure paths, under every Python; nothing is written by it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from capabilities import python, require
from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import (
    CancelledError,
    ConnectionLostError,
    CvmMigrateError,
    InvalidRequestError,
    PeerRefusedError,
)
from cvm_migrate.transport import AgentSession, mint_identities, start_local_agent
from rig import loopdev, pumps
from rig.pumps import MiB
from rig.pythons import EXTREMES

LOOPBACK = "127.0.0.1"


def agent(version: str) -> AgentSession:
    return start_local_agent(python=python(version))


@contextlib.contextmanager
def free_port() -> Generator[int]:
    """A port that nobody listens on, and nobody can take."""
    with socket.socket() as held:
        held.bind((LOOPBACK, 0))
        yield held.getsockname()[1]


@pytest.mark.parametrize("version", EXTREMES)
def test_a_port_is_open_refused_or_not_to_be_reached(version: str) -> None:
    require("pyenv", "loopback")
    with agent(version) as one, free_port() as free, socket.create_server((LOOPBACK, 0)) as server:
        opened = one.reach(LOOPBACK, server.getsockname()[1], timeout=20)
        refused = one.reach(LOOPBACK, free, timeout=20)
        # "This network" can be no one's address: the system refuses at once.
        nowhere = one.reach("0.0.0.1", free, timeout=20)
        nobody = one.reach("a.name.that.is.invalid", free, timeout=20)
        nonsense = one.reach("x" * 200, free, timeout=20)

    assert (opened.outcome, opened.address, opened.message) == ("open", LOOPBACK, None)
    assert 0 <= opened.seconds < 20
    assert opened.mtu is not None
    assert opened.mtu >= 1280
    assert opened.mss is not None
    assert (refused.outcome, refused.address, refused.mtu) == ("refused", LOOPBACK, None)
    assert nowhere.outcome == "unreachable"
    assert nowhere.message
    assert [nobody.outcome, nonsense.outcome] == ["unknown-name"] * 2
    assert nobody.address is None


@pytest.mark.parametrize("version", EXTREMES)
def test_a_port_that_says_nothing_costs_its_time_only(version: str) -> None:
    """A listener whose queue is full answers no more."""
    require("pyenv", "loopback")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind((LOOPBACK, 0))
        server.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(server.getsockname())
        one = stack.enter_context(agent(version))
        found = one.reach(LOOPBACK, server.getsockname()[1], timeout=0.5)

    assert found.outcome == "timeout"
    assert found.seconds >= 0.4


@pytest.mark.parametrize(("host", "port", "timeout"), [("", 1, 1), ("x", 0, 1), ("x", 1, 1000)])
def test_what_cannot_be_tried_is_refused(host: str, port: int, timeout: float) -> None:
    with start_local_agent() as one, pytest.raises(InvalidRequestError):
        one.reach(host, port, timeout=timeout)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(EXTREMES, EXTREMES)))
def test_pumps_without_disks_are_measured(source: str, target: str) -> None:
    require("pyenv", "loopback")
    identities = mint_identities()
    with agent(source) as one, agent(target) as other:
        listening = other.receive(
            {}, bind=LOOPBACK, port=0, tls=identities.target, session=identities.session, streams=2
        )
        pump = one.connect(
            {},
            host=LOOPBACK,
            port=listening.port,
            tls=identities.source,
            session=identities.session,
            streams=2,
            algorithm="sha256",
            patience=30,
        )
        found = one.measure(pump, seconds=0.3)
        again = one.measure(pump, seconds=0.3, bandwidth=MiB)
        counts = other.received(listening.pump)
        one.disconnect(pump)
        other.disconnect(listening.pump)
        gone = one.reach(LOOPBACK, listening.port, timeout=20)

    assert found.arrived > 0
    assert found.seconds > 0
    assert found.rate > 0
    assert found.rtt > 0
    assert found.mtu is not None
    assert found.mss is not None
    assert found.mss < found.mtu
    assert found.tls_version in {"TLSv1.2", "TLSv1.3"}
    # What is in the queues when time is over is sent as well.
    assert again.arrived < 4 * MiB
    # Confirmations that come in a bunch, on a busy machine, make it look faster.
    assert again.rate < 8 * MiB
    assert counts["bytes"] == 0
    assert counts["wire"] >= found.arrived + again.arrived
    assert gone.outcome == "refused"


def test_a_measurement_is_not_let_in_without_the_keys() -> None:
    """Neither another migration's certificate nor another session gets a byte through."""
    require("loopback")
    ours, theirs = mint_identities(), mint_identities()
    with start_local_agent() as one, start_local_agent() as other:
        listening = other.receive(
            {}, bind=LOOPBACK, port=0, tls=ours.target, session=ours.session, streams=1
        )
        for tls, session in ((theirs.source, ours.session), (ours.source, theirs.session)):
            with pytest.raises((PeerRefusedError, ConnectionLostError)):
                one.connect(
                    {},
                    host=LOOPBACK,
                    port=listening.port,
                    tls=tls,
                    session=session,
                    streams=1,
                    algorithm="sha256",
                    patience=5,
                )
        counts = other.received(listening.pump)

    assert counts["wire"] == 0
    assert counts["refused"] >= 2


def test_pumps_with_disks_are_measured_and_go_on(tmp_path: Path) -> None:
    """Before, between and while ranges are sent: the copy is right, and what is measured is written nowhere."""
    require("root", "loop")
    size = 8 * MiB
    with (
        pumps.disks(tmp_path, size) as (source, target),
        pumps.pair(source, target) as pair,
    ):
        before = loopdev.read_direct(target)
        pair.connect()
        assert pair.source.measure(pair.pump, seconds=0.2).arrived > 0
        assert loopdev.read_direct(target) == before
        other = threading.Thread(
            target=pair.source.measure, args=(pair.pump,), kwargs={"seconds": 0.3}
        )
        other.start()
        pair.stream()
        other.join()
        assert pair.read_back().bytes == size
        assert pair.source.measure(pair.pump, seconds=0.2).arrived > 0
        assert loopdev.first_difference(source, target) is None


def test_a_measurement_can_be_called_off(tmp_path: Path) -> None:
    require("root", "loop")
    with (
        pumps.disks(tmp_path, MiB) as (source, target),
        pumps.pair(source, target) as pair,
    ):
        pair.connect()
        token = CancelToken()
        timer = threading.Timer(0.3, token.cancel)
        timer.start()
        with pytest.raises(CancelledError):
            pair.source.measure(pair.pump, seconds=10, bandwidth=64 << 10, cancel=token)
        timer.join()
        pair.stream()
        assert loopdev.first_difference(source, target) is None


def test_a_measurement_through_a_cut_ends(tmp_path: Path) -> None:
    """The receiver dies: an error, in time."""
    require("root", "loop")
    with (
        pumps.disks(tmp_path, MiB) as (source, target),
        pumps.pair(source, target) as pair,
    ):
        pair.connect(patience=1.0)
        (pid,) = pumps.pump_pids(pair.target)
        pumps.kill(pid)
        with pytest.raises(CvmMigrateError):
            pair.source.measure(pair.pump, seconds=0.2)


@pytest.mark.parametrize("seconds", [0, 0.01, 100, True])
def test_a_measurement_has_a_bound(seconds: float, tmp_path: Path) -> None:
    require("root", "loop")
    with (
        pumps.disks(tmp_path, MiB) as (source, target),
        pumps.pair(source, target) as pair,
    ):
        pair.connect()
        with pytest.raises(InvalidRequestError):
            pair.source.measure(pair.pump, seconds=seconds)
        with pytest.raises(InvalidRequestError):
            pair.target.measure(pair.listening.pump, seconds=1)
