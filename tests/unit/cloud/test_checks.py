"""What speaks against a source on an instance, told from the API's facts alone."""

from __future__ import annotations

from typing import Any

import pytest

from cvm_migrate.cloud import InstanceFacts, TargetWish, check_fit
from cvm_migrate.cloud._checks import check_facts
from cvm_migrate.model import Severity


def instance(*, region: str = "ap-guangzhou", **changes: Any) -> InstanceFacts:
    said = {
        "InstanceId": "ins-00000001",
        "InstanceState": "RUNNING",
        "InstanceType": "S5.MEDIUM4",
        "ImageId": "img-abc",
        "OsName": "CentOS 7.5 64bit",
        "SystemDisk": {"DiskId": "disk-1", "DiskSize": 50, "DiskType": "CLOUD_PREMIUM"},
    }
    return InstanceFacts.from_wire({**said, **changes}, region)


def test_a_source_that_boots_by_uefi_is_a_warning_that_names_the_image() -> None:
    (warning,) = check_fit(instance(), TargetWish(firmware="uefi"))

    assert warning.severity is Severity.WARNING
    assert "boots by UEFI" in warning.title
    assert warning.evidence == "the image is img-abc, CentOS 7.5 64bit"
    assert "UEFI image" in warning.remedy
    assert "boot loader" in warning.remedy


def test_a_source_that_boots_by_bios_is_told_when_the_boot_modes_are_compared() -> None:
    (told,) = check_fit(instance(), TargetWish(firmware="bios"))

    assert told.severity is Severity.INFO
    assert "prepare() compares" in told.evidence


def test_a_source_whose_boot_mode_is_not_known_yet_is_nothing_to_tell_of() -> None:
    assert check_fit(instance(), TargetWish(firmware=None)) == ()


@pytest.mark.parametrize(
    ("region", "changes", "severity", "title", "remedy"),
    [
        ("xx-nowhere", {}, Severity.WARNING, "not documented for xx-nowhere", "another region"),
        (
            "ap-guangzhou",
            {"LatestOperation": "ResizeInstanceDisks", "LatestOperationState": "OPERATING"},
            Severity.WARNING,
            "is being worked on",
            "Wait",
        ),
        (
            "ap-guangzhou",
            {"PublicIpAddresses": None, "PrivateIpAddresses": None},
            Severity.BLOCKER,
            "has no address",
            "Bind a public address",
        ),
    ],
)
def test_what_the_api_says_of_an_instance_becomes_a_finding(
    region: str, changes: dict[str, Any], severity: Severity, title: str, remedy: str
) -> None:
    usual: dict[str, Any] = {
        "PublicIpAddresses": ["203.0.113.9"],
        "PrivateIpAddresses": ["10.0.0.9"],
    }

    (found,) = [
        one
        for one in check_facts(instance(region=region, **{**usual, **changes}), TargetWish())
        if title in one.title
    ]

    assert found.severity is severity
    assert remedy in found.remedy
    assert not [one for one in check_facts(instance(**usual), TargetWish()) if title in one.title]


def test_the_boot_mode_does_not_hide_what_else_does_not_fit() -> None:
    wish = TargetWish(firmware="uefi", machine="aarch64", disk_sizes=[51 << 30, 1])

    severities = [finding.severity for finding in check_fit(instance(), wish)]

    assert severities.count(Severity.WARNING) == 1
    assert severities.count(Severity.BLOCKER) == 3
