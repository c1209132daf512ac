"""What a host runs, by captured texts."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvm_migrate.osdetect import inspect_host, platform_of, support_for
from rig.hosts import host

RELEASES = Path(__file__).parent.parent.parent / "data" / "os-release"


def os_release(name: str) -> dict[str, str]:
    text = (RELEASES / name).read_text(encoding="utf-8")
    return dict(part.split("=", 1) for part in shlex.split(text))


@pytest.mark.parametrize(
    ("name", "family", "distribution", "major", "minor", "packages"),
    [
        ("debian-7", "debian", "debian", 7, None, "deb"),
        ("debian-12", "debian", "debian", 12, None, "deb"),
        ("debian-sid", "debian", "debian", None, None, "deb"),
        ("ubuntu-12.04", "debian", "ubuntu", 12, 4, "deb"),
        ("ubuntu-16.04", "debian", "ubuntu", 16, 4, "deb"),
        ("ubuntu-24.04", "debian", "ubuntu", 24, 4, "deb"),
        ("centos-7", "rhel", "centos", 7, None, "rpm"),
        ("rhel-8", "rhel", "rhel", 8, 10, "rpm"),
        ("rocky-9", "rhel", "rocky", 9, 4, "rpm"),
        ("sles-11.4", "suse", "sles", 11, 4, "rpm"),
        ("sles-12.1", "suse", "sles", 12, 1, "rpm"),
        ("opensuse-13.1", "suse", "opensuse", 13, 1, "rpm"),
        ("opensuse-leap-15.6", "suse", "opensuse", 15, 6, "rpm"),
        ("amzn-2", "rhel", "amzn", 2, None, "rpm"),
        ("tencentos-3", "rhel", "tencentos", 3, 1, "rpm"),
        ("arch", "arch", "arch", None, None, "pacman"),
        ("alpine-3.20", "alpine", "alpine", 3, 20, "apk"),
    ],
)
def test_a_release_is_known_by_its_os_release(
    name: str,
    *,
    family: str,
    distribution: str,
    major: int | None,
    minor: int | None,
    packages: str,
) -> None:
    release = os_release(name)

    guest = inspect_host(host(os_release=release))

    assert (guest.type, guest.family, guest.distribution) == ("linux", family, distribution)
    assert (guest.major_version, guest.minor_version) == (major, minor)
    assert guest.package_format == packages
    assert guest.product_name == release["PRETTY_NAME"]
    assert guest.evidence[0].startswith(f"os-release: ID={release['ID']}")


@pytest.mark.parametrize(
    ("text", "distribution", "version"),
    [
        ("CentOS release 5.11 (Final)", "centos", "5.11"),
        ("CentOS release 6.10 (Final)", "centos", "6.10"),
        ("Red Hat Enterprise Linux Server release 6.9 (Santiago)", "rhel", "6.9"),
        ("Oracle Linux Server release 6.10", "ol", "6.10"),
        ("Scientific Linux release 6.10 (Carbon)", "scientific", "6.10"),
        ("Amazon Linux AMI release 2018.03", "amzn", "2018.03"),
        ("SUSE Linux Enterprise Server 11 (x86_64)", "sles", "11"),
        ("SUSE Linux Enterprise Server 11 SP4", "sles", "11.4"),
        ("openSUSE 13.1 (x86_64)", "opensuse", "13.1"),
        ("Ubuntu 10.04.4 LTS", "ubuntu", "10.04.4"),
        ("Ubuntu 10.04.4 LTS \\n \\l", "ubuntu", "10.04.4"),
        ("Debian 6.0.10", "debian", "6.0.10"),
        ("Debian squeeze/sid", "debian", ""),
        ("7.11", "debian", "7.11"),
    ],
)
def test_an_old_release_is_known_by_its_own_file(
    text: str, distribution: str, version: str
) -> None:
    guest = inspect_host(host(os_release=None, legacy_release=text))

    assert (guest.distribution, guest.version) == (distribution, version)
    assert guest.product_name == text


def test_the_older_file_says_the_minor_version_that_os_release_leaves_out() -> None:
    centos = inspect_host(
        host(
            os_release=os_release("centos-7"),
            legacy_release="CentOS Linux release 7.5.1804 (Core)",
        )
    )
    debian = inspect_host(host(os_release=os_release("debian-12"), legacy_release="Debian 12.5"))

    assert (centos.version, centos.major_version, centos.minor_version) == ("7.5.1804", 7, 5)
    assert debian.version == "12.5"


def test_the_older_file_does_not_contradict_os_release() -> None:
    """Ubuntu has Debian's file too, and Rocky has one that names another version's digits."""
    ubuntu = inspect_host(
        host(os_release=os_release("ubuntu-16.04"), legacy_release="Debian stretch/sid")
    )
    rocky = inspect_host(
        host(os_release=os_release("rocky-9"), legacy_release="Rocky Linux release 8.9 (x)")
    )

    assert (ubuntu.distribution, ubuntu.version) == ("ubuntu", "16.04")
    assert rocky.version == "9.4"


def test_a_distribution_nobody_knows_belongs_to_the_family_it_is_like() -> None:
    guest = inspect_host(
        host(os_release={"ID": "homemade", "ID_LIKE": "other rhel fedora", "VERSION_ID": "3"})
    )

    assert (guest.distribution, guest.family, guest.package_format) == ("homemade", "rhel", "rpm")


def test_nothing_known_is_no_error() -> None:
    guest = inspect_host(host(os_release=None, system="Plan9", machine="", firmware="?"))

    assert (guest.type, guest.family, guest.distribution) == ("unknown", "unknown", "unknown")
    assert (guest.version, guest.major_version) == ("", None)
    assert (guest.architecture, guest.firmware, guest.platform) == ("unknown",) * 3
    assert guest.evidence == ()
    assert support_for(guest) is None


def test_windows_is_known_by_its_name() -> None:
    guest = inspect_host(host(os_release=None, system="Windows", kernel="10.0.14393"))

    assert (guest.type, guest.family, guest.distribution) == ("windows",) * 3
    assert guest.version == "10.0.14393"


@pytest.mark.parametrize(
    ("machine", "architecture"),
    [
        ("x86_64", "x86_64"),
        ("AMD64", "x86_64"),
        ("i686", "i386"),
        ("aarch64", "aarch64"),
        ("s390x", "s390x"),
    ],
)
def test_architectures_have_one_name_each(machine: str, architecture: str) -> None:
    assert inspect_host(host(machine=machine)).architecture == architecture


@pytest.mark.parametrize(
    ("dmi", "platform"),
    [
        ({"sys_vendor": "Amazon EC2", "product_name": "t3.micro"}, "aws"),
        ({"sys_vendor": "Xen", "product_name": "HVM domU", "bios_version": "4.11.amazon"}, "aws"),
        ({"sys_vendor": "Xen", "product_name": "HVM domU", "bios_version": "4.11"}, "xen"),
        (
            {
                "sys_vendor": "Microsoft Corporation",
                "product_name": "Virtual Machine",
                "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
            },
            "azure",
        ),
        ({"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}, "hyperv"),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, "google"),
        ({"sys_vendor": "Alibaba Cloud", "product_name": "Alibaba Cloud ECS"}, "alibaba"),
        ({"sys_vendor": "Huawei Cloud", "product_name": "OpenStack Nova"}, "huawei"),
        (
            {
                "sys_vendor": "OpenStack Foundation",
                "product_name": "OpenStack Nova",
                "chassis_asset_tag": "HUAWEICLOUD",
            },
            "huawei",
        ),
        ({"sys_vendor": "OpenStack Foundation", "product_name": "OpenStack Nova"}, "openstack"),
        ({"sys_vendor": "Tencent Cloud", "product_name": "CVM"}, "tencent"),
        ({"sys_vendor": "VMware, Inc.", "product_name": "VMware Virtual Platform"}, "vmware"),
        ({"sys_vendor": "QEMU", "product_name": "Standard PC (Q35 + ICH9, 2009)"}, "kvm"),
        ({"sys_vendor": "innotek GmbH", "product_name": "VirtualBox"}, "virtualbox"),
        ({"sys_vendor": "Dell Inc.", "product_name": "PowerEdge R740"}, "physical"),
        ({"sys_vendor": ""}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_platforms_are_known_by_dmi(dmi: dict[str, str], platform: str) -> None:
    assert platform_of(dmi) == platform
    assert inspect_host(host(dmi=dmi)).platform == platform


@given(
    st.none()
    | st.dictionaries(st.sampled_from(["ID", "VERSION_ID", "NAME", "ID_LIKE"]), st.text()),
    st.none() | st.text(),
    st.dictionaries(
        st.sampled_from(["sys_vendor", "product_name", "chassis_asset_tag"]), st.text()
    ),
)
def test_any_texts_give_a_guest(
    release: dict[str, str] | None, legacy: str | None, dmi: dict[str, str]
) -> None:
    """Whatever stands in these files: evidence in, a value out."""
    guest = inspect_host(host(os_release=release, legacy_release=legacy, dmi=dmi))

    assert guest.distribution
    support_for(guest)
