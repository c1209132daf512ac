"""A network that fails costs time, never a byte."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate.errors import AgentLostError, ConnectionLostError, PeerRefusedError
from cvm_migrate.model import ExtentMap, Streamed
from rig import loopdev, pumps
from rig.proxy import Proxy
from rig.pumps import MiB, Pair

_SIZE = 16 * MiB


@pytest.fixture(name="disks")
def _disks(tmp_path: Path) -> Generator[tuple[Path, Path]]:
    require("root", "loop")
    with pumps.disks(tmp_path, _SIZE, kinds="nt") as made:
        yield made


@pytest.fixture(name="pair")
def _pair(disks: tuple[Path, Path]) -> Generator[Pair]:
    with pumps.pair(*disks, through_proxy=True) as pair:
        yield pair


def _proxy(pair: Pair) -> Proxy:
    assert pair.proxy is not None
    return pair.proxy


@contextlib.contextmanager
def _streaming(pair: Pair, *, bandwidth: int) -> Generator[list[Streamed]]:
    """A slow stream of the whole disk in the background, its result in the list afterwards."""
    results: list[Streamed] = []
    errors: list[BaseException] = []
    seen: list[Streamed] = []

    def work() -> None:
        try:
            results.append(
                pair.stream(
                    chunk=128 << 10, codec="raw", on_progress=seen.append, bandwidth=bandwidth
                )
            )
        except BaseException as error:  # noqa: BLE001 - raised by the test's own thread below
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield results
    finally:
        thread.join(100)
    assert not thread.is_alive()
    if errors:
        raise errors[0]
    acked = [one.acked for one in seen]
    assert acked == sorted(acked)


def _check(pair: Pair, disks: tuple[Path, Path], sent: Streamed) -> None:
    assert sent.acked == _SIZE
    proof = pair.read_back()
    assert (proof.bytes, proof.wrong) == (_SIZE, ExtentMap())
    assert loopdev.first_difference(*disks) is None


@pytest.mark.parametrize("streams", [1, 2])
def test_after_cuts_in_the_middle_of_chunks_the_copy_is_identical(
    disks: tuple[Path, Path], streams: int
) -> None:
    with pumps.pair(*disks, streams=streams, through_proxy=True) as pair:
        pair.connect(streams=streams)
        with _streaming(pair, bandwidth=8 * MiB) as results:
            for at in (1_000_000, 1_234_567, 777):
                _proxy(pair).cut_after(at)
                pumps.wait_until(lambda: not _proxy(pair).cut_is_due)
        assert results[0].reconnects >= 1
        # Something was sent again, and nothing was counted twice.
        assert results[0].wire > _SIZE
        _check(pair, disks, results[0])


def test_a_path_that_says_nothing_for_a_while_goes_on_after_it(
    pair: Pair, disks: tuple[Path, Path]
) -> None:
    pair.connect()
    with _streaming(pair, bandwidth=16 * MiB) as results:
        pumps.wait_until(lambda: pair.received("bytes") > MiB)
        _proxy(pair).stall()
        time.sleep(3)
        _proxy(pair).resume()
    _check(pair, disks, results[0])


@pytest.mark.slow
def test_a_path_that_stays_silent_is_given_up_and_made_anew(
    pair: Pair, disks: tuple[Path, Path]
) -> None:
    pair.connect(patience=60.0)
    with _streaming(pair, bandwidth=8 * MiB) as results:
        pumps.wait_until(lambda: pair.received("bytes") > MiB)
        proxy = _proxy(pair)
        proxy.stall()
        # Both ends notice by themselves that nothing is heard, and say goodbye to the connection.
        pumps.wait_until(lambda: pair.received("connections") == 0, seconds=60)
        proxy.cut()
        proxy.resume()
    assert results[0].reconnects >= 1
    _check(pair, disks, results[0])


def test_a_half_closed_path_is_made_anew(pair: Pair, disks: tuple[Path, Path]) -> None:
    pair.connect()
    with _streaming(pair, bandwidth=8 * MiB) as results:
        pumps.wait_until(lambda: pair.received("bytes") > MiB)
        _proxy(pair).half_close()
    assert results[0].reconnects >= 1
    _check(pair, disks, results[0])


def test_a_slow_path_is_slow_and_nothing_else(pair: Pair, disks: tuple[Path, Path]) -> None:
    pair.connect()
    _proxy(pair).rate = 12 * MiB
    sent = pair.stream()
    assert sent.reconnects == 0
    _check(pair, disks, sent)


def test_a_path_that_stays_cut_fails_after_patience_and_the_next_stream_goes_on(
    pair: Pair, disks: tuple[Path, Path]
) -> None:
    pair.connect(patience=2.0)
    began = time.monotonic()
    with pytest.raises(ConnectionLostError), _streaming(pair, bandwidth=8 * MiB):  # noqa: PT012 - raised when it ends
        pumps.wait_until(lambda: pair.received("bytes") > MiB)
        _proxy(pair).refuse()
        _proxy(pair).cut()
    assert 2 <= time.monotonic() - began < 60

    _proxy(pair).refuse(refuse=False)
    _check(pair, disks, pair.stream())


def test_a_path_that_is_cut_between_two_streams_is_there_for_the_next(
    pair: Pair, disks: tuple[Path, Path]
) -> None:
    pair.connect()
    pair.stream(ExtentMap([(0, MiB)]))
    _proxy(pair).cut()
    _check(pair, disks, pair.stream())


def test_a_receiver_that_was_killed_is_a_lost_connection_and_a_lost_pump(pair: Pair) -> None:
    pair.connect(patience=1.0)
    with pytest.raises(ConnectionLostError), _streaming(pair, bandwidth=8 * MiB):  # noqa: PT012 - raised when it ends
        pumps.wait_until(lambda: pair.received("bytes") > MiB)
        (pid,) = pumps.pump_pids(pair.target)
        pumps.kill(pid)
    with pytest.raises(AgentLostError, match="signal 9"):
        pair.read_back()


def test_a_sender_that_was_killed_is_a_lost_pump_and_a_new_one_is_let_in(
    pair: Pair, disks: tuple[Path, Path]
) -> None:
    pair.connect()
    with pytest.raises(AgentLostError, match="signal 9"), _streaming(pair, bandwidth=8 * MiB):  # noqa: PT012 - raised when it ends
        pumps.wait_until(lambda: pair.received("bytes") > MiB)
        (pid,) = pumps.pump_pids(pair.source)
        pumps.kill(pid)
    pair.source.disconnect(pair.pump)
    pair.connect()
    _check(pair, disks, pair.stream())


def test_a_second_sender_takes_the_place_of_the_first_for_good(
    pair: Pair, disks: tuple[Path, Path]
) -> None:
    pair.connect(streams=2)
    with pytest.raises(PeerRefusedError, match="place"), _streaming(pair, bandwidth=4 * MiB):  # noqa: PT012 - raised when it ends
        pumps.wait_until(lambda: pair.received("bytes") > MiB)
        pair.connect(streams=1)

    assert pair.received("connections") == 1
    _check(pair, disks, pair.stream())


def test_pumps_end_with_their_agent_however_it_ends(disks: tuple[Path, Path]) -> None:
    with pumps.pair(*disks) as pair:
        pair.connect()
        pids = pumps.pump_pids(pair.source) + pumps.pump_pids(pair.target)
        assert len(pids) == 2
        pumps.kill(pair.source.pid)
        pumps.wait_until(lambda: not Path(f"/proc/{pids[0]}").exists())
    pumps.wait_until(lambda: not Path(f"/proc/{pids[1]}").exists())


def test_disconnect_ends_the_process(pair: Pair) -> None:
    pair.connect()
    (pid,) = pumps.pump_pids(pair.source)
    pair.source.disconnect(pair.pump)

    assert not Path(f"/proc/{pid}").exists()
    pumps.wait_until(lambda: pair.received("connections") == 0)


def test_secrets_are_neither_on_the_command_line_nor_in_the_environment(pair: Pair) -> None:
    pair.connect()
    for pid in pumps.pump_pids(pair.source) + pumps.pump_pids(pair.target):
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{pid}/{name}").read_bytes()
            assert b"PRIVATE" not in shown
            assert pair.identities.session.encode() not in shown
