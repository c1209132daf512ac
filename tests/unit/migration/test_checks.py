"""What check() makes of facts, with hosts in memory."""

from __future__ import annotations

import pytest

from cvm_migrate import CheckReport, Migration, Options, Severity
from rig.memory_hosts import World

KiB = 1 << 10
_SIZE = 512 * KiB


def _world(used: int | None) -> World:
    world = World(1, sizes=[_SIZE, _SIZE], faults=0, tracked=True)
    world.used = used
    return world


def _check(world: World, options: Options) -> CheckReport:
    with Migration(
        world.endpoint("source"), world.endpoint("target"), options=options
    ) as migration:
        return migration.check()


def test_what_file_systems_use_is_told_beside_the_size_of_the_disks() -> None:
    report = _check(_world(100 * KiB), Options())

    assert (report.size, report.estimated_bytes) == (2 * _SIZE, 2 * _SIZE)
    assert (report.used_bytes, report.used_at_least) == (200 * KiB, False)


@pytest.mark.parametrize(
    ("used", "options", "seconds"),
    [
        # What is in use bounds the way of the data ...
        (64 * KiB, Options(bandwidth=64 * KiB), 2.0),
        (64 * KiB, Options(bandwidth=64 * KiB, read_limit=1024 * KiB), 2.0),
        # ... but everything is read.
        (64 * KiB, Options(bandwidth=64 * KiB, read_limit=128 * KiB), 8.0),
        # Where nobody says what is in use, it may be everything.
        (None, Options(bandwidth=64 * KiB), 16.0),
        (_SIZE, Options(bandwidth=64 * KiB), 16.0),
    ],
)
def test_the_time_is_that_of_reading_everything_or_of_sending_what_is_used(
    used: int | None, options: Options, seconds: float
) -> None:
    report = _check(_world(used), options)

    assert report.estimated_seconds == seconds


def test_what_each_disk_is_divided_into_is_told() -> None:
    report = _check(_world(None), Options())

    found = {one.title: one.evidence for one in report.findings if "partition" in one.title}
    assert found == {
        "/dev/vda has no partitions": "ext4 at /mnt/0",
        "/dev/vdb has no partitions": "ext4 at /mnt/1",
    }


@pytest.mark.parametrize(
    ("source", "target"),
    [("uefi", "bios"), ("bios", "uefi"), ("bios", "bios"), ("uefi", "uefi")],
)
def test_boot_modes_that_differ_are_a_warning_before_and_when_it_begins(
    source: str, target: str
) -> None:
    world = _world(None)
    world.firmware = {"source": source, "target": target}
    title = f"the source starts by {source}, the target by {target}"

    with Migration(world.endpoint("source"), world.endpoint("target")) as migration:
        checked = migration.check()
        prepared = migration.prepare()

    for findings in (checked.findings, prepared.findings):
        told = [one for one in findings if one.title.startswith("the source starts by")]
        assert [(one.severity, one.title) for one in told] == (
            [] if source == target else [(Severity.WARNING, title)]
        )
        assert all("boot mode" in one.remedy for one in told)
    assert checked.possible
