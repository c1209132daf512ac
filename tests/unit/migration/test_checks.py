"""What check() makes of facts, with hosts in memory."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cvm_migrate import CheckReport, Finding, Migration, Options, Severity
from cvm_migrate.model import TrackingFacts
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


def _finding(report: CheckReport, words: str) -> Finding:
    (found,) = [one for one in report.findings if words in one.title]
    return found


@pytest.mark.parametrize(
    ("role", "altered", "words", "expected"),
    [
        (
            "source",
            {"memory_available": 99 << 20},
            "little memory",
            ("warning", "99.0 MiB", "fewer"),
        ),
        (
            "target",
            {"memory_available": 99 << 20},
            "little memory",
            ("warning", "99.0 MiB", "fewer"),
        ),
        ("source", {"time": time.time() - 4000}, "the clock", ("warning", "day before", "Set it")),
        (
            "target",
            {"time": time.time() + 90_000},
            "the clock",
            ("blocker", "day before", "Set it"),
        ),
        ("source", {"services": ("postgres", "sshd")}, "postgres", ("warning", "", "on_quiesced")),
        ("source", {"can_freeze": False}, "cannot be frozen", ("warning", "", "as root")),
        ("target", {"euid": 1000}, "is not root", ("warning", "user id 1000", "sudo")),
        (
            "source",
            {"tracking": TrackingFacts({"ebpf": "no right", "tracefs": "not mounted"})},
            "no tracker",
            ("warning", "ebpf: no right; tracefs: not mounted", "Mend"),
        ),
    ],
)
def test_what_a_host_lacks_is_told_with_evidence_and_remedy(
    role: str, altered: dict[str, Any], words: str, expected: tuple[str, str, str]
) -> None:
    severity, evidence, remedy = expected
    world = _world(None)
    world.altered[role] = altered

    found = _finding(_check(world, Options()), words)
    usual = _check(_world(None), Options())

    assert found.severity.value == severity
    assert evidence in found.evidence
    assert remedy in found.remedy
    assert not [one for one in usual.findings if words in one.title]


@pytest.mark.parametrize(
    ("at", "told"), [(None, []), (0, ["/dev/vdb"]), (100 * KiB, ["/dev/vdb"])]
)
def test_a_target_that_is_not_empty_is_told(at: int | None, told: list[str]) -> None:
    world = _world(None)
    if at is not None:
        world.target[1][at] = 1

    report = _check(world, Options())

    warnings = [one for one in report.findings if "is not empty" in one.title]
    assert [one.title.split()[2] for one in warnings] == told
    assert all(one.severity is Severity.WARNING and one.remedy for one in warnings)


def test_the_tools_of_both_ends_are_told() -> None:
    world = _world(None)
    world.altered["source"] = {"tools": {"lvm": "/sbin/lvm", "fstrim": "/sbin/fstrim"}}

    report = _check(world, Options())

    assert "tools there: fstrim, lvm" in _finding(report, "the source, source, runs").evidence
    assert "none that is looked for" in _finding(report, "the target, target, runs").evidence


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
