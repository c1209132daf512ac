"""Facts of a host from what an agent says."""

from __future__ import annotations

from typing import Any

import pytest

from cvm_migrate.model import HostFacts
from rig.hosts import COMMON, host, wire


def test_everything_that_was_said_is_there() -> None:
    facts = host("lvm")

    assert facts.hostname == "web-1"
    assert (facts.memory_total, facts.memory_available) == (1 << 32, 1 << 31)
    assert facts.disks[0].partitions[1].holders == ("dm-0", "dm-1")
    assert facts.disks[3].slaves == ("sda2",)
    assert facts.disks[3].aliases == ("/dev/mapper/centos-root",)
    assert facts.mounts[3].source == "/dev/mapper/centos-root"
    assert facts.tracking.rungs == {"ebpf": None}
    assert host("btrfs").mounts[4].devices == ("254:16", "254:32")


@pytest.mark.parametrize("field", sorted(COMMON))
def test_a_field_that_was_promised_and_is_missing_is_an_error(field: str) -> None:
    said = wire("plain")
    del said[field]

    with pytest.raises(KeyError, match=field):
        HostFacts.from_wire(said)


@pytest.mark.parametrize(("part", "field"), [("disks", "size"), ("mounts", "fs_type")])
def test_a_field_missing_deeper_inside_is_an_error_too(part: str, field: str) -> None:
    said: dict[str, Any] = wire("plain")
    del said[part][0][field]

    with pytest.raises(KeyError, match=field):
        HostFacts.from_wire(said)


def test_what_a_newer_agent_tells_beside_it_is_passed_over() -> None:
    said = wire("plain", colour="blue")
    said["disks"][0]["wwn"] = "0x5000"
    said["disks"][0]["partitions"][0]["label"] = "root"
    said["mounts"][0]["propagation"] = "shared"

    assert HostFacts.from_wire(said) == host("plain")


def test_an_older_agent_tells_no_aliases_no_devices_and_no_usage() -> None:
    said = wire("lvm")
    for disk in said["disks"]:
        disk.pop("aliases", None)
    facts = HostFacts.from_wire(said)

    assert facts.disks[3].aliases == ()
    assert (facts.mounts[0].size, facts.mounts[0].used) == (None, None)


def test_what_a_file_system_says_of_itself_is_there() -> None:
    said = wire("plain")
    said["mounts"][3].update(size=300, used=200)

    mount = HostFacts.from_wire(said).mounts[3]

    assert (mount.size, mount.used) == (300, 200)


def test_facts_cannot_be_changed() -> None:
    facts = host("plain")

    with pytest.raises(AttributeError):
        facts.disks = ()  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
