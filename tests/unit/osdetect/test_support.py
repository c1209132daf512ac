"""The support matrix: complete, found by what hosts say, and told by its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvm_migrate.osdetect import SUPPORT, Support, inspect_host, support_for, support_table
from rig.hosts import host

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "support-matrix.md"

MISSION = {
    "centos": ["5", "6", "7"],
    "ubuntu": ["10.04", "12.04", "14.04", "16.04", "17.04", "17.10"],
    "debian": ["7", "8", "9"],
    "sles": ["11.4", "12.1", "12.2"],
    "opensuse": ["13.1"],
    "windows": ["2003", "2008", "2012", "2016"],
}


def test_every_release_of_the_mission_has_its_row() -> None:
    rows: dict[str, list[str]] = {}
    for row in SUPPORT:
        if row.mission:
            rows.setdefault(row.distribution, []).append(row.version)

    assert rows == MISSION


def test_no_release_has_two_rows() -> None:
    keys = [(row.distribution, row.version) for row in SUPPORT]

    assert len(set(keys)) == len(keys)


def test_every_row_says_what_was_tried_and_what_is_missing() -> None:
    for row in SUPPORT:
        assert row.tried, row.name
        assert row.rung in {"ebpf", "tracefs", "digests", "none"}, row.name
        if row.support is not Support.EXPECTED:
            assert row.note, row.name
        if row.support is Support.NOT_YET:
            assert row.rung == "none", row.name


@pytest.mark.parametrize(
    ("release", "legacy", "name"),
    [
        ({"ID": "centos", "VERSION_ID": "7"}, "CentOS Linux release 7.5.1804 (Core)", "CentOS 7"),
        (None, "CentOS release 6.10 (Final)", "CentOS 6"),
        (None, "CentOS release 5.11 (Final)", "CentOS 5"),
        (None, "Ubuntu 10.04.4 LTS", "Ubuntu 10.04"),
        ({"ID": "ubuntu", "VERSION_ID": "17.10"}, None, "Ubuntu 17.10"),
        ({"ID": "debian", "VERSION_ID": "9"}, "Debian 9.13", "Debian 9"),
        ({"ID": "sles", "VERSION_ID": "12.2"}, None, "SUSE Linux Enterprise Server 12 SP2"),
        ({"ID": "sles", "VERSION_ID": "15.5"}, None, "SUSE Linux Enterprise Server 15"),
        ({"ID": "opensuse-leap", "VERSION_ID": "15.6"}, None, "openSUSE Leap 15"),
        ({"ID": "rocky", "VERSION_ID": "9.4"}, None, "Rocky Linux 9"),
    ],
)
def test_a_host_finds_its_row(
    release: dict[str, str] | None, legacy: str | None, name: str
) -> None:
    row = support_for(inspect_host(host(os_release=release, legacy_release=legacy)))

    assert row is not None
    assert row.name == name


@pytest.mark.parametrize(
    "release",
    [
        {"ID": "ubuntu", "VERSION_ID": "11.10"},
        {"ID": "debian", "VERSION_ID": "99"},
        {"ID": "debian"},
        {"ID": "homemade", "VERSION_ID": "7"},
    ],
)
def test_a_release_without_a_row_is_no_error(release: dict[str, str]) -> None:
    assert support_for(inspect_host(host(os_release=release))) is None


def test_the_page_holds_the_matrix_as_it_is() -> None:
    """Write it with support_table() when this fails."""
    page = PAGE.read_text(encoding="utf-8")

    assert support_table(mission=True) in page
    assert support_table(mission=False) in page
    assert len(support_table().splitlines()) == len(SUPPORT) + 2
