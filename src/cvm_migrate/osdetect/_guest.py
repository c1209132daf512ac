"""Which operating system a host runs, and on what, from what the host says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from cvm_migrate.model import HostFacts

_FAMILIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("debian", "ubuntu", "linuxmint", "kali", "raspbian", "deepin"), "debian"),
        **dict.fromkeys(
            (
                "almalinux",
                "alinux",
                "amzn",
                "anolis",
                "centos",
                "eurolinux",
                "fedora",
                "ol",
                "opencloudos",
                "openeuler",
                "rhel",
                "rocky",
                "scientific",
                "tencentos",
            ),
            "rhel",
        ),
        **dict.fromkeys(("opensuse", "opensuse-leap", "opensuse-tumbleweed", "sles"), "suse"),
        "arch": "arch",
        "alpine": "alpine",
        "gentoo": "gentoo",
        "windows": "windows",
    }
)

# os-release IDs that differ from release to release, or from what everyone calls the distribution.
_IDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "sled": "sles",
        "sles_sap": "sles",
        "opensuse-leap": "opensuse",
        "opensuse-tumbleweed": "opensuse",
        "tencent": "tencentos",
        "tlinux": "tencentos",
        "redhat": "rhel",
    }
)

_PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {"debian": "deb", "rhel": "rpm", "suse": "rpm", "arch": "pacman", "alpine": "apk"}
)

# First lines of /etc/redhat-release and its like, and of Ubuntu's and SUSE's.
_LEGACY: Final = (
    ("centos", re.compile(r"CentOS\b.* release (\d+(?:\.\d+)*)")),
    ("rhel", re.compile(r"Red Hat Enterprise Linux\b.* release (\d+(?:\.\d+)*)")),
    ("ol", re.compile(r"(?:Oracle|Enterprise) Linux\b.* release (\d+(?:\.\d+)*)")),
    ("scientific", re.compile(r"Scientific Linux\b.* release (\d+(?:\.\d+)*)")),
    ("rocky", re.compile(r"Rocky Linux\b.* release (\d+(?:\.\d+)*)")),
    ("almalinux", re.compile(r"AlmaLinux\b.* release (\d+(?:\.\d+)*)")),
    ("fedora", re.compile(r"Fedora\b.* release (\d+)")),
    ("amzn", re.compile(r"Amazon Linux\b.* release (\d+(?:\.\d+)*)")),
    ("tencentos", re.compile(r"(?:TencentOS Server|tlinux)\b.*?(\d+(?:\.\d+)*)", re.IGNORECASE)),
    ("sles", re.compile(r"SUSE Linux Enterprise \w+ (\d+(?:[. ]SP\d+|\.\d+)?)")),
    ("opensuse", re.compile(r"openSUSE (?:Leap )?(\d+(?:\.\d+)?)")),
    ("ubuntu", re.compile(r"Ubuntu (\d+\.\d+(?:\.\d+)?)")),
    ("debian", re.compile(r"(?:Debian (?:GNU/Linux )?)?(\d+(?:\.\d+)*)$")),
    ("debian", re.compile(r"(?:Debian (?:GNU/Linux )?)?()[a-z]+/sid$")),
)

_ARCHITECTURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "amd64": "x86_64",
        "arm64": "aarch64",
        **dict.fromkeys(("i386", "i486", "i586", "i686", "x86"), "i386"),
    }
)

# Azure's tag stands on every one of its machines and on no other of Hyper-V (cloud-init reads it too).
_AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"


@attrs.frozen(kw_only=True)
class GuestInfo:
    """What a host runs. What is not known is ``unknown``, an empty text or ``None``; that is no error.

    Attributes:
        type: ``linux``, ``windows`` or ``unknown``.
        family: ``debian``, ``rhel``, ``suse``, ``arch``, ``alpine``, ``gentoo``, ``windows`` or ``unknown``.
        distribution: As in os-release's ``ID``: ``centos``, ``ubuntu``, ``sles``, ...; ``unknown``.
        version: As precise as it is known, such as ``7.9.2009``.
        major_version: Its first number.
        minor_version: Its second number; of SUSE, the service pack.
        product_name: What the system calls itself.
        architecture: ``x86_64``, ``i386``, ``aarch64``, or what the kernel says.
        kernel: Its release.
        firmware: ``bios``, ``uefi`` or ``unknown``: how it was booted.
        package_format: ``deb``, ``rpm``, ``pacman``, ``apk`` or ``unknown``.
        platform: What it runs on: ``aws``, ``azure``, ``google``, ``alibaba``, ``huawei``, ``tencent``, another
            cloud, a hypervisor (``kvm``, ``vmware``, ``hyperv``, ``xen``, ``virtualbox``), ``physical`` or
            ``unknown``.
        evidence: What said so.
    """

    type: str
    family: str
    distribution: str
    version: str
    major_version: int | None
    minor_version: int | None
    product_name: str
    architecture: str
    kernel: str
    firmware: str
    package_format: str
    platform: str
    evidence: tuple[str, ...]


def inspect_host(facts: HostFacts) -> GuestInfo:
    """Return what a host runs, by what its agent found.

    Args:
        facts: Of the host; nothing is asked or read beside it.
    """
    evidence: list[str] = []
    distribution, version, product, like = _by_os_release(facts.os_release or {}, evidence)
    legacy = _by_legacy(facts.legacy_release)
    if legacy is not None:
        found, precise = legacy
        if distribution == "unknown":
            distribution, version = found, precise
            product = facts.legacy_release or ""
            evidence.append(f"release file: {product}")
        elif found == distribution and precise.startswith(f"{version}."):
            # CentOS 7 says only 7 in os-release; the older file has the rest.
            version = precise
            evidence.append(f"release file: {facts.legacy_release}")
    if distribution == "unknown" and facts.system.lower() == "windows":
        distribution, version = "windows", facts.kernel
        evidence.append(f"system: {facts.system}")
    family = _family(distribution, like)
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return GuestInfo(
        type=facts.system.lower() if facts.system.lower() in {"linux", "windows"} else "unknown",
        family=family,
        distribution=distribution,
        version=version,
        major_version=numbers[0] if numbers else None,
        minor_version=numbers[1] if len(numbers) > 1 else None,
        product_name=product,
        architecture=_ARCHITECTURES.get(facts.machine.lower(), facts.machine) or "unknown",
        kernel=facts.kernel,
        firmware=facts.firmware if facts.firmware in {"bios", "uefi"} else "unknown",
        package_format=_PACKAGES.get(family, "unknown"),
        platform=platform_of(facts.dmi, evidence),
        evidence=tuple(evidence),
    )


def platform_of(dmi: Mapping[str, str], evidence: list[str] | None = None) -> str:
    """Return what a machine is, by its DMI texts (files of ``/sys/class/dmi/id``).

    Args:
        dmi: Texts by name.
        evidence: Gets what decided.
    """
    text = {name: value.strip().lower() for name, value in dmi.items()}
    vendor, product = text.get("sys_vendor", ""), text.get("product_name", "")
    tag, bios = text.get("chassis_asset_tag", ""), text.get("bios_version", "")
    rules = (
        ("aws", "amazon" in vendor or "amazon" in bios or "amazon" in text.get("bios_vendor", "")),
        ("azure", tag == _AZURE_TAG),
        ("google", "google" in vendor or product == "google compute engine"),
        ("alibaba", "alibaba" in vendor),
        ("huawei", "huawei cloud" in vendor or tag == "huaweicloud"),
        ("tencent", "tencent" in vendor),
        ("oracle", tag == "oraclecloud.com"),
        ("digitalocean", "digitalocean" in vendor),
        ("openstack", "openstack" in vendor or product.startswith("openstack")),
        ("vmware", "vmware" in vendor),
        ("virtualbox", "innotek" in vendor or product == "virtualbox"),
        ("hyperv", "microsoft" in vendor and product == "virtual machine"),
        ("xen", "xen" in vendor),
        ("kvm", vendor in {"qemu", "red hat"} or product in {"kvm", "standard pc"}),
    )
    found = next((name for name, holds in rules if holds), None)
    if found is None:
        found = "physical" if vendor and product else "unknown"
    if evidence is not None and text:
        seen = [dmi.get(name, "") for name in ("sys_vendor", "product_name")]
        evidence.append(f"DMI: {' '.join(part for part in seen if part) or tag or bios}")
    return found


def _by_os_release(
    fields: Mapping[str, str], evidence: list[str]
) -> tuple[str, str, str, tuple[str, ...]]:
    identifier = fields.get("ID", "").lower()
    if not identifier:
        return "unknown", "", "", ()
    evidence.append(f"os-release: ID={identifier} VERSION_ID={fields.get('VERSION_ID', '')}")
    return (
        _IDS.get(identifier, identifier),
        fields.get("VERSION_ID", ""),
        fields.get("PRETTY_NAME") or fields.get("NAME", identifier),
        tuple(fields.get("ID_LIKE", "").lower().split()),
    )


def _by_legacy(text: str | None) -> tuple[str, str] | None:
    for name, pattern in _LEGACY:
        found = pattern.match(text.strip() if text else "")
        if found is not None:
            return name, re.sub(r"[. ]SP", ".", found[1])
    return None


def _family(distribution: str, like: tuple[str, ...]) -> str:
    for name in (distribution, *like):
        family = _FAMILIES.get(_IDS.get(name, name))
        if family is not None:
            return family
    return "unknown"
