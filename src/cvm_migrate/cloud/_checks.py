"""What can be known of an instance as a target before anything is touched, as findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import attrs

from cvm_migrate.cloud._calls import InstanceCalls
from cvm_migrate.cloud._facts import InstanceFacts
from cvm_migrate.cloud._security_groups import (
    MY_PUBLIC_IP,
    SecurityGroupRule,
    SecurityGroups,
    evaluate,
    parse_source,
)
from cvm_migrate.cloud._snapshots import MOST_SNAPSHOTS, Snapshots
from cvm_migrate.cloud._states import STATES, Call, InstanceState, StateKind, transition
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import CvmMigrateError, ServiceError, ThrottledError
from cvm_migrate.model import Finding, Severity
from cvm_migrate.units import format_size

# The API refuses 300 s; a clock that is this far off will get there.
_SKEW: Final = 60.0

# Where the rescue system listens.
_SSH: Final = 22

# Where rescue mode is documented to exist; the list grows, so its absence is no refusal.
_RESCUE_REGIONS: Final = frozenset(
    {
        "ap-bangkok",
        "ap-beijing",
        "ap-chengdu",
        "ap-chongqing",
        "ap-guangzhou",
        "ap-hongkong",
        "ap-jakarta",
        "ap-nanjing",
        "ap-seoul",
        "ap-shanghai",
        "ap-shanghai-fsi",
        "ap-shenzhen-fsi",
        "ap-singapore",
        "ap-tokyo",
        "eu-frankfurt",
        "na-ashburn",
        "na-siliconvalley",
        "sa-saopaulo",
    }
)


@attrs.frozen
class TargetWish:
    """What a migration is going to ask of an instance.

    Attributes:
        disk_sizes: Of the source's disks in their order, in bytes; empty if they are not known yet.
        machine: The source's processor, as ``uname -m`` says it.
        firmware: How the source boots.
        data_port: Where the data arrives; ``None`` if it goes through SSH.
        source: Address the data comes from, or ``MY_PUBLIC_IP``; ``None`` if it is not known.
        snapshots: Whether snapshots are to be made first.
        open_port: Whether a rule for the data port may be made.
        take_over: Whether an instance that waits for migration already, because of someone else, may be used: it
            leaves and enters anew.
    """

    disk_sizes: Sequence[int] = ()
    machine: str | None = None
    firmware: Literal["bios", "uefi"] | None = None
    data_port: int | None = 443
    source: str | None = None
    snapshots: bool = True
    open_port: bool = True
    take_over: bool = False


def check_instance(
    instance: InstanceCalls,
    wish: TargetWish,
    *,
    tag: str | None = None,
    deadline: Deadline | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Finding, ...]:
    """Look at an instance with the eyes of a migration; changes nothing.

    What the API refuses becomes a finding, too, so that one look shows all there is.

    Args:
        instance: Which.
        wish: What the migration is going to ask of it.
        tag: Of the migration's own snapshots, if it has begun: they need no more room.
        deadline: Ends the calls.
        cancel: Ends the waits.
    """
    if wish.source not in {None, MY_PUBLIC_IP}:
        parse_source(str(wish.source))
    try:
        facts = instance.describe(deadline=deadline, cancel=cancel)
    except CvmMigrateError as error:
        return (_from_error(error),)
    return (
        *_clock(instance),
        *check_facts(facts, wish),
        *_rules(instance, facts, wish, deadline),
        *_snapshots(instance, facts, wish, tag, deadline),
        Finding(Severity.INFO, f"The target is {facts}"),
    )


def check_facts(facts: InstanceFacts, wish: TargetWish) -> tuple[Finding, ...]:
    """Return what can be told from what the API says of the instance, without another call."""
    return (
        *_state(facts, wish),
        *_kind(facts),
        *_reach(facts),
        *check_fit(facts, wish),
    )


def check_fit(facts: InstanceFacts, wish: TargetWish) -> tuple[Finding, ...]:
    """Return what speaks against this source on this instance: processor, boot mode, number and sizes of disks."""
    return (*_likeness(facts, wish), *_disks(facts, wish))


def _from_error(error: CvmMigrateError) -> Finding:
    passing = isinstance(error, ServiceError | ThrottledError)
    title = "The API cannot be asked now" if passing else "The API refuses"
    return Finding(Severity.BLOCKER, title, error.message, error.remedy or "")


def _clock(instance: InstanceCalls) -> list[Finding]:
    skew = instance.client.clock_skew
    if skew is None or abs(skew) < _SKEW:
        return []
    return [
        Finding(
            Severity.WARNING,
            f"This machine's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}",
            "compared with the API's",
            "Set it (NTP): at 300 s the API refuses every call",
        )
    ]


def _state(facts: InstanceFacts, wish: TargetWish) -> list[Finding]:
    found: list[Finding] = []
    rule = STATES[facts.state]
    evidence = f"InstanceState is {facts.state_text}"
    if facts.state is InstanceState.RESCUE_MODE:
        found.append(
            Finding(
                Severity.WARNING if wish.take_over else Severity.BLOCKER,
                f"{facts.instance_id} waits for migration already",
                evidence,
                "Make sure that nobody else is migrating to it; then call leave_migration(), or allow it to be "
                "taken over (take_over=True)",
            )
        )
    elif rule.kind is StateKind.MOVING:
        found.append(
            Finding(Severity.WARNING, f"{facts.instance_id} {rule.meaning}", evidence, rule.advice)
        )
    elif transition(Call.ENTER_RESCUE, facts.state) is None:
        found.append(
            Finding(Severity.BLOCKER, f"{facts.instance_id} {rule.meaning}", evidence, rule.advice)
        )
    elif facts.state is InstanceState.RUNNING:
        found.append(
            Finding(
                Severity.INFO,
                f"{facts.instance_id} runs: its own system will be shut down and its disks overwritten",
                evidence,
            )
        )
    if facts.state is InstanceState.STOPPED and facts.stop_charging_mode == "STOP_CHARGING":
        found.append(
            Finding(
                Severity.BLOCKER,
                f"{facts.instance_id} was stopped in the mode that is not charged for, which has no rescue mode",
                "StopChargingMode is STOP_CHARGING",
                "Start it first: start(), or the console",
            )
        )
    if facts.restrict_state != "NORMAL":
        found.append(
            Finding(
                Severity.BLOCKER,
                f"{facts.instance_id} has expired or is isolated",
                f"RestrictState is {facts.restrict_state}",
                "Renew it in the console, or top up the account",
            )
        )
    if facts.latest.state == "OPERATING":
        found.append(
            Finding(
                Severity.WARNING,
                f"{facts.instance_id} is being worked on",
                f"LatestOperation {facts.latest.name} is OPERATING",
                "Wait until it ends: calls meanwhile have to wait, too",
            )
        )
    return found


def _kind(facts: InstanceFacts) -> list[Finding]:
    found: list[Finding] = []
    if facts.architecture == "arm64":
        found.append(
            Finding(
                Severity.BLOCKER,
                f"{facts.instance_id} is an ARM instance, which has no rescue mode",
                f"InstanceType is {facts.instance_type}",
                "Name an x86 instance",
            )
        )
    if facts.region not in _RESCUE_REGIONS:
        found.append(
            Finding(
                Severity.WARNING,
                f"Rescue mode is not documented for {facts.region}",
                "",
                "prepare() will tell; another region may be needed",
            )
        )
    return found


def _likeness(facts: InstanceFacts, wish: TargetWish) -> list[Finding]:
    found: list[Finding] = []
    if wish.machine is not None and wish.machine not in {
        "x86_64",
        "amd64",
        "i686",
        "i586",
        "i386",
    }:
        found.append(
            Finding(
                Severity.BLOCKER,
                f"The source's system is made for {wish.machine} and does not run on {facts.instance_type}",
                "",
                "Only x86 sources can be migrated to a CVM in rescue mode",
            )
        )
    if wish.firmware == "uefi":
        found.append(
            Finding(
                Severity.WARNING,
                "The source boots by UEFI; most CVM instances boot by BIOS only",
                f"the image is {facts.image_id}, {facts.os_name}",
                "Take an instance made from a UEFI image, or have the boot loader replaced (adaptation does it)",
            )
        )
    elif wish.firmware == "bios":
        found.append(
            Finding(
                Severity.INFO,
                "The source boots by BIOS, as instances do unless their image says UEFI",
                "the API does not tell an instance's boot mode; prepare() compares that of its rescue system",
            )
        )
    return found


def _disks(facts: InstanceFacts, wish: TargetWish) -> list[Finding]:
    found: list[Finding] = []
    if len(wish.disk_sizes) > len(facts.disks):
        found.append(
            Finding(
                Severity.BLOCKER,
                f"The source has {len(wish.disk_sizes)} disks, {facts.instance_id} has {len(facts.disks)}",
                "",
                "Attach data disks in the source's order, or name fewer disks of the source",
            )
        )
    for index, (size, disk) in enumerate(zip(wish.disk_sizes, facts.disks, strict=False), start=1):
        if disk.size < size:
            found.append(
                Finding(
                    Severity.BLOCKER,
                    f"Disk {index} of {facts.instance_id} is smaller than the source's",
                    f"{disk.disk_id or disk.path} has {format_size(disk.size)}, the source's {format_size(size)}",
                    f"Enlarge it in the console to at least {-(-size >> 30)} GiB",
                )
            )
    return found


def _reach(facts: InstanceFacts) -> list[Finding]:
    if facts.public_addresses:
        return []
    if not facts.private_addresses:
        return [
            Finding(
                Severity.BLOCKER,
                f"{facts.instance_id} has no address",
                "",
                "Bind a public address to it",
            )
        ]
    return [
        Finding(
            Severity.WARNING,
            f"{facts.instance_id} has no public address",
            f"private: {', '.join(facts.private_addresses)}",
            "Bind one, unless source and caller reach its private address (VPN, peering, same VPC)",
        )
    ]


def _rules(
    instance: InstanceCalls, facts: InstanceFacts, wish: TargetWish, deadline: Deadline | None
) -> list[Finding]:
    if not facts.security_groups:
        return []
    groups = SecurityGroups(instance)
    asked = login_questions(facts)
    if wish.data_port is not None:
        asked.append((wish.data_port, wish.source))
    try:
        rules = groups.rules(facts.security_groups, deadline=deadline)
        rules = groups.known(rules, asked, deadline=deadline)
    except CvmMigrateError as error:
        return [_from_error(error)]
    found = check_login(facts, rules)
    if wish.data_port is not None:
        port, source = wish.data_port, wish.source
        verdict = evaluate(rules, port, source)
        if verdict.allowed:
            return found
        evidence = "no rule allows it" if verdict.rule is None else str(verdict.rule)
        who = "everyone" if source is None else source
        if wish.open_port and source is not None:
            found.append(
                Finding(
                    Severity.INFO,
                    f"Port {port} is closed for {who}; prepare() opens it for that address only, finish() closes it",
                    evidence,
                )
            )
        else:
            found.append(
                Finding(
                    Severity.WARNING,
                    f"Port {port} (the data) is not open for {who}",
                    evidence,
                    f"Allow TCP {port} from the machine that connects, in {facts.security_groups[0]}",
                )
            )
    return found


def login_questions(facts: InstanceFacts) -> list[tuple[int, str | None]]:
    """Return the connections that :func:`check_login` judges: ports, and where they come from."""
    return [(_SSH, None)] if facts.login_port is None else [(_SSH, None), (facts.login_port, None)]


def check_login(facts: InstanceFacts, rules: Sequence[SecurityGroupRule]) -> list[Finding]:
    """Return what the rules of its security groups have against logging in to its rescue system."""
    port = _SSH
    verdict = evaluate(rules, port, None)
    if verdict.allowed or not facts.security_groups:
        return []
    evidence = "no rule allows it" if verdict.rule is None else str(verdict.rule)
    remedy = f"Allow TCP {port} from the machine that connects, in {facts.security_groups[0]}"
    if verdict.allowed is None:
        title = f"Port {port} (SSH) is not open for everyone"
        return [Finding(Severity.WARNING, title, evidence, remedy)]
    other = facts.login_port
    if other not in {None, port} and evaluate(rules, int(other or 0), None).allowed is not False:
        title = f"Port {port} (SSH) is closed, the instance's own login port {other} is not"
        return [Finding(Severity.WARNING, title, evidence, remedy)]
    title = f"Port {port} (SSH) is closed for everyone: the rescue system could not be reached"
    return [Finding(Severity.BLOCKER, title, evidence, remedy)]


def _snapshots(
    instance: InstanceCalls,
    facts: InstanceFacts,
    wish: TargetWish,
    tag: str | None,
    deadline: Deadline | None,
) -> list[Finding]:
    if not wish.snapshots:
        return [
            Finding(
                Severity.WARNING,
                "No snapshots are made: what is on the target's disks now cannot be brought back",
                "",
                "Leave snapshots on, unless there is nothing on them",
            )
        ]
    snapshots = Snapshots(instance)
    try:
        unable = snapshots.unable(facts, deadline=deadline)
        full = snapshots.full(facts, tag, deadline=deadline) if not unable else {}
    except CvmMigrateError as error:
        return [_from_error(error)]
    if unable:
        return [
            Finding(
                Severity.BLOCKER,
                f"{', '.join(unable)} of {facts.instance_id} knows no snapshots",
                "",
                "Go on without (snapshots=False), or make an image of the instance first",
            )
        ]
    return [
        Finding(
            Severity.BLOCKER,
            f"{disk_id} of {facts.instance_id} has no room for another snapshot",
            f"it has {count}; a cloud disk keeps at most {MOST_SNAPSHOTS}",
            "Delete snapshots of it that are not needed, or go on without (snapshots=False)",
        )
        for disk_id, count in full.items()
    ]
