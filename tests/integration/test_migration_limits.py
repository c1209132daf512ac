"""Sources that write too fast, trackers that cannot vouch, mounts that cannot be frozen, freezes that end too early."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import LocalHost, Migration, Options, SyncResult, events
from cvm_migrate.errors import FreezeLostError, NotConvergingError
from cvm_migrate.migration import Decision
from rig import loopdev, processes
from rig.disks import mounted_pair
from rig.writers import writing

MiB = 1 << 20


class _Flood:
    """Overwrites a file with noise, again and again, faster than a limited path carries."""

    def __init__(self, file: Path, size: int) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(file, size), daemon=True)
        self._thread.start()

    def _run(self, file: Path, size: int) -> None:
        noise = os.urandom(1 * MiB)
        with file.open("wb", buffering=0) as opened:
            while not self._stop.is_set():
                # In the same place, so that the dirty part stays the same.
                opened.seek(0)
                for _ in range(0, size, MiB):
                    opened.write(noise)
                os.fsync(opened.fileno())

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_a_source_that_writes_too_fast_does_not_converge(tmp_path: Path) -> None:
    """run() says so with the numbers and the remedies; the choice is the caller's; the state allows to go on."""
    require("loop", "mkfs.ext4")
    asked: list[SyncResult] = []
    with mounted_pair(tmp_path, size=64 * MiB) as pair:
        flood = _Flood(pair.mount / "flood", 8 * MiB)
        try:
            with Migration(
                LocalHost(disks=[pair.source]),
                LocalHost(disks=[pair.target]),
                options=Options(
                    bandwidth=8 * MiB, max_downtime=0.3, prove="sent", codec="raw", max_passes=4
                ),
            ) as migration:

                def stop(last: SyncResult) -> Decision:
                    asked.append(last)
                    return "stop"

                with pytest.raises(NotConvergingError) as error:
                    migration.run(on_not_converging=stop)
                assert migration.status().state == "synced"
                flood.stop()
                found: list[int | None] = []
                migration.cutover(
                    force=True,
                    on_proven=lambda: found.append(
                        loopdev.first_difference(pair.source, pair.target)
                    ),
                )
        finally:
            flood.stop()

    assert "predicted downtime" in str(error.value)
    assert "/s" in str(error.value)
    assert error.value.remedy
    assert asked[0].verdict in {"not converging", "limit"}
    assert found == [None]


def test_a_freeze_that_ends_too_early_is_lost_and_repeated(tmp_path: Path) -> None:
    """What outlasts the freeze limit is a FreezeLostError; the next cutover is a delta, and identical."""
    require("loop", "mkfs.ext4")
    found: list[int | None] = []
    with (
        mounted_pair(tmp_path, size=64 * MiB) as pair,
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            options=Options(freeze_limit=1, max_downtime=1, prove="sent"),
        ) as migration,
    ):
        migration.prepare()
        migration.full_sync()
        with pytest.raises(FreezeLostError):
            migration.cutover(on_proven=lambda: time.sleep(3))
        (pair.mount / "after").write_bytes(os.urandom(MiB))
        assert migration.status().state == "synced"
        migration.cutover(
            force=True,
            on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target)),
        )
        passes = migration.report().passes

    assert found == [None]
    assert all(one.sent < 16 * MiB for one in passes[1:])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["source agent", "tracer"])
def test_a_tracker_that_was_killed_is_not_trusted(victim: str, tmp_path: Path) -> None:
    """What was written while nobody watched is found by comparing digests."""
    require("loop", "mkfs.ext4", *(["tracefs"] if victim == "tracer" else []))
    found: list[int | None] = []
    with (
        mounted_pair(tmp_path, size=64 * MiB) as pair,
        writing(pair.mount),
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            options=Options(
                rungs=("tracefs",) if victim == "tracer" else ("ebpf", "tracefs"),
                max_downtime=20,
                attempts=5,
            ),
        ) as migration,
    ):
        prepared = migration.prepare()
        migration.full_sync()
        agent: int = getattr(migration.agents[0], "pid", 0)
        pids = [agent] if victim == "source agent" else processes.children(agent, "tracer")
        assert pids, prepared.rung
        for pid in pids:
            assert processes.kill(pid)
        (pair.mount / "unseen").write_bytes(os.urandom(4 * MiB))
        loopdev.write_out(pair.mount)
        result = migration.run(
            on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target))
        )

    assert found == [None]
    assert any(one.compared >= 32 * MiB and one.kind == "delta" for one in result.passes)
    assert any(not disk.certain for one in result.passes for disk in one.disks)
    # A tracker that died was started anew.
    assert all(disk.certain for disk in result.passes[-1].disks)


@pytest.mark.slow
def test_events_that_were_lost_are_not_missed(tmp_path: Path) -> None:
    """A tiny ring overflows while nobody reads it: the tracker says so, digests find what it has not seen."""
    require("loop", "mkfs.ext4", "tracefs")
    found: list[int | None] = []
    with (
        mounted_pair(tmp_path, size=64 * MiB) as pair,
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            options=Options(rungs=("tracefs",), max_downtime=20),
        ) as migration,
    ):
        migration.prepare()
        migration.full_sync()
        agent: int = getattr(migration.agents[0], "pid", 0)
        (tracer,) = processes.children(agent, "tracer")
        (instance,) = (
            path
            for path in Path("/sys/kernel/tracing/instances").glob("cvm_migrate_*")
            if path.name.split("_")[2] in {str(agent), str(tracer)}
        )
        (instance / "buffer_size_kb").write_text("8")
        os.kill(tracer, signal.SIGSTOP)
        try:
            with (pair.mount / "unseen").open("wb", buffering=0) as file:
                for _ in range(2000):
                    file.write(os.urandom(4096))
                    os.fdatasync(file.fileno())
        finally:
            os.kill(tracer, signal.SIGCONT)
        result = migration.run(
            on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target))
        )

    assert found == [None]
    doubts = [disk for one in result.passes for disk in one.disks if not disk.certain]
    assert any("overflowed" in (disk.reason or "") for disk in doubts), result.to_text()
    assert any(disk.compared >= 32 * MiB for disk in doubts)


