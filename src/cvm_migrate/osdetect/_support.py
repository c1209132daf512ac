"""The support matrix as data: what is expected of each release, and what was tried.

Kernels and Pythons are those of the releases themselves; a newer kernel of the same release may offer a better rung.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from cvm_migrate.osdetect._guest import GuestInfo


class Support(enum.Enum):
    """What can be said of a release, honestly.

    Attributes:
        EXPECTED: What it needs exists and is tested with its Python version; not tried on the release itself.
        LIMITED: Something is missing there, or must be installed first; the note says what.
        NOT_YET: A live migration of it is not possible with this version.
    """

    EXPECTED = "expected"
    LIMITED = "limited"
    NOT_YET = "not yet"


@attrs.frozen
class SupportRow:
    """What is expected of one release.

    Attributes:
        distribution: As :attr:`GuestInfo.distribution`.
        version: Its major version, or ``MAJOR.MINOR`` where that names a release.
        name: What people call it.
        kernel: The kernel it came with.
        python: The best Python its own packages offer: what the agent runs with.
        rung: How changes are tracked: ``ebpf``, ``tracefs`` or ``digests``; ``none``: no agent runs.
        support: What can be said of it.
        tried: What was tried.
        note: What is missing, or to be known.
        mission: It is one of the releases this project was made for.
    """

    distribution: str
    version: str
    name: str
    kernel: str
    python: str
    rung: str
    support: Support
    tried: str
    note: str = ""
    mission: bool = False


_OLD_SSL: Final = "Its Python has no TLS 1.2, so it cannot carry data: install a newer Python"
_OLD_PYTHON: Final = "Its Python 2.6 is too old for the agent: install 2.7 or newer beside it"
_AGENT_27: Final = "the agent's tests with Python 2.7.18, on a kernel of today"
_NO_FREEZE: Final = (
    "Its kernel has no freeze (but for XFS) and no tracker: stop the services for the final sync"
)
_NO_INSTANCES: Final = (
    "Its kernel has no tracing instances: digests are compared, also in the final sync"
)
_WINDOWS: Final = "There is no agent for Windows yet"


def _agent(version: str) -> str:
    return f"the agent's tests with Python {version}, on a kernel of today"


SUPPORT: Final[tuple[SupportRow, ...]] = (
    SupportRow(
        "centos", "5", "CentOS 5", "2.6.18", "2.4 (2.6 in EPEL)", "none", Support.NOT_YET, "nothing",
        f"Its Python 2.4 is too old for the agent. {_NO_FREEZE}", mission=True,
    ),
    SupportRow(
        "centos", "6", "CentOS 6", "2.6.32", "2.6", "digests", Support.LIMITED, "nothing",
        f"{_OLD_PYTHON}. {_NO_INSTANCES}", mission=True,
    ),
    SupportRow(
        "centos", "7", "CentOS 7", "3.10", "2.7", "tracefs", Support.EXPECTED, _AGENT_27,
        "From 7.2 on: Python's TLS before that is too old", mission=True,
    ),
    SupportRow(
        "ubuntu", "10.04", "Ubuntu 10.04", "2.6.32", "2.6", "digests", Support.LIMITED, "nothing",
        f"{_OLD_PYTHON}. {_NO_INSTANCES}", mission=True,
    ),
    SupportRow(
        "ubuntu", "12.04", "Ubuntu 12.04", "3.2", "2.7", "digests", Support.LIMITED, _AGENT_27,
        f"{_OLD_SSL}. {_NO_INSTANCES}", mission=True,
    ),
    SupportRow(
        "ubuntu", "14.04", "Ubuntu 14.04", "3.13", "2.7", "tracefs", Support.LIMITED, _AGENT_27,
        _OLD_SSL, mission=True,
    ),
    SupportRow(
        "ubuntu", "16.04", "Ubuntu 16.04", "4.4", "2.7", "tracefs", Support.EXPECTED, _AGENT_27,
        "Its Python 3.5 is not enough: the package python (2.7) must be there", mission=True,
    ),
    SupportRow(
        "ubuntu", "17.04", "Ubuntu 17.04", "4.10", "2.7", "tracefs", Support.EXPECTED, _AGENT_27,
        "Its Python 3.5 is not enough: the package python (2.7) must be there", mission=True,
    ),
    SupportRow(
        "ubuntu", "17.10", "Ubuntu 17.10", "4.13", "3.6", "tracefs", Support.EXPECTED, _agent("3.6.15"),
        mission=True,
    ),
    SupportRow(
        "debian", "7", "Debian 7", "3.2", "2.7", "digests", Support.LIMITED, _AGENT_27,
        f"{_OLD_SSL}. {_NO_INSTANCES}", mission=True,
    ),
    SupportRow(
        "debian", "8", "Debian 8", "3.16", "2.7", "tracefs", Support.EXPECTED, _AGENT_27, mission=True,
    ),
    SupportRow(
        "debian", "9", "Debian 9", "4.9", "2.7", "tracefs", Support.EXPECTED, _AGENT_27, mission=True,
    ),
    SupportRow(
        "sles", "11.4", "SUSE Linux Enterprise Server 11 SP4", "3.0", "2.6", "digests", Support.LIMITED,
        "nothing", f"{_OLD_PYTHON}. {_NO_INSTANCES}", mission=True,
    ),
    SupportRow(
        "sles", "12.1", "SUSE Linux Enterprise Server 12 SP1", "3.12", "2.7", "tracefs", Support.EXPECTED,
        _AGENT_27, mission=True,
    ),
    SupportRow(
        "sles", "12.2", "SUSE Linux Enterprise Server 12 SP2", "4.4", "2.7", "tracefs", Support.EXPECTED,
        _AGENT_27, mission=True,
    ),
    SupportRow(
        "opensuse", "13.1", "openSUSE 13.1", "3.11", "2.7", "tracefs", Support.LIMITED, _AGENT_27, _OLD_SSL,
        mission=True,
    ),
    *(
        SupportRow(
            "windows", version, f"Windows Server {version}", "", "", "none", Support.NOT_YET, "nothing",
            _WINDOWS, mission=int(version) <= 2016,
        )
        for version in ("2003", "2008", "2012", "2016", "2019", "2022", "2025")
    ),
    SupportRow(
        "centos", "8", "CentOS 8", "4.18", "3.6", "ebpf", Support.EXPECTED, _agent("3.6.15"),
        "Its kernel has later eBPF built in; where the verifier refuses, tracefs serves",
    ),
    *(
        SupportRow(
            name, "8", f"{label} 8", "4.18", "3.6", "ebpf", Support.EXPECTED, _agent("3.6.15"),
            "Its kernel has later eBPF built in; where the verifier refuses, tracefs serves",
        )
        for name, label in (("rhel", "Red Hat Enterprise Linux"), ("rocky", "Rocky Linux"), ("almalinux", "AlmaLinux"))
    ),
    *(
        SupportRow(
            name, "9", f"{label} 9", "5.14", "3.9", "ebpf", Support.EXPECTED, _agent("3.9"),
        )
        for name, label in (("rhel", "Red Hat Enterprise Linux"), ("rocky", "Rocky Linux"), ("almalinux", "AlmaLinux"))
    ),
    SupportRow(
        "ubuntu", "18.04", "Ubuntu 18.04", "4.15", "3.6", "tracefs", Support.EXPECTED, _agent("3.6.15")
    ),
    SupportRow(
        "ubuntu", "20.04", "Ubuntu 20.04", "5.4", "3.8", "tracefs", Support.EXPECTED, _agent("3.8")
    ),
    SupportRow(
        "ubuntu", "22.04", "Ubuntu 22.04", "5.15", "3.10", "ebpf", Support.EXPECTED, _agent("3.10")
    ),
    SupportRow(
        "ubuntu", "24.04", "Ubuntu 24.04", "6.8", "3.12", "ebpf", Support.EXPECTED, _agent("3.12")
    ),
    SupportRow(
        "debian", "10", "Debian 10", "4.19", "3.7", "tracefs", Support.EXPECTED, _agent("3.7")
    ),
    SupportRow(
        "debian", "11", "Debian 11", "5.10", "3.9", "ebpf", Support.EXPECTED, _agent("3.9")
    ),
    SupportRow(
        "debian", "12", "Debian 12", "6.1", "3.11", "ebpf", Support.EXPECTED,
        "all tests on its files with a kernel of today; with its own kernel, a frozen root and the loading of the eBPF"
        " programs",
    ),
    SupportRow(
        "debian", "13", "Debian 13", "6.12", "3.13", "ebpf", Support.EXPECTED, _agent("3.13")
    ),
    SupportRow(
        "sles", "15", "SUSE Linux Enterprise Server 15", "4.12 to 6.4", "3.6", "tracefs", Support.EXPECTED,
        _agent("3.6.15"), "From SP3 (kernel 5.3) on, eBPF may do",
    ),
    SupportRow(
        "opensuse", "15", "openSUSE Leap 15", "4.12 to 6.4", "3.6", "tracefs", Support.EXPECTED,
        _agent("3.6.15"), "From 15.3 (kernel 5.3) on, eBPF may do",
    ),
    SupportRow(
        "amzn", "2", "Amazon Linux 2", "4.14", "2.7", "tracefs", Support.EXPECTED, _AGENT_27,
        "With its kernel 5.10, eBPF",
    ),
    SupportRow(
        "amzn", "2023", "Amazon Linux 2023", "6.1", "3.9", "ebpf", Support.EXPECTED, _agent("3.9")
    ),
    SupportRow(
        "tencentos", "3", "TencentOS Server 3", "5.4", "3.6", "tracefs", Support.EXPECTED, _agent("3.6.15")
    ),
    SupportRow(
        "tencentos", "4", "TencentOS Server 4", "6.6", "3.11", "ebpf", Support.EXPECTED, _agent("3.11")
    ),
)  # fmt: skip
"""Every release that anything is known about, those of the mission first."""


def support_for(guest: GuestInfo) -> SupportRow | None:
    """Return the row of a guest's release; ``None`` where nothing is known about it.

    An unknown release is no error: what counts is what the agent finds there.
    """
    major = "" if guest.major_version is None else str(guest.major_version)
    minor = "" if guest.minor_version is None else str(guest.minor_version)
    # Ubuntu's minor version is a month and keeps its zero.
    exact = guest.version if guest.distribution == "ubuntu" else f"{major}.{minor}"
    rows = [row for row in SUPPORT if row.distribution == guest.distribution]
    for wanted in (exact, ".".join(exact.split(".")[:2]), major):
        for row in rows:
            if wanted and row.version == wanted:
                return row
    return None


def support_table(*, mission: bool | None = None) -> str:
    """Return the matrix as a table in Markdown.

    Args:
        mission: Only the releases this project was made for, or only the others; ``None``: all.
    """
    lines = [
        "| release | kernel | agent's Python | tracker | state | tried | note |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.name} | {row.kernel or '-'} | {row.python or '-'} | {row.rung} | {row.support.value}"
        f" | {row.tried} | {row.note or '-'} |"
        for row in SUPPORT
        if mission is None or row.mission is mission
    ]
    return "\n".join(lines) + "\n"
