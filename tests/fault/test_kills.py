"""``kill -9`` of the caller, an agent or a pump at any moment: nothing stays frozen or is left, and it goes on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import LocalHost, Migration, Options, events
from rig import loopdev, processes
from rig.disks import Pair, check_copy, mounted_pair
from rig.writers import Writer, writing

MiB = 1 << 20
_CALLER = Path(__file__).parents[1] / "rig" / "caller.py"
_BANDWIDTH = 24 * MiB
# Two kills a round: a few in every run, twenty in CI.
_ROUNDS = [pytest.param(n, marks=[] if n < 1 else pytest.mark.slow) for n in range(10)]
_VICTIMS = ["source agent", "target agent", "sending pump", "receiving pump"]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    require("loop", "mkfs.ext4")
    with mounted_pair(tmp_path, size=64 * MiB) as made:
        # Noise, so that the bandwidth limit makes the full sync last.
        (made.mount / "ballast").write_bytes(os.urandom(24 * MiB))
        loopdev.write_out(made.mount)
        yield made


def _is_writable(pair: Pair) -> bool:
    """Whether a write returns, that is, nothing is frozen."""
    done = threading.Event()

    def write() -> None:
        (pair.mount / "probe").write_text(str(time.time()))
        loopdev.write_out(pair.mount)
        done.set()

    threading.Thread(target=write, daemon=True).start()
    return done.wait(60)


def _start_caller(
    pair: Pair, mark: str, *, bandwidth: int | None = None, hang: str | None = None
) -> subprocess.Popen[str]:
    command = [sys.executable, str(_CALLER), str(pair.source), str(pair.target)]
    command += [str(pair.folder / "state")]
    if bandwidth is not None:
        command += ["--bandwidth", str(bandwidth)]
    if hang is not None:
        command += ["--hang", hang]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, processes.MARK: mark},
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", _ROUNDS)
def test_the_caller_is_killed(number: int, pair: Pair) -> None:
    """Agents end by themselves, file systems thaw, and a second run completes from the checkpoint."""
    # The span of an undisturbed run on an idle machine, its cutover included; a busy one is hit earlier in its work.
    moments = random.Random(number)
    mark = uuid.uuid4().hex
    before = ""
    with writing(pair.mount, pause=0.01) as writer:
        for _ in range(2):
            moment = moments.uniform(0.3, 7.0)
            killed = _start_caller(pair, mark, bandwidth=_BANDWIDTH)
            try:
                time.sleep(moment)
            finally:
                killed.kill()
                before += killed.communicate()[0]
            assert _is_writable(pair), f"still frozen after a kill at {moment:.2f} s: {before}"
            processes.wait_until(
                lambda: not processes.marked(mark),
                seconds=60,
                what=f"agents are left behind after a kill at {moment:.2f} s: {before}",
            )
        _last_run(pair, mark, writer, before)


def _last_run(pair: Pair, mark: str, writer: Writer, before: str) -> None:
    last = _start_caller(pair, mark)
    try:
        out, err = last.communicate(timeout=240)
    finally:
        last.kill()
    writer.stop()

    assert last.returncode == 0, f"killed: {before}\nlast: {out}\n{err}"
    assert "identical" in out, out
    assert not processes.marked(mark)
    assert check_copy(pair)[0] == 0


class _Killer:
    """Kills a victim of a running migration at moments after its start."""

    def __init__(self, migration: Migration, victim: str, moments: list[float]) -> None:
        self._migration = migration
        self._victim = victim
        self._moments = moments
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        started = time.monotonic()
        for moment in self._moments:
            self._over.wait(started + moment - time.monotonic())
            killed = 0
            while not self._over.is_set() and not killed:
                killed = sum(processes.kill(pid) for pid in self._pids())
                self._over.wait(0.02)

    def _pids(self) -> list[int]:
        source, target = self._migration.agents
        agent = source if self._victim in {"source agent", "sending pump"} else target
        pid: int | None = getattr(agent, "pid", None)
        if pid is None:
            return []
        return [pid] if "agent" in self._victim else processes.children(pid, "--pump")

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", _VICTIMS)
@pytest.mark.parametrize("number", _ROUNDS)
def test_an_agent_or_a_pump_is_killed(number: int, victim: str, pair: Pair) -> None:
    """run() starts what was lost anew and goes on; nothing stays frozen; the copy is identical."""
    chosen = random.Random(f"{victim} {number}")
    moments = sorted(chosen.uniform(0.3, 8.0) for _ in range(2))
    found: list[int | None] = []
    with (
        writing(pair.mount, pause=0.01),
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            state=pair.folder / "state",
            options=Options(
                max_downtime=20, freeze_limit=20, bandwidth=_BANDWIDTH, attempts=5, patience=10
            ),
        ) as migration,
    ):
        killer = _Killer(migration, victim, moments)
        try:
            report = migration.run(
                on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target))
            )
        finally:
            killer.stop()
        assert _is_writable(pair)

    # A kill after the proof, but before the thaw, costs a second cutover.
    assert found
    assert set(found) == {None}
    assert report.proven
    assert check_copy(pair)[0] == 0


def test_a_second_run_sends_less(pair: Pair) -> None:
    """What had arrived when the caller was killed is compared, not sent again."""
    mark = uuid.uuid4().hex
    first = _start_caller(pair, mark, bandwidth=_BANDWIDTH)
    assert first.stdout is not None
    for line in first.stdout:
        if line.strip() == "end full_sync":
            break
    first.kill()
    first.communicate()
    processes.wait_until(
        lambda: not processes.marked(mark), seconds=60, what="agents are left behind"
    )
    sent: list[events.PassEnded] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.PassEnded):
            sent.append(event)

    with Migration(
        LocalHost(disks=[pair.source]),
        LocalHost(disks=[pair.target]),
        state=pair.folder / "state",
        observer=observe,
        options=Options(max_downtime=20),
    ) as migration:
        assert migration.run().proven

    assert sum(one.sent for one in sent) < 16 * MiB
    assert sum(one.wire for one in sent) < 16 * MiB
    assert sent[0].compared == 64 * MiB
