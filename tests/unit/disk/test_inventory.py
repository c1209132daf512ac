"""Which file systems lie on which disks, on captured hosts."""

from __future__ import annotations

import attrs
import pytest

from cvm_migrate.disk import find_disk, mounts_on, ranges_on, reachable, swaps_on, unfreezable
from cvm_migrate.errors import InvalidRequestError, NotFoundError
from cvm_migrate.model import ExtentMap, MountFacts
from rig.hosts import host


def points(name: str, *disks: str) -> list[str]:
    return [mount.mount_point for mount in mounts_on(host(name), disks)]


def test_a_disk_is_found_by_path_name_number_and_alias() -> None:
    facts = host("lvm")

    assert find_disk(facts, "/dev/sda").name == "sda"
    assert find_disk(facts, "/dev//sda").name == "sda"
    assert find_disk(facts, "sda").name == "sda"
    assert find_disk(facts, "8:0").name == "sda"
    assert find_disk(facts, "/dev/mapper/centos-root").name == "dm-0"


def test_a_disk_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(NotFoundError, match=r"web-1 has no disk /dev/sdz.*/dev/vda \(50.0 GiB\)"):
        find_disk(host("plain"), "/dev/sdz")


def test_a_partition_is_refused_with_the_disk_to_give() -> None:
    with pytest.raises(InvalidRequestError, match="Give the whole disk, /dev/vda"):
        find_disk(host("plain"), "/dev/vda1")


def test_partitions_and_bind_mounts_of_a_plain_disk() -> None:
    """The bind mount is the same file system; snaps on loop devices cannot be written and are not frozen."""
    assert points("plain", "/dev/vda") == ["/boot/efi", "/"]


def test_a_file_system_on_a_whole_disk() -> None:
    assert points("plain", "/dev/vdb") == ["/data"]


def test_nothing_lies_on_a_disk_that_is_not_used() -> None:
    assert points("lvm", "/dev/sdc") == []
    assert points("plain", "/dev/sr0") == []


def test_a_partition_has_only_its_own_file_systems() -> None:
    assert points("plain", "/dev/vda15") == ["/boot/efi"]


def test_volumes_are_found_through_their_partition() -> None:
    assert points("lvm", "/dev/sda") == ["/boot", "/"]
    assert points("lvm", "/dev/sdb") == ["/home"]
    assert points("lvm", "/dev/sda", "/dev/sdb") == ["/home", "/boot", "/"]


def test_each_disk_of_a_mirror_holds_what_is_mirrored() -> None:
    assert points("md", "/dev/sda") == points("md", "/dev/sdb") == ["/boot", "/"]
    assert points("md", "/dev/sdc") == []


def test_slaves_are_enough_where_holders_are_not_told() -> None:
    facts = host("md")
    blind = attrs.evolve(
        facts,
        disks=tuple(
            attrs.evolve(
                disk,
                holders=(),
                partitions=tuple(attrs.evolve(part, holders=()) for part in disk.partitions),
            )
            for disk in facts.disks
        ),
    )

    assert mounts_on(blind, ["/dev/sda"]) == mounts_on(facts, ["/dev/sda"])


def test_subvolumes_of_one_btrfs_are_one_file_system() -> None:
    assert len(points("btrfs", "/dev/vda")) == 1


def test_a_btrfs_over_two_disks_lies_on_both() -> None:
    assert points("btrfs", "/dev/vdb") == points("btrfs", "/dev/vdc") == ["/pool"]


def test_a_btrfs_on_a_volume_is_found_by_the_volume_s_name() -> None:
    assert points("btrfs", "/dev/vdd") == ["/logs"]


def test_file_systems_in_files_are_frozen_before_those_their_files_lie_on() -> None:
    """Mount ids are used again and say nothing about age: only the order of the list does."""
    assert points("loops", "/dev/sda") == ["/mnt/inner", "/mnt/outer", "/"]
    assert points("loops", "/dev/sdb") == ["/mnt/other", "/data"]


def test_the_mount_that_can_be_reached_is_chosen() -> None:
    """Something is mounted over /bind; opening it would freeze something else."""
    facts = host("loops")
    bind = next(mount for mount in facts.mounts if mount.number == "8:1" and mount.id == 50)
    only_bind = attrs.evolve(
        facts, mounts=tuple(mount for mount in facts.mounts if mount.mount_point != "/")
    )

    assert not reachable(facts, bind)
    assert [mount.id for mount in mounts_on(facts, ["/dev/sda1"])][-1] == 20
    # Where there is no other, it is still told: it cannot be frozen, but it is there.
    assert [mount.id for mount in mounts_on(only_bind, ["/dev/sda1"])] == [50]


