"""What speaks against overwriting a disk, on captured hosts."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from cvm_migrate.disk import Place, check_target, refuse_unsafe
from cvm_migrate.errors import UnsafeTargetError
from cvm_migrate.model import Finding, HostFacts, OpenDisk, Severity
from rig.hosts import host

OTHER = "11111111-2222-3333-4444-555555555555"
GIB = 1 << 30


def blockers(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.title for finding in findings if finding.severity is Severity.BLOCKER]


def elsewhere(name: str = "plain", **changes: Any) -> HostFacts:
    """A host with another boot id."""
    return host(name, boot_id=OTHER, hostname="db-1", **changes)


def test_a_disk_that_nobody_uses_may_be_overwritten() -> None:
    assert check_target(Place(host("lvm"), "/dev/sdc")) == ()
    assert check_target(Place(host("lvm"), "/dev/sdc"), Place(host("lvm"), "/dev/sdb")) == ()
    assert check_target(Place(host("md"), "/dev/sdc"), Place(elsewhere("md"), "/dev/sda")) == ()


def test_a_mounted_disk_is_refused_with_what_to_unmount() -> None:
    findings = check_target(Place(host("plain"), "/dev/vdb"))

    assert blockers(findings) == ["The target /dev/vdb is mounted at /data"]
    assert findings[0].remedy.startswith("Unmount it (umount /data)")


def test_a_disk_with_a_mounted_partition_is_refused() -> None:
    assert "The target /dev/vda is mounted at /" in blockers(
        check_target(Place(host("plain"), "/dev/vda"))
    )


def test_a_disk_under_volumes_that_are_mounted_is_refused_for_both() -> None:
    assert blockers(check_target(Place(host("lvm"), "/dev/sdb"))) == [
        "The target /dev/sdb is mounted at /home",
        "The target /dev/sdb is held by /dev/dm-2",
    ]


def test_a_member_of_an_array_is_refused_though_nothing_of_it_is_mounted() -> None:
    """In the order in which they can be released."""
    facts = attrs.evolve(host("md"), mounts=())

    assert blockers(check_target(Place(facts, "/dev/sdb"))) == [
        "The target /dev/sdb is held by /dev/dm-0",
        "The target /dev/sdb is held by /dev/md1",
        "The target /dev/sdb is held by /dev/md0",
    ]


def test_every_disk_of_a_mounted_btrfs_is_refused() -> None:
    for path in ("/dev/vdb", "/dev/vdc"):
        assert blockers(check_target(Place(host("btrfs"), path))) == [
            f"The target {path} is mounted at /pool"
        ]


def test_swap_is_refused() -> None:
    facts = attrs.evolve(host("plain"), mounts=())

    assert blockers(check_target(Place(facts, "/dev/vda"))) == [
        "The target /dev/vda is in use as swap"
    ]


def test_a_read_only_disk_is_refused() -> None:
    assert "The target /dev/sr0 is read-only" in blockers(
        check_target(Place(host("plain"), "/dev/sr0"))
    )


@pytest.mark.parametrize(
    ("size", "refused"), [(59 * GIB, True), (60 * GIB - 1, True), (60 * GIB, False)]
)
def test_a_target_that_is_a_byte_too_small_is_refused(size: int, *, refused: bool) -> None:
    findings = check_target(
        Place(host("lvm"), "/dev/sdc", size=size), Place(elsewhere("lvm"), "/dev/sdb")
    )

    assert (blockers(findings) == ["The target /dev/sdc is smaller than the source"]) is refused
    assert refused or findings == ()


def test_a_larger_target_is_only_mentioned() -> None:
    findings = check_target(Place(host("lvm"), "/dev/sdc"), Place(elsewhere("lvm"), "/dev/sda"))

    assert [finding.severity for finding in findings] == [Severity.INFO]


def test_a_smaller_image_file_is_no_fault_as_it_grows() -> None:
    source = Place(elsewhere("lvm"), "/dev/sdb")

    assert check_target(Place(host("lvm"), "/srv/image.raw"), source) == ()
    assert check_target(Place(host("lvm"), "/srv/image.raw", 4096, "file:1:2"), source) == ()


def test_the_source_itself_is_refused_by_whatever_name() -> None:
    facts = host("lvm")
    by_number = OpenDisk(
        handle=1,
        path="/dev/disk/by-id/wwn-0x5000",
        kind="block",
        size=60 * GIB,
        logical_block_size=512,
        physical_block_size=512,
        identity="block:8:32",
        direct=True,
    )
    source = Place(facts, "/dev/sdc")

    for target in (source, Place(facts, "sdc"), Place.of(facts, by_number)):
        assert "is the source itself" in blockers(check_target(target, source))[0]
    # On another machine, the same name is another disk.
    assert check_target(Place(elsewhere("lvm"), "/dev/sdc"), source) == ()


def test_a_host_without_boot_id_is_never_taken_for_another_one() -> None:
    facts = host("lvm", boot_id="")

    assert check_target(Place(facts, "/dev/sdc"), Place(facts, "/dev/sdc")) == ()


def test_the_disk_of_a_source_partition_is_the_source() -> None:
    facts = attrs.evolve(host("md"), mounts=())

    found = blockers(check_target(Place(facts, "/dev/sda"), Place(facts, "/dev/sda1")))

    assert "The target /dev/sda is the source itself" in found


def test_a_second_loop_device_over_the_same_file_is_the_source() -> None:
    facts = host("loops")

    found = check_target(Place(facts, "/dev/loop3"), Place(facts, "/dev/loop0"))

    assert blockers(found)[0] == "The target /dev/loop3 is the source itself"
    assert "/srv/images/outer.img" in found[0].evidence


def test_the_file_behind_a_loop_device_is_the_source_and_the_other_way_round() -> None:
    facts = host("loops")
    file, device = Place(facts, "/srv/images/./outer.img"), Place(facts, "/dev/loop0")

    assert blockers(check_target(file, device)) == [f"The target {file.path} is the source itself"]
    assert "The target /dev/loop0 is the source itself" in blockers(check_target(device, file))


def test_one_image_file_cannot_be_source_and_target() -> None:
    facts = host("loops")

    assert blockers(check_target(Place(facts, "/a/x.img"), Place(facts, "/a/x.img")))
    assert blockers(
        check_target(
            Place(facts, "/a/x.img", 1, "file:1:7"), Place(facts, "/b/link", 1, "file:1:7")
        )
    )
    assert check_target(Place(facts, "/a/x.img"), Place(facts, "/a/y.img")) == ()


def test_an_image_on_the_source_s_own_file_system_is_refused() -> None:
    """Each byte written there would be a new byte to copy."""
    facts = host("loops")

    found = blockers(check_target(Place(facts, "/srv/images/new.img"), Place(facts, "/dev/sda")))

    assert found == ["The target /srv/images/new.img lies on the source /dev/sda"]
    # A file in the file system of a file on it lies there too.
    assert blockers(check_target(Place(facts, "/mnt/inner/new.img"), Place(facts, "/dev/sda")))
    assert check_target(Place(facts, "/data/new.img"), Place(facts, "/dev/sda")) == ()


def test_a_loop_device_whose_file_lies_on_the_source_is_refused() -> None:
    facts = host("loops")

    found = blockers(
        check_target(Place(facts, "/dev/loop3", size=40 * GIB), Place(facts, "/dev/sda"))
    )

    assert found == ["The target /dev/loop3 lies on the source /dev/sda"]


def test_a_target_under_the_source_is_refused() -> None:
    facts = attrs.evolve(host("lvm"), mounts=(), swaps=())

    found = blockers(check_target(Place(facts, "/dev/sda"), Place(facts, "/dev/dm-0")))

    assert "The source /dev/dm-0 lies on the target /dev/sda" in found


def test_two_loop_devices_over_files_of_one_disk_are_no_fault() -> None:
    """As in every test on one machine: neither lies on the other."""
    facts = host("loops")
    first = attrs.evolve(facts.disks[2], name="loop8", path="/dev/loop8", number="7:8")
    disks = (
        *facts.disks,
        attrs.evolve(first, backing_file="/tmp/source.img"),
        attrs.evolve(
            first, name="loop9", path="/dev/loop9", number="7:9", backing_file="/tmp/target.img"
        ),
    )
    with_two = attrs.evolve(facts, disks=disks)

    assert check_target(Place(with_two, "/dev/loop9"), Place(with_two, "/dev/loop8")) == ()


def test_a_disk_with_the_source_s_serial_number_on_another_host_is_a_warning() -> None:
    """A disk of a SAN may be attached to both; virtual machines' serial numbers may also just be alike."""
    facts = attrs.evolve(host("plain"), mounts=())

    found = check_target(Place(facts, "/dev/vdb"), Place(elsewhere(), "/dev/vdb"))

    assert [finding.severity for finding in found] == [Severity.WARNING]
    assert "'data-1'" in found[0].evidence


