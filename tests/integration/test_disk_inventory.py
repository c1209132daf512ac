"""The disk inventory on real devices: what an agent says is enough to find what lies on a disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import capabilities
from cvm_migrate.disk import Place, Usage, check_target, find_disk, mounts_on, used_on
from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.model import HostFacts, Severity
from cvm_migrate.transport import start_local_agent
from rig import loopdev
from rig.pythons import interpreters

SIZE = 128 << 20


def facts(python: str | Path = sys.executable) -> HostFacts:
    with start_local_agent(python=python) as agent:
        return agent.facts()


def points(disk: Path, *others: Path) -> list[str]:
    return [mount.mount_point for mount in mounts_on(facts(), [str(disk), *map(str, others)])]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    capabilities.require("loop", "mkfs.ext4")
    with loopdev.loop_device(tmp_path / "disk", SIZE) as device:
        yield device


@contextlib.contextmanager
def partitioned(device: Path) -> Generator[Path]:
    """One partition, added to the kernel by hand: not every kernel reads partition tables."""
    # From sector 2048 on, 100 MiB.
    loopdev.run("addpart", str(device), "1", "2048", str(100 << 11))
    partition = Path(f"{device}p1")
    try:
        yield partition
    finally:
        loopdev.run("delpart", str(device), "1", check=False)


def test_a_file_system_on_a_whole_disk_and_its_second_mount(disk: Path, tmp_path: Path) -> None:
    loopdev.make_file_system(disk, "ext4")
    with (
        loopdev.mounted(disk, tmp_path / "one") as one,
        loopdev.mounted(disk, tmp_path / "two"),
    ):
        assert points(disk) == [str(one)]
    assert points(disk) == []


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.13"])
def test_a_mounted_file_system_says_what_it_holds_and_uses(
    version: str, disk: Path, tmp_path: Path
) -> None:
    """Each Python says the same, and a second mount does not count."""
    capabilities.require(f"python {version}")
    loopdev.make_file_system(disk, "ext4")
    with (
        loopdev.mounted(disk, tmp_path / "one") as one,
        loopdev.mounted(disk, tmp_path / "two"),
    ):
        (one / "file").write_bytes(bytes(range(256)) * (20 << 12))
        # This one only: a whole sync waits for what other tests have frozen.
        loopdev.run("sync", "-f", str(one))
        said = facts(interpreters()[version])
        status = os.statvfs(one)

    found = [mount for mount in said.mounts if mount.mount_point.startswith(str(tmp_path))]
    sizes = {(mount.size, mount.used) for mount in found}
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    assert len(found) == 2
    assert sizes == {(status.f_blocks * status.f_frsize, used)}
    assert 20 << 20 <= used < 40 << 20
    assert used_on(said, [str(disk)]) == Usage(used, 0, used)
    # What lies in memory is not asked.
    assert all(mount.used is None for mount in said.mounts if mount.fs_type in {"proc", "tmpfs"})


def test_a_partition_that_is_not_mounted_is_unknown(disk: Path, tmp_path: Path) -> None:
    capabilities.require("partx")
    with partitioned(disk) as partition:
        loopdev.make_file_system(partition, "ext4")
        assert used_on(facts(), [str(disk)]) == Usage(None, 100 << 20, 100 << 20)
        with loopdev.mounted(partition, tmp_path / "at"):
            usage = used_on(facts(), [str(disk)])
        assert usage.used is not None
        assert (usage.unknown, usage.to_send) == (0, usage.used)


def test_a_file_system_on_a_partition(disk: Path, tmp_path: Path) -> None:
    # addpart and delpart come with partx.
    capabilities.require("partx")
    with partitioned(disk) as partition:
        loopdev.make_file_system(partition, "ext4")
        with loopdev.mounted(partition, tmp_path / "at") as at:
            said = facts()
            assert [mount.mount_point for mount in mounts_on(said, [str(disk)])] == [str(at)]
            with pytest.raises(InvalidRequestError, match="Give the whole disk"):
                find_disk(said, str(partition))


def test_a_file_system_in_a_file_on_the_disk_comes_first(disk: Path, tmp_path: Path) -> None:
    loopdev.make_file_system(disk, "ext4")
    with (
        loopdev.mounted(disk, tmp_path / "outer") as outer,
        loopdev.loop_device(outer / "inner.img", 16 << 20) as device,
    ):
        loopdev.make_file_system(device, "ext4")
        with loopdev.mounted(device, tmp_path / "inner") as inner:
            assert points(disk) == [str(inner), str(outer)]
            assert points(device) == [str(inner)]
            found = check_target(Place(facts(), str(device)), Place(facts(), str(disk)))
            assert f"The target {device} lies on the source {disk}" in [
                finding.title for finding in found
            ]


def test_a_btrfs_over_two_disks_with_a_subvolume_mounted_too(disk: Path, tmp_path: Path) -> None:
    capabilities.require("mkfs.btrfs")
    with loopdev.loop_device(tmp_path / "second", SIZE) as second:
        loopdev.run("mkfs.btrfs", "-q", "-f", str(disk), str(second))
        loopdev.run("btrfs", "device", "scan", str(disk), str(second))
        try:
            with loopdev.mounted(disk, tmp_path / "pool") as pool:
                loopdev.run("btrfs", "subvolume", "create", str(pool / "part"))
                with loopdev.mounted(disk, tmp_path / "part", "subvol=part"):
                    assert points(disk) == points(second) == points(disk, second) == [str(pool)]
                    said = facts()
                    told = {m.used for m in said.mounts if str(disk) == m.source}
                    assert None not in told
                    # Once, though both mounts say it.
                    assert used_on(said, [str(disk), str(second)]).used in told
                    assert used_on(said, [str(disk)]).used is None
        finally:
            # btrfs remembers devices it has seen, also those that are gone.
            loopdev.run("btrfs", "device", "scan", "--forget", str(disk), str(second), check=False)


def test_a_mounted_target_is_refused_and_a_free_one_is_not(disk: Path, tmp_path: Path) -> None:
    loopdev.make_file_system(disk, "ext4")
    with loopdev.loop_device(tmp_path / "source", SIZE) as source:
        with loopdev.mounted(disk, tmp_path / "at") as at:
            said = facts()
            (found,) = check_target(Place(said, str(disk)), Place(said, str(source)))
            assert found.severity is Severity.BLOCKER
            assert found.title == f"The target {disk} is mounted at {at}"
        said = facts()
        assert check_target(Place(said, str(disk)), Place(said, str(source))) == ()


def test_a_target_that_is_also_the_source_by_its_file_is_refused(
    disk: Path, tmp_path: Path
) -> None:
    with loopdev.loop_device(tmp_path / "disk") as again:
        said = facts()
        found = check_target(Place(said, str(again)), Place(said, str(disk)))

    assert found[0].title == f"The target {again} is the source itself"
