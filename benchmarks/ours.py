"""cvm_migrate doing the same work, with a program writing to the disk during the full sync."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from benchmarks.rig import BUSY, Cost, Disks, measured, mutate, run, wrong_bytes
from cvm_migrate import LocalHost, Migration, Options
from cvm_migrate.agent.tracking import Device, start


@contextlib.contextmanager
def writing(mount: Path, rate: float) -> Iterator[None]:
    """Random 16 KiB writes through the file system at *rate* bytes per second."""
    stop = threading.Event()
    file = mount / BUSY
    size = file.stat().st_size

    def work() -> None:
        choose = random.Random(3)
        fd = os.open(file, os.O_WRONLY)
        start, done = time.monotonic(), 0
        try:
            while not stop.is_set():
                os.pwrite(fd, os.urandom(16384), choose.randrange(size // 16384) * 16384)
                done += 16384
                if done % (64 * 16384) == 0:
                    os.fdatasync(fd)
                ahead = done / rate - (time.monotonic() - start)
                if ahead > 0:
                    stop.wait(ahead)
        finally:
            os.close(fd)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@attrs.frozen
class Ours:
    """What our passes cost and left wrong; *pause* and *predicted* in seconds."""

    full: Cost
    second: Cost
    changed: int
    wrong: int
    wrong_second: int
    pause: float
    predicted: float | None
    rung: str | None


def migrate(
    disks: Disks, *, streams: int, codec: str = "auto", level: int = 1, write_rate: float = 5e6
) -> Ours:
    """Full sync of the live disk, a second pass after 1 % was rewritten, and a cutover under load.

    What is wrong is counted between the last pass of a cutover and its thaw: the source stands still for as long as
    that takes. The pause is that of another cutover, with nothing else in it.
    """
    wrong: list[int] = []

    def count() -> None:
        wrong.append(wrong_bytes(disks.source, disks.target, disks.size))

    with Migration(
        source=LocalHost(disks=[str(disks.source)]),
        target=LocalHost(disks=[str(disks.target)]),
        options=Options(
            streams=streams,
            codec=codec,
            level=level,
            prove="sent",
            max_downtime=1.0,
            freeze_limit=300.0,
        ),
    ) as migration:
        prepared = migration.prepare()
        with writing(disks.mount, write_rate), measured() as full:
            migration.full_sync()
        run("sync", "--file-system", str(disks.mount))
        migration.cutover(on_proven=count, force=True)
        changed = mutate(disks.mount, disks.size)
        with measured() as second:
            migration.delta_sync()
        migration.cutover(on_proven=count, force=True)
        with writing(disks.mount, write_rate):
            migration.delta_sync()
            cut = migration.cutover(force=True)
        migration.cutover(on_proven=count, force=True)
    return Ours(
        full=full[0],
        second=second[0],
        changed=changed,
        wrong=wrong[0],
        wrong_second=max(wrong[1:]),
        pause=cut.downtime,
        predicted=cut.predicted_downtime,
        rung=prepared.rung,
    )


def slowdown(disks: Disks, *, rounds: int = 60, seconds: float = 0.25) -> dict[str, float]:
    """What tracking costs a program that writes random 16 KiB through the file system, each made durable.

    Rounds with and without a tracker alternate, as the disk's own speed drifts. The kernel's own count of the time spent in the tracker's programs, where it keeps one, says the same without that drift.
    """
    tracked: list[float] = []
    free: list[float] = []
    rdev = disks.source.stat().st_rdev
    device = Device(str(disks.source), disks.size, os.major(rdev), os.minor(rdev))
    file = disks.mount / BUSY
    stats = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = stats.read_text()
    inside = 0.0
    try:
        for number in range(rounds):
            for with_tracker in (number % 2 == 0, number % 2 == 1):
                tracker = start([device], ["ebpf", "tracefs"], None)[0] if with_tracker else None
                try:
                    (tracked if with_tracker else free).append(_write_rate(file, seconds))
                finally:
                    if tracker is not None:
                        tracker.close()
        stats.write_text("1")
        tracker = start([device], ["ebpf"], None)[0]
        if tracker is not None:
            try:
                began = time.monotonic()
                _write_rate(file, 4 * seconds)
                inside = program_seconds() / (time.monotonic() - began)
            finally:
                tracker.close()
    finally:
        stats.write_text(before)
    return {
        "writes_tracked": statistics.median(tracked),
        "writes_free": statistics.median(free),
        # Of neighbours in time: what the disk does over minutes is in both.
        "slowdown": 1
        - statistics.median(one / other for one, other in zip(tracked, free, strict=True)),
        "in_programs": inside,
    }


def _write_rate(file: Path, seconds: float) -> float:
    """Writes a second."""
    choose = random.Random(5)
    size = file.stat().st_size
    data = os.urandom(16384)
    fd = os.open(file, os.O_WRONLY | os.O_DSYNC)
    try:
        count, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            os.pwrite(fd, data, choose.randrange(size // 16384) * 16384)
            count += 1
        return count / (time.monotonic() - began)
    finally:
        os.close(fd)


def program_seconds() -> float:
    """Seconds spent in this process's eBPF programs, by the kernel's own count."""
    total = 0
    for entry in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for line in entry.read_text().splitlines():
                if line.startswith("run_time_ns:"):
                    total += int(line.split()[1])
    return total / 1e9
