"""``kill -9`` while the source is frozen: it thaws within the limit, nothing is left, and a second run completes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from capabilities import require
from cvm_migrate import LocalHost, Migration, Options, Report, events
from cvm_migrate.errors import AgentLostError, TransientError
from rig import loopdev, processes
from rig.disks import Pair, check_copy, mounted_pair
from rig.watched import WatchedHost
from rig.writers import SteadyWriter, writing_steadily

MiB = 1 << 20
_SIZE = 64 * MiB
_LIMIT = 15.0
_CALLER = Path(__file__).parents[1] / "rig" / "caller.py"
_VICTIMS = ["source agent", "target agent", "sending pump", "receiving pump"]
# Before the last pass of the freeze has begun, and after it is proven.
_MOMENTS = ["frozen", "proven"]
_QUICK = {("source agent", "frozen"), ("receiving pump", "frozen")}
_CASES = [
    pytest.param(victim, moment, marks=[] if (victim, moment) in _QUICK else pytest.mark.slow)
    for victim in _VICTIMS
    for moment in _MOMENTS
]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    require("loop", "mkfs.ext4")
    with mounted_pair(tmp_path, size=_SIZE) as made:
        (made.mount / "ballast").write_bytes(os.urandom(24 * MiB))
        # Small, so that what changes in all passes together is far less than the disk.
        (made.mount / "busy").write_bytes(os.urandom(2 * MiB))
        loopdev.write_out(made.mount)
        yield made


@attrs.define
class Run:
    """One run of a migration: what its passes sent, and what it found when the copy was proven."""

    sent: int = 0
    kinds: list[str] = attrs.field(factory=list[str])
    found: list[int | None] = attrs.field(factory=list[int | None])
    report: Report | None = None
    error: Exception | None = None


class Victims:
    """Kills one process of a migration at one moment of its cutover, once."""

    def __init__(self, victim: str, moment: str) -> None:
        self._victim = victim
        self._moment = moment
        self._step = ""
        self.migration: Migration | None = None
        self.killed_at: float | None = None

    def observe(self, event: events.Event) -> None:
        if isinstance(event, events.StepStarted):
            self._step = event.step

    def reach(self, moment: str) -> None:
        if moment != self._moment or self._step != "cutover" or self.killed_at is not None:
            return
        assert self.migration is not None
        source, target = self.migration.agents
        agent = source if self._victim in {"source agent", "sending pump"} else target
        pid = int(getattr(agent, "pid", 0))
        assert pid
        victims = [pid] if "agent" in self._victim else processes.children(pid, "--pump")
        assert victims, f"there is no {self._victim}"
        self.killed_at = time.monotonic()
        killed = sum(processes.kill(one) for one in victims)
        assert killed == len(victims)


def _run(pair: Pair, victims: Victims | None = None) -> Run:
    done = Run()

    def observe(event: events.Event) -> None:
        if victims is not None:
            victims.observe(event)
        if isinstance(event, events.PassEnded):
            done.sent += event.sent
            done.kinds.append(event.kind)

    def reach(moment: str) -> None:
        if victims is not None:
            victims.reach(moment)

    def proven() -> None:
        done.found.append(loopdev.first_difference(pair.source, pair.target))
        reach("proven")

    with Migration(
        WatchedHost(disks=[pair.source], on_frozen=lambda: reach("frozen")),
        LocalHost(disks=[pair.target]),
        state=pair.folder / "state",
        observer=observe,
        options=Options(max_downtime=10, freeze_limit=_LIMIT, attempts=1, patience=60),
    ) as migration:
        if victims is not None:
            victims.migration = migration
        try:
            done.report = migration.run(on_proven=proven)
        except TransientError as error:
            done.error = error
    return done


def _check_second(pair: Pair, writer: SteadyWriter, killed_at: float, *, sent: int) -> None:
    """What holds after every second run."""
    # From the writer's side: the pause that the killed one left behind.
    assert writer.pause_at(killed_at) < _LIMIT + 5
    assert writer.written > 0
    # The first needed all of the disk.
    assert sent < _SIZE // 2
    assert check_copy(pair)[0] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("victim", "moment"), _CASES)
def test_an_agent_or_a_pump_is_killed_while_frozen(
    victim: str, moment: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run fails, or has its proof by then; the next one compares instead of sending all, and is identical."""
    victims = Victims(victim, moment)
    with writing_steadily(pair.mount / "busy", rate=2e6) as writer:
        mark = uuid.uuid4().hex
        # Children from here on inherit it: both agents, and all that they start.
        monkeypatch.setenv(processes.MARK, mark)
        first = _run(pair, victims)
        processes.wait_until(lambda: not processes.marked(mark), "all processes end")
        assert victims.killed_at is not None
        second = _run(pair)
        processes.wait_until(lambda: not processes.marked(mark), "all processes end")

    # The last pass needs all but the source's agent, which thaws, only until the proof.
    if moment == "frozen" or victim == "source agent":
        # Nobody waits for the freeze to end by itself.
        assert isinstance(first.error, AgentLostError)
        assert second.kinds
    assert (first.error is None) == (first.report is not None)
    assert second.error is None
    assert second.report is not None
    assert second.report.proven
    assert set(first.found + second.found) == {None}
    _check_second(pair, writer, victims.killed_at, sent=second.sent)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", _MOMENTS)
def test_the_caller_is_killed_while_frozen(moment: str, pair: Pair) -> None:
    """Its agents end, the watchdog thaws, and the next caller goes on from the checkpoint."""
    mark = uuid.uuid4().hex
    with writing_steadily(pair.mount / "busy", rate=2e6) as writer:
        killed = subprocess.Popen(
            [
                sys.executable,
                str(_CALLER),
                str(pair.source),
                str(pair.target),
                str(pair.folder / "state"),
                "--hang",
                moment,
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, processes.MARK: mark},
        )
        try:
            assert killed.stdout is not None
            said: list[str] = []
            for line in killed.stdout:
                said.append(line.strip())
                if line.startswith("hangs"):
                    break
            killed_at = time.monotonic()
        finally:
            killed.kill()
            killed.communicate()
        assert said[-1] == f"hangs {moment}", said
        processes.wait_until(lambda: not processes.marked(mark), "all processes end")
        second = _run(pair)

    assert second.error is None
    assert second.report is not None
    assert second.report.proven
    assert second.kinds
    assert second.found == [None]
    _check_second(pair, writer, killed_at, sent=second.sent)
