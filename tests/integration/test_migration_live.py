"""Busy, mounted file systems are moved; the copy is the frozen source, byte for byte, and sound."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import LocalHost, Migration, Options, Report, events
from rig import loopdev
from rig.disks import Pair, check_copy, mounted_pair
from rig.writers import ledger, writing


def _move(pair: Pair, *, rungs: tuple[str, ...], pause: float = 0.005) -> Report:
    """Move the pair's disk under load and assert that the copy is identical and sound."""
    (pair.mount / "ballast").write_bytes(os.urandom(12 << 20))
    found: list[int | None] = []
    promised: list[int] = []
    with (
        writing(pair.mount, pause=pause) as writer,
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            state=pair.folder / "state",
            options=Options(rungs=rungs, max_downtime=20, freeze_limit=60),
        ) as migration,
    ):
        report = migration.run(
            on_quiesced=lambda: promised.append(writer.acknowledged),
            # While frozen: the whole of both devices, past the page cache.
            on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target)),
        )

    assert found == [None]
    assert check_copy(pair)[0] == 0, check_copy(pair)[1]
    options = ("nouuid",) if pair.kind == "xfs" else ()
    with loopdev.mounted(pair.target, pair.folder / "copy", *options) as copy:
        integrity, highest = ledger(copy)
    assert integrity == "ok"
    assert highest >= promised[0]
    return report


@pytest.mark.parametrize(
    ("rung", "kind"),
    [
        ("ebpf", "ext4"),
        ("ebpf", "xfs"),
        ("ebpf", "btrfs"),
        ("tracefs", "ext4"),
        ("digests", "ext4"),
        *(
            pytest.param(rung, kind, marks=pytest.mark.slow)
            for rung in ("tracefs", "digests")
            for kind in ("xfs", "btrfs")
        ),
    ],
)
def test_a_busy_file_system_is_moved(kind: str, rung: str, tmp_path: Path) -> None:
    """Under random writes, file churn and SQLite the copy is identical at the freeze, clean, and complete."""
    require("loop", f"mkfs.{kind}")
    rungs = () if rung == "digests" else (rung,)
    with mounted_pair(tmp_path, kind) as pair:
        report = _move(pair, rungs=rungs)

    assert report.rung == (None if rung == "digests" else rung), report.refused
    assert report.proven
    assert report.cutover is not None
    assert report.cutover.frozen == (str(pair.mount),)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_ten_migrations_in_a_row_are_all_identical(kind: str, tmp_path: Path) -> None:
    """Ten times: under load, identical at the freeze, and clean afterwards."""
    require("loop", f"mkfs.{kind}")
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        with mounted_pair(folder, kind) as pair:
            assert _move(pair, rungs=("ebpf", "tracefs"), pause=0.001).proven
        for file in folder.glob("*.img"):
            file.unlink()


def test_the_second_pass_is_right_on_a_mounted_disk(tmp_path: Path) -> None:
    """What files changed after the first pass arrives: the page cache of the device does not hide it."""
    require("loop", "mkfs.ext4")
    with mounted_pair(tmp_path) as pair:
        file = pair.mount / "file"
        file.write_bytes(os.urandom(16 << 20))
        loopdev.write_out(pair.mount)
        # Fill the page cache of the block device, which file writes do not refresh.
        pair.source.read_bytes()
        with Migration(
            LocalHost(disks=[pair.source]), LocalHost(disks=[pair.target])
        ) as migration:
            migration.prepare()
            full = migration.full_sync()
            with file.open("r+b") as opened:
                for number in range(64):
                    opened.seek(number * (256 << 10))
                    opened.write(os.urandom(16 << 10))
                os.fsync(opened.fileno())
            delta = migration.delta_sync()
            found: list[int | None] = []
            migration.cutover(
                on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target)),
                max_downtime=20,
            )

        assert found == [None]
        assert full.sent == 96 << 20
        assert 64 * (16 << 10) <= delta.sent < 32 << 20


