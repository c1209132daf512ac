"""cvm_migrate doing the same work, with a program writing to the disk during the full sync."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from benchmarks.rig import Cost, Disks, frozen, measured, mutate, run, wrong_bytes
from cvm_migrate import LocalHost, Migration, Options


@contextlib.contextmanager
def writing(mount: Path, rate: float) -> Iterator[None]:
    """Random 16 KiB writes through the file system at *rate* bytes per second."""
    stop = threading.Event()
    file = mount / "written-meanwhile"
    size = 64 << 20
    with file.open("wb") as handle:
        handle.write(os.urandom(size))
    run("sync", "--file-system", str(mount))

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


def migrate(disks: Disks, *, streams: int, codec: str = "auto", write_rate: float = 5e6) -> Ours:
    """Full sync of the live disk, a second pass after 1 % was rewritten, and a cutover under load."""
    proven: list[int] = []
    with Migration(
        source=LocalHost(disks=[str(disks.source)]),
        target=LocalHost(disks=[str(disks.target)]),
        options=Options(streams=streams, codec=codec, prove="sent", max_downtime=1.0),
    ) as migration:
        prepared = migration.prepare()
        with writing(disks.mount, write_rate), measured() as full:
            migration.full_sync()
        run("sync", "--file-system", str(disks.mount))
        migration.delta_sync()
        with frozen(disks.mount):
            migration.delta_sync()
            wrong = wrong_bytes(disks.source, disks.target, disks.size)
        changed = mutate(disks.mount, disks.size)
        with measured() as second:
            migration.delta_sync()
        with frozen(disks.mount):
            migration.delta_sync()
            wrong_second = wrong_bytes(disks.source, disks.target, disks.size)
        with writing(disks.mount, write_rate):
            migration.delta_sync()
            cut = migration.cutover(force=True)
        # The comparison belongs to the benchmark, not to the pause: it comes in a second, longer freeze.
        with frozen(disks.mount):
            migration.delta_sync()
            proven.append(wrong_bytes(disks.source, disks.target, disks.size))
    return Ours(
        full=full[0],
        second=second[0],
        changed=changed,
        wrong=wrong,
        wrong_second=max(wrong_second, *proven),
        pause=cut.downtime,
        predicted=cut.predicted_downtime,
        rung=prepared.rung,
    )
