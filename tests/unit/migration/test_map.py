"""The partitions of a disk as a finding, on captured hosts."""

from __future__ import annotations

import attrs

from cvm_migrate import Severity
from cvm_migrate.migration._map import partition_map
from cvm_migrate.model import OpenDisk
from rig.hosts import host


def opened(identity: str, path: str = "/dev/disk/by-id/one") -> OpenDisk:
    return OpenDisk(
        handle=1,
        path=path,
        kind="block" if identity.startswith("block") else "file",
        size=1 << 30,
        logical_block_size=512,
        physical_block_size=512,
        identity=identity,
        direct=True,
    )


def test_each_partition_is_named_with_its_place_and_what_is_on_it() -> None:
    found = partition_map(host("plain"), opened("block:252:0"))

    assert found is not None
    assert found.severity is Severity.INFO
    assert found.title == "/dev/disk/by-id/one has 4 partitions"
    assert found.evidence.split("; ") == [
        "/dev/vda1, 46.0 GiB at 1.00 MiB: ext4 at /, swap /swapfile",
        "/dev/vda14, 4.00 MiB at 47.0 GiB: no mounted file system",
        "/dev/vda15, 106 MiB at 48.0 GiB: vfat at /boot/efi",
        "/dev/vda2, 1.00 GiB at 49.0 GiB: swap /dev/vda2",
    ]


def test_volumes_are_named_with_the_partition_that_they_lie_on() -> None:
    found = partition_map(host("lvm"), opened("block:8:0", "/dev/sda"))

    assert found is not None
    assert found.evidence.endswith(": xfs at /, swap /dev/dm-1")


def test_a_disk_without_partitions_is_told_of_too() -> None:
    found = partition_map(host("plain"), opened("block:252:16", "/dev/vdb"))

    assert found is not None
    assert (found.title, found.evidence) == ("/dev/vdb has no partitions", "xfs at /data")


def test_a_long_table_is_cut_short() -> None:
    facts = host("plain")
    disk = facts.disks[0]
    many = attrs.evolve(disk, partitions=disk.partitions * 10)
    found = partition_map(attrs.evolve(facts, disks=(many,)), opened("block:252:0"))

    assert found is not None
    assert found.evidence.endswith("; and 16 more")


def test_what_the_facts_do_not_know_is_no_finding() -> None:
    assert partition_map(host("plain"), opened("file:1:2")) is None
    assert partition_map(host("plain"), opened("block:9:9")) is None
