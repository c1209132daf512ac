"""A system is not moved to where it cannot run, with hosts in memory."""

from __future__ import annotations

import pytest

from cvm_migrate import Migration, Options, Severity
from cvm_migrate.errors import UnsafeTargetError
from rig.memory_hosts import World

_SIZE = 1 << 18


def _world(source: str, target: str) -> World:
    world = World(1, sizes=[_SIZE], faults=0, tracked=True)
    world.machines = {"source": source, "target": target}
    return world


def _migration(world: World) -> Migration:
    ends = world.endpoint("source"), world.endpoint("target")
    return Migration(*ends, options=Options(chunk=64 << 10))


def _told(migration: Migration) -> list[tuple[Severity, str]]:
    return [
        (finding.severity, finding.evidence)
        for finding in migration.check().findings
        if "uname -m" in finding.evidence
    ]


@pytest.mark.parametrize(
    ("source", "target"),
    [("x86_64", "aarch64"), ("aarch64", "x86_64"), ("i686", "aarch64"), ("ppc64le", "ppc64")],
)
def test_another_processor_is_a_blocker_and_refused_before_anything_is_written(
    source: str, target: str
) -> None:
    world = _world(source, target)

    with _migration(world) as migration:
        checked = migration.check()
        with pytest.raises(UnsafeTargetError, match=f"made for {source}") as caught:
            migration.prepare()

    (blocker,) = checked.blockers
    assert (source in blocker.evidence, target in blocker.evidence) == (True, True)
    assert caught.value.remedy == blocker.remedy
    assert world.target == [bytes(_SIZE)]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("x86_64", "x86_64"),
        ("i686", "x86_64"),
        ("i386", "amd64"),
        ("i586", "i686"),
        ("arm64", "aarch64"),
        ("riscv64", "riscv64"),
    ],
)
def test_what_runs_there_is_nothing_to_tell_of(source: str, target: str) -> None:
    with _migration(_world(source, target)) as migration:
        assert _told(migration) == []
        migration.prepare()


def test_a_rescue_system_of_32_bits_says_little_of_its_processor() -> None:
    with _migration(_world("x86_64", "i686")) as migration:
        ((severity, _),) = _told(migration)
        prepared = migration.prepare()

    assert severity is Severity.WARNING
    assert any("lm in /proc/cpuinfo" in finding.remedy for finding in prepared.findings)
