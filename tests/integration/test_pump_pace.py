"""Limits hold, and can be changed while bytes flow."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate.model import ExtentMap, Streamed
from rig import pumps
from rig.pumps import MiB, Pair

pytestmark = pytest.mark.alone

_SIZE = 24 * MiB


@pytest.fixture(name="pair")
def _pair(tmp_path: Path) -> Generator[Pair]:
    require("root", "loop")
    with (
        pumps.disks(tmp_path, _SIZE, kinds="n") as (source, target),
        pumps.pair(source, target, streams=3) as pair,
    ):
        pair.connect(streams=3)
        yield pair


def test_the_bandwidth_of_all_streams_together_is_limited(pair: Pair) -> None:
    limit = 4 * MiB
    sent = pair.stream(ExtentMap([(0, 12 * MiB)]), codec="raw", bandwidth=limit)

    assert abs(sent.wire / sent.seconds - limit) <= 0.15 * limit


def test_reading_is_limited(pair: Pair) -> None:
    limit = 4 * MiB
    sent = pair.stream(ExtentMap([(0, 12 * MiB)]), chunk=256 << 10, read_limit=limit)

    assert abs(sent.read / sent.seconds - limit) <= 0.15 * limit


def test_the_limit_can_be_changed_while_bytes_flow(pair: Pair) -> None:
    seen: list[tuple[float, int]] = []
    changed: list[float] = []

    def progress(done: Streamed) -> None:
        seen.append((done.seconds, done.wire))
        if done.wire > 4 * MiB and not changed:
            changed.append(done.seconds)
            # From another thread, as the caller's own is in `stream`.
            thread = threading.Thread(
                target=pair.source.pace,
                args=(pair.pump,),
                kwargs={"bandwidth": 8 * MiB, "read_limit": None},
            )
            thread.start()
            thread.join(10)

    pair.stream(codec="raw", bandwidth=2 * MiB, on_progress=progress)

    before = [one for one in seen if one[0] <= changed[0]]
    after = [one for one in seen if one[0] >= changed[0] + 0.5]
    assert abs(_rate(before) - 2 * MiB) <= 0.2 * 2 * MiB
    assert abs(_rate(after) - 8 * MiB) <= 0.2 * 8 * MiB


def test_a_limit_can_be_lifted(pair: Pair) -> None:
    timer = threading.Timer(
        1.0, pair.source.pace, args=(pair.pump,), kwargs={"bandwidth": None, "read_limit": None}
    )
    timer.start()
    began = time.monotonic()
    # Four minutes, if nothing happened.
    pair.stream(codec="raw", bandwidth=100 << 10)
    timer.join()

    assert time.monotonic() - began < 30


def _rate(points: list[tuple[float, int]]) -> float:
    return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