def test_another_logical_block_size_is_a_warning() -> None:
    there = elsewhere("lvm")
    coarse = attrs.evolve(
        there,
        disks=tuple(attrs.evolve(disk, logical_block_size=4096) for disk in there.disks),
    )

    found = check_target(Place(coarse, "/dev/sdc"), Place(host("lvm"), "/dev/sdb"))

    assert [finding.severity for finding in found] == [Severity.WARNING]


def test_blockers_come_first_and_are_raised_together() -> None:
    found = check_target(Place(host("lvm"), "/dev/sdb"), Place(elsewhere("lvm"), "/dev/sda"))

    assert [finding.severity for finding in found] == [
        Severity.BLOCKER,
        Severity.BLOCKER,
        Severity.INFO,
    ]
    with pytest.raises(
        UnsafeTargetError, match=r"mounted at /home.*; .*held by.*Unmount it"
    ) as caught:
        refuse_unsafe(found, "/dev/sdb")
    assert caught.value.device == "/dev/sdb"


def test_without_a_blocker_nothing_is_raised() -> None:
    refuse_unsafe([Finding(Severity.WARNING, "odd"), Finding(Severity.INFO, "good")], "/dev/sdb")


def test_a_finding_is_one_line() -> None:
    finding = Finding(Severity.WARNING, "No tracker", "ebpf: EPERM", "Run as root")

    assert str(finding) == "warning: No tracker (ebpf: EPERM). Run as root"
    assert str(Finding(Severity.INFO, "All well")) == "info: All well"
