"""Huge discards, and disks whose logical blocks differ between both ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import LocalHost, Migration, Options
from rig import loopdev

MiB = 1 << 20
GiB = 1 << 30


@pytest.mark.slow
@pytest.mark.parametrize("rung", ["ebpf", "tracefs"])
def test_a_discard_of_1_gib_arrives(rung: str, tmp_path: Path) -> None:
    """In one call: what was there is gone on the target too, and little goes over the wire for it."""
    require("loop", "blkdiscard", "tracefs")
    size = GiB + 128 * MiB
    with (
        loopdev.loop_device(tmp_path / "source.img", size) as source,
        loopdev.loop_device(tmp_path / "target.img", size) as target,
    ):
        with source.open("r+b", buffering=0) as disk:
            for offset in range(0, size, 64 * MiB):
                disk.seek(offset)
                disk.write(os.urandom(MiB))
            os.fsync(disk.fileno())
        with Migration(
            LocalHost(disks=[source]),
            LocalHost(disks=[target]),
            options=Options(rungs=(rung,), prove="sent"),
        ) as migration:
            migration.prepare()
            migration.full_sync()
            loopdev.run("blkdiscard", "--offset", str(64 * MiB), "--length", str(GiB), str(source))
            delta = migration.delta_sync()
            migration.cutover()
            assert migration.finish().proven

        assert delta.disks[0].certain, delta.disks[0].reason
        assert delta.disks[0].changed >= GiB
        assert delta.wire < 32 * MiB
        assert loopdev.first_difference(source, target) is None


@pytest.mark.parametrize(("here", "there"), [(512, 4096), (4096, 512)])
def test_logical_blocks_may_differ_between_both_ends(
    here: int, there: int, tmp_path: Path
) -> None:
    """It is warned of, as partition tables count in them; every byte arrives all the same."""
    require("loop")
    size = 16 * MiB + 4096
    with (
        loopdev.loop_device(tmp_path / "source.img", size, sector=here) as source,
        loopdev.loop_device(tmp_path / "target.img", size, sector=there) as target,
    ):
        source.write_bytes(os.urandom(size))
        with Migration(LocalHost(disks=[source]), LocalHost(disks=[target])) as migration:
            report = migration.check()
            assert report.possible
            assert any("logical blocks" in finding.title for finding in report.findings)
            assert migration.run().proven

        assert loopdev.first_difference(source, target) is None
