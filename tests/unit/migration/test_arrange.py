"""Disks of a rescue system are recognised, whatever their names."""

from __future__ import annotations

import pytest

from cvm_migrate.cloud import InstanceDisk
from cvm_migrate.errors import UnsafeTargetError
from cvm_migrate.migration._arrange import Device, arrange
from cvm_migrate.units import GiB

NAMES = ("disk-aaaa1111", "disk-bbbb2222", "disk-cccc3333")


def disks(*sizes: int) -> list[InstanceDisk]:
    return [
        InstanceDisk(name, "data", size * GiB, "CLOUD_SSD", "")
        for name, size in zip(NAMES, sizes, strict=False)
    ]


def devices(*given: tuple[float, str | None]) -> list[Device]:
    return [
        Device(f"/dev/vd{'abc'[number]}", int(size * GiB), serial)
        for number, (size, serial) in enumerate(given)
    ]


@pytest.mark.parametrize(
    ("sizes", "there", "paths"),
    [
        # In order, with and without serial numbers; sizes of the API are rounded up.
        ((50, 100), [(50, None), (100, None)], "a b"),
        ((50, 51), [(49.01, None), (50.5, None)], "a b"),
        ((50, 100), [(50, NAMES[0]), (100, NAMES[1])], "a b"),
        # Named in another order.
        ((50, 50), [(50, NAMES[1]), (50, NAMES[0])], "b a"),
        ((50, 100), [(100, None), (50, None)], "b a"),
        ((50, 100, 20), [(20, None), (50, None), (100, None)], "b c a"),
        # A disk more than is needed.
        ((50,), [(20, NAMES[2]), (50, NAMES[0])], "b"),
        ((50,), [(20, None), (50, None)], "b"),
        # The serial number of something else does not matter.
        ((50, 100), [(50, "QM00001"), (100, None)], "a b"),
    ],
)
def test_each_disk_is_found(
    sizes: tuple[int, ...], there: list[tuple[float, str | None]], paths: str
) -> None:
    assert arrange(disks(*sizes), devices(*there)) == tuple(
        f"/dev/vd{letter}" for letter in paths.split()
    )


@pytest.mark.parametrize(
    ("sizes", "there"),
    [
        # Not there, or another one in its place.
        ((50, 100), [(50, None)]),
        ((50, 100), [(50, NAMES[0]), (100, NAMES[2])]),
        ((50,), []),
        # Two alike, whose names say nothing; sizes of the API are rounded up.
        ((50, 50), [(50, None), (50, None)]),
        ((1, 1), [(0.01, None), (0.5, None)]),
        ((50, 100, 50), [(100, None), (50, None), (50, None)]),
        # One that is not the instance's, and as large.
        ((50,), [(50, None), (50, None)]),
        # Smaller than the API says.
        ((50, 100), [(50, None), (80, None)]),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    sizes: tuple[int, ...], there: list[tuple[float, str | None]]
) -> None:
    with pytest.raises(UnsafeTargetError, match="cannot be told") as caught:
        arrange(disks(*sizes), devices(*there))

    assert "lsblk" in str(caught.value.remedy)