def test_a_disk_written_before_the_tracker_started_is_right(tmp_path: Path) -> None:
    """Dirty pages from before the start arrive as well."""
    require("loop", "mkfs.ext4")
    found: list[int | None] = []
    with mounted_pair(tmp_path, size=64 * MiB) as pair:
        (pair.mount / "before").write_bytes(os.urandom(8 * MiB))
        with Migration(
            LocalHost(disks=[pair.source]), LocalHost(disks=[pair.target])
        ) as migration:
            migration.run(
                on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target))
            )

    assert found == [None]


def test_the_first_and_the_last_sector_and_a_discard_arrive(tmp_path: Path) -> None:
    """Raw writes at both ends of a disk without a file system, a large discard, a chunk zero but for its last byte."""
    require("loop", "blkdiscard")
    size = 48 * MiB + 512 * 3
    source_file = tmp_path / "source.img"
    source_file.write_bytes(os.urandom(size))
    with (
        loopdev.loop_device(source_file) as source,
        loopdev.loop_device(tmp_path / "target.img", size) as target,
        Migration(LocalHost(disks=[source]), LocalHost(disks=[target])) as migration,
    ):
        migration.prepare()
        migration.full_sync()
        with source.open("r+b", buffering=0) as disk:
            disk.write(b"first sector".ljust(512, b"."))
            disk.seek(size - 512)
            disk.write(b"last sector".ljust(512, b"."))
            disk.seek(40 * MiB)
            disk.write(bytes(MiB - 1) + b"x")
            os.fsync(disk.fileno())
        loopdev.run("blkdiscard", "--offset", str(8 * MiB), "--length", str(16 * MiB), str(source))
        delta = migration.delta_sync()
        migration.cutover()
        report = migration.finish()

        assert target.read_bytes() == source.read_bytes()
    assert report.proven
    assert any("nothing was frozen" in finding.title for finding in report.findings)
    assert delta.sent < 24 * MiB


def test_an_odd_disk_with_4096_byte_blocks_is_copied(tmp_path: Path) -> None:
    """Logical blocks of 4096 bytes on both sides."""
    require("loop", "mkfs.ext4")
    found: list[int | None] = []
    with (
        loopdev.loop_device(tmp_path / "a.img", 24 * MiB + 4096 * 3, sector=4096) as source,
        loopdev.loop_device(tmp_path / "b.img", 32 * MiB, sector=4096) as target,
    ):
        loopdev.make_file_system(source, "ext4")
        with (
            loopdev.mounted(source, tmp_path / "mount") as mount,
            Migration(LocalHost(disks=[source]), LocalHost(disks=[target])) as migration,
        ):
            (mount / "file").write_bytes(os.urandom(4 * MiB))
            migration.run(on_proven=lambda: found.append(loopdev.first_difference(source, target)))

    assert found == [None]


def test_a_mount_that_refuses_the_freeze_is_reported_and_compared(tmp_path: Path) -> None:
    """A file system frozen by someone else refuses; its disk is compared as a whole in the cutover."""
    require("loop", "mkfs.ext4")
    with (
        mounted_pair(tmp_path, size=64 * MiB) as pair,
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            options=Options(max_downtime=20, prove="sent"),
        ) as migration,
    ):
        migration.prepare()
        migration.full_sync()
        loopdev.run("fsfreeze", "--freeze", str(pair.mount))
        try:
            result = migration.cutover()
            found = loopdev.first_difference(pair.source, pair.target)
        finally:
            loopdev.run("fsfreeze", "--unfreeze", str(pair.mount))

    assert found is None
    assert list(result.refused) == [str(pair.mount)]
    assert result.proven["frozen"] == 64 * MiB
    assert any("could not be frozen" in finding.title for finding in result.findings)


def test_the_observer_hears_the_whole_story(tmp_path: Path) -> None:
    """Steps, passes, tracker, freeze and thaw are told in order, and passes never send less than they say."""
    require("loop", "mkfs.ext4")
    seen: list[events.Event] = []
    with (
        mounted_pair(tmp_path, size=64 * MiB) as pair,
        writing(pair.mount),
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            observer=seen.append,
            options=Options(max_downtime=20),
        ) as migration,
    ):
        report = migration.run(on_quiesced=lambda: None)

    steps = [event.step for event in seen if isinstance(event, events.StepStarted)]
    assert steps[:3] == ["check", "prepare", "full_sync"]
    assert steps[-2:] == ["cutover", "finish"]
    ended = [event for event in seen if isinstance(event, events.PassEnded)]
    assert [event.number for event in ended] == list(range(1, len(ended) + 1))
    assert [event.sent for event in ended] == [one.sent for one in report.passes]
    kinds = [type(event) for event in seen]
    last_freeze = len(kinds) - 1 - kinds[::-1].index(events.Frozen)
    assert kinds[last_freeze + 1] is events.Thawed
    assert kinds.index(events.TrackerChosen) < kinds.index(events.PassStarted)
    assert events.HookCalled("on_quiesced") in seen
