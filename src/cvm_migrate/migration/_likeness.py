"""Whether what runs on the source can run on the target: what one machine says of itself, beside the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cvm_migrate.model import Finding, HostFacts, Severity

# Names of one thing, as uname -m has them; what is not here is only like itself.
_PROCESSORS: Final[Mapping[str, str]] = {
    "amd64": "x86_64",
    "i386": "i686",
    "i486": "i686",
    "i586": "i686",
    "arm64": "aarch64",
}
# Processors that run what others do, for sure or perhaps: the source's, then the target's.
_RUNS: Final = frozenset({("i686", "x86_64")})
_MAY_RUN: Final = frozenset({("x86_64", "i686")})


def unlike(source: HostFacts, target: HostFacts) -> tuple[Finding, ...]:
    """Return what keeps the source's system from starting where the target's disks are."""
    return (*_processor(source, target), *_firmware(source, target))


def _processor(source: HostFacts, target: HostFacts) -> list[Finding]:
    pair = _plain(source.machine), _plain(target.machine)
    if pair[0] == pair[1] or pair in _RUNS:
        return []
    evidence = f"uname -m says {source.machine} on {source.hostname}, {target.machine} on {target.hostname}"
    if pair in _MAY_RUN:
        return [
            Finding(
                Severity.WARNING,
                f"the source's system is made for {source.machine}, the target's own for {target.machine}",
                evidence,
                "Make sure that the target's processor has 64 bits (the flag lm in /proc/cpuinfo)",
            )
        ]
    return [
        Finding(
            Severity.BLOCKER,
            f"the source's system is made for {source.machine} and does not run on the target's {target.machine}",
            evidence,
            "Name a target with the source's processor; to keep the disks only, copy them into image files (image:)",
        )
    ]


def _plain(machine: str) -> str:
    return _PROCESSORS.get(machine, machine)


def _firmware(source: HostFacts, target: HostFacts) -> list[Finding]:
    if source.firmware == target.firmware:
        return []
    return [
        Finding(
            Severity.WARNING,
            f"the source starts by {source.firmware}, the target by {target.firmware}",
            f"{source.hostname} and {target.hostname}",
            "Use a target with the source's boot mode, or have the copy's boot loader adapted",
        )
    ]