def test_a_cutover_can_be_taken_back_without_a_full_sync(tmp_path: Path) -> None:
    """After a cutover the tracker goes on: the next passes send what changed, and another cutover is identical."""
    require("loop", "mkfs.ext4")
    with (
        mounted_pair(tmp_path) as pair,
        writing(pair.mount),
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            options=Options(max_downtime=20, prove="sent"),
        ) as migration,
    ):
        migration.prepare()
        migration.full_sync()
        migration.cutover()
        assert migration.status().bootable
        again = migration.delta_sync()
        assert not migration.status().bootable
        found: list[int | None] = []
        migration.cutover(
            on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target))
        )

    assert found == [None]
    assert again.disks[0].certain
    assert again.compared == 0
    assert again.sent < 64 << 20


def test_hold_keeps_the_target_close(tmp_path: Path) -> None:
    """Hold mode makes pass after pass, says how far the target is behind, and ends when asked."""
    require("loop", "mkfs.ext4")
    lags: list[events.Lag] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Lag):
            lags.append(event)

    with (
        mounted_pair(tmp_path) as pair,
        writing(pair.mount),
        Migration(
            LocalHost(disks=[pair.source]), LocalHost(disks=[pair.target]), observer=observe
        ) as migration,
    ):
        migration.prepare()
        migration.full_sync()
        migration.hold(until=lambda: len(lags) >= 4, interval=0.5)
        passes = migration.status().passes

    assert passes >= 2
    assert len(lags) >= 4
    assert all(lag.lag >= 0 and (lag.backlog or 0) >= 0 for lag in lags)
    assert any(lag.backlog is not None for lag in lags)


def test_two_disks_are_moved_at_one_moment(tmp_path: Path) -> None:
    """Two mounted disks are frozen together, and both copies are identical at that moment."""
    require("loop", "mkfs.ext4", "mkfs.xfs")
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    found: list[int | None] = []
    with (
        mounted_pair(one, "ext4") as first,
        mounted_pair(other, "xfs") as second,
        writing(first.mount),
        writing(second.mount),
        Migration(
            LocalHost(disks=[first.source, second.source]),
            LocalHost(disks=[first.target, second.target]),
            options=Options(max_downtime=20),
        ) as migration,
    ):
        report = migration.run(
            on_proven=lambda: found.extend(
                loopdev.first_difference(pair.source, pair.target) for pair in (first, second)
            )
        )

    assert found == [None, None]
    assert report.cutover is not None
    assert set(report.cutover.frozen) == {str(first.mount), str(second.mount)}


def test_the_file_systems_are_thawed_when_a_hook_fails(tmp_path: Path) -> None:
    """An error of the caller's own, raised while frozen, arrives at the caller after the thaw."""
    require("loop", "mkfs.ext4")

    def fail() -> None:
        raise LookupError("the caller's own")

    seen: list[events.Event] = []
    with (
        mounted_pair(tmp_path) as pair,
        Migration(
            LocalHost(disks=[pair.source]), LocalHost(disks=[pair.target]), observer=seen.append
        ) as migration,
    ):
        migration.prepare()
        migration.full_sync()
        with pytest.raises(LookupError, match="the caller's own"):
            migration.cutover(on_proven=fail)
        (pair.mount / "after").write_text("not frozen any more")
        loopdev.write_out(pair.mount)

        assert any(isinstance(event, events.Thawed) for event in seen)
        assert migration.status().state == "synced"
        migration.cutover()
        assert migration.finish().proven


def test_what_an_observer_raises_ends_the_step_and_nothing_is_lost(tmp_path: Path) -> None:
    """An observer that raises ends the step; repeating it goes on and the copy is identical."""
    require("loop", "mkfs.ext4")
    raised: list[int] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.PassEnded) and not raised:
            raised.append(1)
            raise LookupError("the observer's own")

    found: list[int | None] = []
    with (
        mounted_pair(tmp_path) as pair,
        writing(pair.mount),
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            observer=observe,
            options=Options(max_downtime=20),
        ) as migration,
    ):
        migration.prepare()
        with pytest.raises(LookupError, match="the observer's own"):
            migration.full_sync()
        migration.full_sync()
        migration.cutover(
            on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target))
        )

    assert found == [None]
