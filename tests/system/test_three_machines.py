"""Caller, source and target are three machines on one network: who carries the data, and what cuts do."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

import capabilities
from cvm_migrate import Migration, Options, Report, SshHost, events
from cvm_migrate.errors import TransientError
from cvm_migrate.interfaces import Agent
from rig import loopdev
from rig.disks import Pair, check_copy, mounted_pair
from rig.networks import Lan, Paths, lan
from rig.processes import wait_until
from rig.pythons import interpreters
from rig.sshd import Sshd, programs, sshd, system_program
from rig.writers import Writer, ledger, writing

MiB = 1 << 20
SIZE = 64 * MiB
RATE = 12 * MiB
PATHS: tuple[Paths, ...] = ("data", "control", "both")


@pytest.fixture(autouse=True)
def _needs() -> None:
    capabilities.require("root", "loop", "namespaces", "bridge", "sshd", "pyenv", "mkfs.ext4")


@attrs.frozen
class Machines:
    """What a migration needs."""

    lan: Lan
    pair: Pair
    writer: Writer
    source: Sshd
    target: Sshd


def _wait_for_agents(servers: Sequence[Sshd]) -> None:
    # One that could not be told ends by itself once it has been silent for two minutes.
    wait_until(lambda: not any(s.sessions() for s in servers), "all agents end", seconds=200)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """A source with a busy file system and Python 3.8, a target with Python 2.7, and a caller."""
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(mounted_pair(tmp_path, "ext4", size=SIZE))
        network = stack.enter_context(lan())
        servers: list[Sshd] = []
        # The source's sshd sees what is mounted when it starts.
        for machine, name, version in (
            (network.source, "python3.8", "3.8"),
            (network.target, "python", "2.7"),
        ):
            links = {name: interpreters()[version], "id": system_program("id")}
            path = programs(tmp_path / machine.name / "bin", links)
            running = sshd(
                tmp_path / machine.name / "server",
                path=path,
                address=machine.address,
                network=machine.holder,
            )
            servers.append(stack.enter_context(running))
        writer = stack.enter_context(writing(pair.mount, pause=0.02))
        yield Machines(network, pair, writer, *servers)
        _wait_for_agents(servers)
        assert [server.memory() for server in servers] == [[], []]


class _Watched:
    """An agent that tells when it has found facts and when it has frozen."""

    def __init__(
        self, agent: Agent, on_facts: Callable[[], None], on_frozen: Callable[[], None]
    ) -> None:
        self._agent = agent
        self._on_facts = on_facts
        self._on_frozen = on_frozen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    def facts(self) -> Any:
        found = self._agent.facts()
        self._on_facts()
        return found

    def freeze(self, *arguments: Any, **more: Any) -> Any:
        frozen = self._agent.freeze(*arguments, **more)
        self._on_frozen()
        return frozen


def _nothing() -> None:
    """Do nothing."""


@attrs.frozen
class _Host(SshHost):
    on_facts: Callable[[], None] = attrs.field(default=_nothing, kw_only=True)
    on_frozen: Callable[[], None] = attrs.field(default=_nothing, kw_only=True)

    def open_agent(self) -> Agent:
        return cast("Agent", _Watched(super().open_agent(), self.on_facts, self.on_frozen))


class Cutter:
    """Cuts paths once in each step that is asked for, and restores them after a while."""

    def __init__(
        self, machines: Machines, paths: Paths, steps: tuple[str, ...], seconds: float
    ) -> None:
        self._lan = machines.lan
        self._paths: Paths = paths
        self._steps = list(steps)
        self._seconds = seconds
        self._step = ""
        self._timers: list[threading.Timer] = []
        self.cuts: list[str] = []
        self.on_cut: Callable[[], None] = _nothing

    def observe(self, event: events.Event) -> None:
        match event:
            case events.StepStarted(step=step):
                self._step = step
                if step == "finish":
                    self._cut()
            case events.Progress(kind="send") if self._step == "full_sync":
                self._cut()
            case events.PassStarted() if self._step == "delta_sync":
                self._cut()
            case _:
                pass

    def facts(self) -> None:
        """The source's agent has answered its first question."""
        if self._step == "check":
            self._cut()

    def frozen(self) -> None:
        """The source is frozen: to try it out, or for the final sync."""
        if self._step in {"prepare", "cutover"}:
            self._cut()

    def _cut(self) -> None:
        if self._step not in self._steps:
            return
        self._steps.remove(self._step)
        self.cuts.append(self._step)
        self._lan.cut(self._paths)
        timer = threading.Timer(self._seconds, self._lan.mend)
        self._timers.append(timer)
        timer.start()
        self.on_cut()

    def wait(self) -> None:
        """Wait until everything is restored."""
        for timer in self._timers:
            timer.join()


@attrs.define
class Moved:
    """What came of a migration."""

    report: Report
    carried: int
    seen: list[events.Event]


