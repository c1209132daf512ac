"""``kill -9`` of the caller, an agent or a pump at any moment: nothing stays frozen or is left, and it goes on."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator, Iterator
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
_SIZE = 64 * MiB
_LIMIT = 20
# A few kills in every run, twenty of each victim in CI.
_KILLS = 2
_ROUNDS = [pytest.param(n, marks=[] if n < 1 else pytest.mark.slow) for n in range(10)]
_VICTIMS = ["source agent", "target agent", "sending pump", "receiving pump"]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    require("loop", "mkfs.ext4")
    with mounted_pair(tmp_path, size=_SIZE) as made:
        # Noise, so that the bandwidth limit makes the full sync last.
        (made.mount / "ballast").write_bytes(os.urandom(24 * MiB))
        loopdev.write_out(made.mount)
        yield made


def _rungs(number: int) -> tuple[str, ...]:
    """Every other round tracks with tracefs: its instances are what a kill could leave in the kernel."""
    return ("tracefs",) if number % 2 else ("ebpf", "tracefs")


def _is_writable(pair: Pair) -> bool:
    """Whether a write returns, that is, nothing is frozen for longer than the limit."""
    done = threading.Event()

    def write() -> None:
        (pair.mount / "probe").write_text(str(time.time()))
        loopdev.write_out(pair.mount)
        done.set()

    threading.Thread(target=write, daemon=True).start()
    return done.wait(_LIMIT + 10)


def _start_caller(
    pair: Pair, mark: str, *, bandwidth: int | None = None, rungs: tuple[str, ...] = _rungs(0)
) -> subprocess.Popen[str]:
    command = [sys.executable, str(_CALLER), str(pair.source), str(pair.target)]
    command += [str(pair.folder / "state")]
    if bandwidth is not None:
        command += ["--bandwidth", str(bandwidth)]
    for rung in rungs:
        command += ["--rung", rung]
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
    span = 7.0
    moments = random.Random(number)
    mark = uuid.uuid4().hex
    before = ""
    killed = 0
    with writing(pair.mount, pause=0.01) as writer:
        while killed < _KILLS:
            moment = moments.uniform(0.3, span)
            caller = _start_caller(pair, mark, bandwidth=_BANDWIDTH, rungs=_rungs(number))
            try:
                time.sleep(moment)
                tracers = processes.tracers(mark)
                code = caller.poll()
            finally:
                caller.kill()
                before += caller.communicate()[0]
            assert _is_writable(pair), f"still frozen after a kill at {moment:.2f} s: {before}"
            processes.wait_until(
                lambda: not processes.marked(mark),
                seconds=60,
                what=f"agents are left behind after a kill at {moment:.2f} s: {before}",
            )
            assert processes.instances(tracers) == []
            if code is None:
                killed += 1
                continue
            # It was quicker, and needs no second run: once more from the beginning.
            assert code == 0, before
            shutil.rmtree(pair.folder / "state")
            span /= 2
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
    """Kills a victim of a running migration at moments after its start; those that are left came too late."""

    def __init__(self, victim: str, moments: list[float], mark: str) -> None:
        self._victim = victim
        self._mark = mark
        self.moments = moments
        self.tracers: set[int] = set()

    @contextlib.contextmanager
    def at_work(self, migration: Migration) -> Generator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(migration, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.tracers.update(processes.tracers(self._mark))
            self.moments = [moment / 2 for moment in self.moments]

    def _run(self, migration: Migration, over: threading.Event) -> None:
        started = time.monotonic()
        while self.moments:
            if over.wait(started + self.moments[0] - time.monotonic()):
                return
            self.tracers.update(processes.tracers(self._mark))
            while not sum(processes.kill(pid) for pid in self._pids(migration)):
                if over.wait(0.02):
                    return
            self.moments.pop(0)

    def _pids(self, migration: Migration) -> list[int]:
        source, target = migration.agents
        agent = source if self._victim in {"source agent", "sending pump"} else target
        pid: int | None = getattr(agent, "pid", None)
        if pid is None:
            return []
        return [pid] if "agent" in self._victim else processes.children(pid, "--pump")


def _migrate(pair: Pair, killer: _Killer, number: int, state: Path) -> None:
    """One run while the killer is at work: the copy is identical, and sound."""
    found: list[int | None] = []
    with Migration(
        LocalHost(disks=[pair.source]),
        LocalHost(disks=[pair.target]),
        state=state,
        options=Options(
            max_downtime=20,
            freeze_limit=_LIMIT,
            bandwidth=_BANDWIDTH,
            attempts=5,
            patience=10,
            rungs=_rungs(number),
        ),
    ) as migration:
        with killer.at_work(migration):
            report = migration.run(
                on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target))
            )
        assert _is_writable(pair)
    # A kill after the proof, but before the thaw, costs a second cutover.
    assert found
    assert set(found) == {None}
    assert report.proven
    assert check_copy(pair)[0] == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", _VICTIMS)
@pytest.mark.parametrize("number", _ROUNDS)
def test_an_agent_or_a_pump_is_killed(
    number: int, victim: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run() starts what was lost anew and goes on; nothing stays frozen or is left; the copy is identical."""
    chosen = random.Random(f"{victim} {number}")
    mark = uuid.uuid4().hex
    killer = _Killer(victim, sorted(chosen.uniform(0.3, 8.0) for _ in range(_KILLS)), mark)
    with writing(pair.mount, pause=0.01):
        # Children from here on inherit it: both agents, and all that they start.
        monkeypatch.setenv(processes.MARK, mark)
        # A run that was quicker than the moments is made once more, with earlier ones.
        for run in range(5):
            _migrate(pair, killer, number, pair.folder / f"state-{run}")
            processes.wait_until(lambda: not processes.marked(mark), "all processes end")
            assert processes.instances(killer.tracers) == []
            if not killer.moments:
                break
    assert not killer.moments, "nothing was killed"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["half of the first pass", "the first pass"])
def test_a_second_run_sends_less(when: str, pair: Pair) -> None:
    """What had arrived when the caller was killed is at most compared, not sent again."""
    mark = uuid.uuid4().hex
    first = _start_caller(pair, mark, bandwidth=_BANDWIDTH)
    assert first.stdout is not None
    arrived = 0
    for line in first.stdout:
        if line.startswith("at "):
            arrived = int(line.split()[1])
            if when == "half of the first pass" and arrived >= _SIZE // 2:
                break
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

    assert arrived >= _SIZE // 2
    assert sum(one.sent for one in sent) < _SIZE - arrived + 16 * MiB
    assert sum(one.wire for one in sent) < _SIZE - arrived + 16 * MiB
    assert sent[0].compared >= arrived
