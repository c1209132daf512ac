"""What speaks against a source on an instance, told from the API's facts alone."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from cvm_migrate.cloud import InstanceFacts, TargetWish, check_fit
from cvm_migrate.model import Severity


def instance(**changes: Any) -> InstanceFacts:
    said = {
        "InstanceId": "ins-00000001",
        "InstanceState": "RUNNING",
        "InstanceType": "S5.MEDIUM4",
        "ImageId": "img-abc",
        "OsName": "CentOS 7.5 64bit",
        "SystemDisk": {"DiskId": "disk-1", "DiskSize": 50, "DiskType": "CLOUD_PREMIUM"},
    }
    return InstanceFacts.from_wire({**said, **changes}, "ap-guangzhou")


def test_a_source_that_boots_by_uefi_is_a_warning_that_names_the_image() -> None:
    (warning,) = check_fit(instance(), TargetWish(firmware="uefi"))

    assert warning.severity is Severity.WARNING
    assert "boots by UEFI" in warning.title
    assert warning.evidence == "the image is img-abc, CentOS 7.5 64bit"
    assert "UEFI image" in warning.remedy
    assert "boot loader" in warning.remedy


@pytest.mark.parametrize("firmware", ["bios", None])
def test_a_source_that_boots_by_bios_or_is_not_known_yet_is_nothing_to_tell_of(
    firmware: Literal["bios"] | None,
) -> None:
    assert check_fit(instance(), TargetWish(firmware=firmware)) == ()


def test_the_boot_mode_does_not_hide_what_else_does_not_fit() -> None:
    wish = TargetWish(firmware="uefi", machine="aarch64", disk_sizes=[51 << 30, 1])

    severities = [finding.severity for finding in check_fit(instance(), wish)]

    assert severities.count(Severity.WARNING) == 1
    assert severities.count(Severity.BLOCKER) == 3