def test_a_mount_hidden_by_one_over_its_parent_folder_is_not_reachable() -> None:
    facts = host("loops")
    cover = attrs.evolve(
        facts.mounts[-1], id=90, parent=20, number="0:99", mount_point="/mnt", source="tmpfs"
    )
    covered = attrs.evolve(facts, mounts=(*facts.mounts, cover))
    outer = next(mount for mount in facts.mounts if mount.mount_point == "/mnt/outer")

    assert reachable(facts, outer)
    assert not reachable(covered, outer)


def test_without_parents_the_longest_mount_point_counts() -> None:
    """CentOS 5 has no mountinfo."""
    facts = host("loops")
    old = attrs.evolve(
        facts,
        mounts=tuple(
            attrs.evolve(mount, id=number + 1, parent=0)
            for number, mount in enumerate(facts.mounts)
        ),
    )

    assert [m.mount_point for m in mounts_on(old, ["/dev/sda"])] == [
        "/mnt/inner",
        "/mnt/outer",
        "/",
    ]


def mount_at(name: str, mount_point: str) -> MountFacts:
    return next(mount for mount in host(name).mounts if mount.mount_point == mount_point)


def test_a_file_system_on_a_partition_concerns_no_more_of_the_disk() -> None:
    """What cannot be frozen on an EFI partition is no reason to compare the whole disk."""
    ranges = ranges_on(host("plain"), mount_at("plain", "/boot/efi"), "/dev/vda")

    assert list(ranges) == [(48 << 30, 106 << 20)]


def test_a_file_system_on_volumes_or_on_the_disk_itself_concerns_all_of_it() -> None:
    whole = ExtentMap.whole(40 << 30)

    assert ranges_on(host("lvm"), mount_at("lvm", "/"), "/dev/sda") == whole
    assert ranges_on(host("loops"), mount_at("loops", "/mnt/inner"), "/dev/sda") == whole
    assert ranges_on(host("loops"), mount_at("loops", "/data"), "/dev/sdb") == whole


def test_a_file_system_elsewhere_concerns_nothing_of_the_disk() -> None:
    assert not ranges_on(host("lvm"), mount_at("lvm", "/"), "/dev/sdb")
    assert not ranges_on(host("plain"), mount_at("plain", "/sys"), "/dev/vda")


def test_mounts_of_a_disk_that_is_not_there_is_an_error() -> None:
    with pytest.raises(NotFoundError):
        mounts_on(host("plain"), ["/dev/sdz"])
    with pytest.raises(NotFoundError):
        swaps_on(host("plain"), ["/dev/sdz"])


def test_swap_partitions_files_and_volumes_are_found() -> None:
    assert swaps_on(host("plain"), ["/dev/vda"]) == ("/dev/vda2", "/swapfile")
    assert swaps_on(host("plain"), ["/dev/vdb"]) == ()
    assert swaps_on(host("lvm"), ["/dev/sda"]) == ("/dev/dm-1",)


@pytest.mark.parametrize("fs_type", ["vfat", "exfat", "fuseblk", "fuse.sshfs", "zfs", "ntfs3"])
def test_what_cannot_be_frozen_has_a_reason(fs_type: str) -> None:
    assert unfreezable(fs_type)


@pytest.mark.parametrize("fs_type", ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "new-one"])
def test_what_is_not_known_is_tried(fs_type: str) -> None:
    assert unfreezable(fs_type) is None


def test_a_hundred_snaps_take_no_time_worth_speaking_of() -> None:
    """The graph is made once: hosts with hundreds of loop devices exist."""
    facts = host("plain")
    loops = tuple(
        attrs.evolve(facts.disks[3], name=f"loop{n}", path=f"/dev/loop{n}", number=f"7:{n}")
        for n in range(300)
    )
    mounts = tuple(
        attrs.evolve(
            facts.mounts[5],
            id=1000 + n,
            number=f"7:{n}",
            mount_point=f"/snap/a/{n}",
            parent=29,
            fs_type="ext4",
        )
        for n in range(300)
    )
    large = attrs.evolve(
        facts, disks=(*facts.disks[:3], *loops), mounts=(*facts.mounts[:5], *mounts)
    )

    assert len(mounts_on(large, ["/dev/vda"])) == 301
