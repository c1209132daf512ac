"""How much of a disk is in use, on captured hosts whose file systems say what they use."""

from __future__ import annotations

import pytest

from cvm_migrate.disk import Usage, used_on
from cvm_migrate.errors import NotFoundError
from cvm_migrate.model import HostFacts
from cvm_migrate.units import GiB, MiB
from rig.hosts import host, wire

# Of the captured hosts.
_SWAP, _GAP, _EFI = 1073741824, 4194304, 111149056


def told(name: str, used: dict[str, int]) -> HostFacts:
    """A host whose mounts at these points say what they use; an older agent's, where none does."""
    said = wire(name)
    for mount in said["mounts"]:
        if mount["mount_point"] in used:
            mount.update(used=used[mount["mount_point"]], size=100 * GiB)
    return HostFacts.from_wire(said)


PLAIN = {"/": 10 * GiB, "/srv/www": 10 * GiB, "/boot/efi": 6 * MiB, "/data": 20 * GiB}


def test_each_file_system_counts_once_and_what_has_none_is_unknown() -> None:
    """A bind mount is the same one again; swap and the gap for the boot loader have none."""
    facts = told("plain", PLAIN)
    used, unknown = 10 * GiB + 6 * MiB, _SWAP + _GAP

    assert used_on(facts, ["/dev/vda"]) == Usage(used, unknown, used + unknown)


def test_a_disk_that_is_one_file_system_has_nothing_unknown() -> None:
    assert used_on(told("plain", PLAIN), ["/dev/vdb"]) == Usage(20 * GiB, 0, 20 * GiB)
    both = used_on(told("plain", PLAIN), ["/dev/vda", "/dev/vdb"])
    assert both.used == 30 * GiB + 6 * MiB


def test_a_file_system_that_does_not_say_is_unknown() -> None:
    facts = told("plain", {"/": 10 * GiB})

    assert used_on(facts, ["/dev/vda"]) == Usage(
        10 * GiB, _SWAP + _GAP + _EFI, 10 * GiB + _SWAP + _GAP + _EFI
    )
    # All of it is sent, as far as anyone knows.
    assert used_on(facts, ["/dev/vdb"]) == Usage(None, 100 * GiB, 100 * GiB)


def test_an_older_agent_tells_nothing() -> None:
    usage = used_on(host("plain"), ["/dev/vda"])

    assert usage.used is None
    assert usage.to_send == usage.unknown


def test_volumes_count_and_their_partition_does_not() -> None:
    facts = told("lvm", {"/": 5 * GiB, "/boot": 200 * MiB, "/home": 7 * GiB})

    assert used_on(facts, ["/dev/sda"]) == Usage(5 * GiB + 200 * MiB, 4 * GiB, 9 * GiB + 200 * MiB)
    assert used_on(facts, ["/dev/sdb"]) == Usage(7 * GiB, 0, 7 * GiB)


def test_a_mirror_is_sent_as_often_as_it_is_kept_and_used_once() -> None:
    facts = told("md", {"/": 5 * GiB, "/boot": 100 * MiB})
    used = 5 * GiB + 100 * MiB

    assert used_on(facts, ["/dev/sda", "/dev/sdb"]) == Usage(used, 0, 2 * used)


def test_a_file_system_that_reaches_beyond_the_disks_is_unknown() -> None:
    facts = told("md", {"/": 5 * GiB, "/boot": 100 * MiB})

    usage = used_on(facts, ["/dev/sda"])

    assert usage.used is None
    assert usage.unknown == 81 * GiB


def test_subvolumes_are_one_file_system() -> None:
    """One that lies on two disks counts once, if both are asked for."""
    points = ("/", "/home", "/.snapshots", "/var/log")
    facts = told("btrfs", {**dict.fromkeys(points, 9 * GiB), "/pool": 3 * GiB, "/logs": GiB})

    assert used_on(facts, ["/dev/vda"]) == Usage(9 * GiB, 8 * MiB, 9 * GiB + 8 * MiB)
    assert used_on(facts, ["/dev/vdb", "/dev/vdc"]) == Usage(3 * GiB, 0, 6 * GiB)
    assert used_on(facts, ["/dev/vdb"]).used is None
    assert used_on(facts, ["/dev/vdd"]) == Usage(GiB, 0, GiB)


def test_a_file_in_a_file_system_is_in_what_that_uses() -> None:
    """What something else is mounted over says nothing of what lies below it."""
    facts = told(
        "loops", {"/": 9 * GiB, "/bind": 1, "/mnt/outer": 5 * GiB, "/mnt/inner": GiB, "/data": 2}
    )

    assert used_on(facts, ["/dev/sda"]) == Usage(9 * GiB, 0, 9 * GiB)
    assert used_on(facts, ["/dev/loop0"]).used == 5 * GiB


def test_what_would_be_sent_is_at_most_the_disks() -> None:
    usage = used_on(told("plain", {"/data": 200 * GiB}), ["/dev/vdb", "/dev/vdb"])

    assert usage.to_send == 100 * GiB


def test_a_disk_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotFoundError):
        used_on(host("plain"), ["/dev/sdz"])
