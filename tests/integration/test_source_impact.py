"""What a migration costs the programs on the source: how long they stand still, what tracking takes of their time."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import LocalHost, Migration, Options
from cvm_migrate.agent.tracking import Device, ebpf
from rig import loopdev
from rig.disks import check_copy, mounted_pair
from rig.writers import writing_steadily

MiB = 1 << 20
_BLOCK = 16 << 10
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


@pytest.mark.alone
def test_a_cutover_pauses_a_busy_source_for_less_than_a_second(tmp_path: Path) -> None:
    """Under 5 MB/s of random 16 KiB writes, by the agent's clock and the writer's; the report has the forecast too."""
    require("loop", "mkfs.ext4")
    proven: list[float] = []
    found: list[int | None] = []
    with mounted_pair(tmp_path, size=512 * MiB) as pair:
        file = pair.mount / "busy"
        file.write_bytes(os.urandom(64 * MiB))
        (pair.mount / "ballast").write_bytes(os.urandom(128 * MiB))
        loopdev.write_out(pair.mount)
        with Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            options=Options(max_downtime=1.0),
        ) as migration:
            with writing_steadily(file, rate=5e6) as writer:
                migration.prepare()
                migration.full_sync()
                cut = migration.cutover(on_proven=lambda: proven.append(time.monotonic()))
                # The writer goes on after the thaw.
                time.sleep(0.5)
            # Comparing takes its time: it is not part of the pause that was measured.
            migration.cutover(
                on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target)),
                force=True,
            )
            report = migration.finish()

        assert found == [None]
        assert check_copy(pair)[0] == 0
    paused = writer.pause_at(proven[0])
    assert writer.written / writer.seconds > 2.5e6
    assert cut.frozen == (str(pair.mount),)
    assert cut.final_bytes > 0
    assert 0 < cut.downtime < 1.0
    # It was blocked no longer than that either, the moment until it runs again included.
    assert 0 < paused < 1.0
    assert cut.predicted_downtime is not None
    assert 0 < cut.predicted_downtime <= 1.0
    assert report.cutover is not None
    shown = dict(report.cutover.rows())
    assert "predicted" in str(shown), shown


@contextlib.contextmanager
def _counting() -> Generator[None]:
    """The kernel counts the time spent in eBPF programs. It does so for the whole machine."""
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


def _in_programs() -> tuple[float, int]:
    """Seconds spent in this process's eBPF programs, and how often they ran, by the kernel's count."""
    nanoseconds = runs = 0
    for entry in Path("/proc/self/fdinfo").iterdir():
        # The descriptor of the folder itself is gone by now.
        with contextlib.suppress(FileNotFoundError):
            fields = dict(
                line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line
            )
            nanoseconds += int(fields.get("run_time_ns", 0))
            runs += int(fields.get("run_cnt", 0))
    return nanoseconds / 1e9, runs


@pytest.mark.alone
@pytest.mark.parametrize("form", ["bytes", "bits"])
def test_tracking_takes_less_than_a_twentieth_of_the_writers_time(
    form: str, tmp_path: Path
) -> None:
    """Of durable 16 KiB writes as fast as they go, the time in the tracker's programs is below 5 %."""
    require("loop", "mkfs.ext4", "bpf stats")
    choose = random.Random(5)
    with mounted_pair(tmp_path, size=128 * MiB) as pair, _counting():
        file = pair.mount / "busy"
        file.write_bytes(os.urandom(32 * MiB))
        loopdev.write_out(pair.mount)
        number = pair.source.stat().st_rdev
        device = Device(str(pair.source), 128 * MiB, os.major(number), os.minor(number))
        with ebpf.start([device], None, form) as tracker:
            fd = os.open(file, os.O_WRONLY | os.O_DSYNC)
            try:
                data = os.urandom(_BLOCK)
                before, ran = _in_programs()
                began = time.monotonic()
                count = 0
                while time.monotonic() - began < 2.0:
                    os.pwrite(fd, data, choose.randrange(32 * MiB // _BLOCK) * _BLOCK)
                    count += 1
                wall = time.monotonic() - began
                after, runs = _in_programs()
            finally:
                os.close(fd)
            events = tracker.collect(0)[4]

    # They did run: each write was seen.
    assert runs - ran >= count
    assert events >= count
    assert 0 < (after - before) / wall < 0.05