def _persist(step: Callable[[], object]) -> None:
    """Do what callers are told to do: repeat a step whose failure passes."""
    for _ in range(5):
        try:
            step()
        except TransientError:
            continue
        return
    pytest.fail("a step failed again and again")


def move(machines: Machines, cutter: Cutter | None = None, **options: Any) -> Moved:
    """Migrate the busy disk, steered from the third machine, and assert that the copy is identical and sound."""
    pair, network = machines.pair, machines.lan
    found: list[int | None] = []
    promised: list[int] = []
    seen: list[events.Event] = []

    def observe(event: events.Event) -> None:
        seen.append(event)
        if cutter is not None:
            cutter.observe(event)

    def host(server: Sshd, disk: Path, **more: Any) -> _Host:
        how: dict[str, Any] = attrs.asdict(server.target)
        return _Host(how.pop("destination"), disks=[disk], **how, **more)

    def run() -> Report:
        with Migration(
            host(
                machines.source,
                pair.source,
                on_facts=cutter.facts if cutter else _nothing,
                on_frozen=cutter.frozen if cutter else _nothing,
            ),
            host(machines.target, pair.target, data_host=network.target.address),
            state=pair.folder / "state",
            options=Options(
                max_downtime=25,
                freeze_limit=30,
                bandwidth=RATE,
                codec="raw",
                attempts=5,
                **options,
            ),
            observer=observe,
        ) as migration:
            assert not migration.check().blockers
            _persist(migration.prepare)
            _persist(migration.full_sync)
            _persist(migration.delta_sync)
            return migration.run(
                on_quiesced=lambda: promised.append(machines.writer.acknowledged),
                on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target)),
            )

    before = network.caller.carried()
    report = network.caller.run(run)
    carried = network.caller.carried() - before
    if cutter is not None:
        cutter.wait()
    assert found
    assert found[-1] is None
    assert report.proven
    # Until then one may hold the target's disk.
    _wait_for_agents([machines.source, machines.target])
    assert check_copy(pair)[0] == 0, check_copy(pair)[1]
    with loopdev.mounted(pair.target, pair.folder / "copy") as copy:
        integrity, highest = ledger(copy)
    assert integrity == "ok"
    assert highest >= promised[0]
    return Moved(report, carried, seen)


def test_data_goes_from_source_to_target_and_the_caller_only_steers(machines: Machines) -> None:
    """The caller's network carries less than a twentieth of what is sent."""
    moved = move(machines)

    assert moved.report.rung == "ebpf", moved.report.refused
    assert moved.report.sent >= SIZE
    assert moved.carried < moved.report.sent / 20


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("paths", PATHS)
def test_short_cuts_at_each_step_of_one_migration_are_outlasted(
    paths: Paths, machines: Machines
) -> None:
    """A cut in the full sync, in a delta sync and while frozen: the migration continues, the copy is identical."""
    cutter = Cutter(machines, paths, ("full_sync", "delta_sync", "cutover"), 5)
    moved = move(machines, cutter)

    assert cutter.cuts == ["full_sync", "delta_sync", "cutover"]
    assert moved.carried < moved.report.sent / 20


# A check needs no data path.
_MINUTES: list[tuple[Paths, str]] = [
    ("control", "check"),
    ("both", "check"),
    *(
        (paths, step)
        for step in ("prepare", "full_sync", "delta_sync", "cutover", "finish")
        for paths in PATHS
    ),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("paths", "step"), _MINUTES)
def test_a_cut_of_a_minute_is_outlasted(paths: Paths, step: str, machines: Machines) -> None:
    """The migration goes on when the path is back, the copy is identical, and nothing was sent by way of the caller.

    Nothing is left frozen meanwhile: the source thaws itself at the limit of its freeze and works on, though nobody
    can reach it, and is cut over again later.
    """
    cutter = Cutter(machines, paths, (step,), 60)
    written: list[int] = []

    def look() -> None:
        # The limit of 30 s has passed long since; what is cut is cut still.
        first = machines.writer.acknowledged
        time.sleep(8)
        written.append(machines.writer.acknowledged - first)

    watch = threading.Timer(45, look)
    cutter.on_cut = watch.start
    moved = move(machines, cutter)
    watch.join()

    assert cutter.cuts == [step]
    assert moved.carried < moved.report.sent / 20
    assert written[0] > 0
    thaws = [event for event in moved.seen if isinstance(event, events.Thawed)]
    assert all(thaw.held < 40 for thaw in thaws)
    assert not thaws[-1].lost
    if step == "cutover":
        assert thaws[-2].lost


@pytest.mark.slow
def test_data_goes_through_the_caller_only_where_there_is_no_other_way(machines: Machines) -> None:
    """Source and target cannot reach one another: the caller joins them through SSH, and says so."""
    machines.lan.cut("data")
    moved = move(machines)

    assert moved.carried > moved.report.sent
    assert any("carries all of it" in finding.title for finding in moved.report.findings)
