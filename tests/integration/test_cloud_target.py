"""An instance as the target of a migration: snapshots, the data port, every way in and out, with every failure."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

import rig.cloud
from cvm_migrate import CvmTarget
from cvm_migrate.cloud import (
    MY_PUBLIC_IP,
    AssumeRoleCredentials,
    CvmInstance,
    InstanceState,
    RescueTarget,
    SecurityGroups,
    Snapshots,
    StaticCredentials,
    TargetWish,
)
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import (
    CancelledError,
    CredentialsError,
    CvmMigrateError,
    DeadlineError,
    InstanceStateError,
    InvalidRequestError,
    NotFoundError,
    QuotaError,
    StepOrderError,
    UnsupportedError,
)
from cvm_migrate.model import Severity
from cvm_migrate.testing import SimulatedInstance, TencentCloud
from cvm_migrate.units import MiB
from rig.cloud import PASSING, QUICK, cloud, instance
from rig.hosts import host

SOURCE = "203.0.113.5"
WISH = TargetWish(data_port=443, source=SOURCE)


@pytest.fixture
def simulated() -> Iterator[TencentCloud]:
    with cloud() as running:
        yield running


def add(simulated: TencentCloud, **changes: Any) -> SimulatedInstance:
    sizes = {"system_disk": 4 * MiB, "data_disks": [2 * MiB]}
    return rig.cloud.add(simulated, **sizes, **changes)


def calls(simulated: TencentCloud, action: str) -> int:
    return sum(request.action == action for request in simulated.requests)


def fill(made: SimulatedInstance, byte: bytes) -> None:
    for disk in made.disks:
        disk.path.write_bytes(byte * disk.size)


def half_copied(
    simulated: TencentCloud, **changes: Any
) -> tuple[SimulatedInstance, RescueTarget, dict[str, str]]:
    """An instance that waits for migration and has been written to: it held a before, and holds b."""
    made = add(simulated, **changes)
    fill(made, b"a")
    notes: dict[str, str] = {}
    target = RescueTarget(instance(simulated, made), notes, wish=WISH)
    target.before_prepare()
    target.writing()
    fill(made, b"b")
    return made, target, notes


def holds(made: SimulatedInstance, byte: bytes) -> list[bool]:
    return [disk.path.read_bytes() == byte * disk.size for disk in made.disks]


def rule_names(simulated: TencentCloud, made: SimulatedInstance) -> list[str]:
    cvm = instance(simulated, made)
    rules = SecurityGroups(cvm).rules(cvm.describe().security_groups)
    return [f"{rule.port} {rule.source} {rule.description}".strip() for rule in rules]


# Snapshots


def test_snapshots_bring_back_every_disk_elastic_ones_too(simulated: TencentCloud) -> None:
    made = add(simulated, state="STOPPED")
    order = [disk.disk_id for disk in made.disks]
    snapshots = Snapshots(instance(simulated, made))
    fill(made, b"a")

    taken = snapshots.create("tag1")
    fill(made, b"b")
    snapshots.restore(taken)

    assert holds(made, b"a") == [True, True]
    assert [disk.disk_id for disk in made.disks] == order
    assert [snapshot.disk_id for snapshot in taken] == order


def test_snapshots_are_made_once_for_a_tag_and_deleted_once(simulated: TencentCloud) -> None:
    made = add(simulated)
    snapshots = Snapshots(instance(simulated, made))

    taken = snapshots.create("tag1")
    assert Snapshots(instance(simulated, made)).create("tag1") == taken
    other = snapshots.create("tag2")
    snapshots.delete(taken)
    snapshots.delete(taken)

    assert calls(simulated, "CreateSnapshot") == 4
    assert {snapshot.snapshot_id for snapshot in other}.isdisjoint(
        snapshot.snapshot_id for snapshot in taken
    )
    made.set_state("STOPPED")
    with pytest.raises(NotFoundError, match="gone"):
        snapshots.restore(taken[:1])


def test_disks_are_not_put_back_under_a_running_system(simulated: TencentCloud) -> None:
    made = add(simulated)
    snapshots = Snapshots(instance(simulated, made))
    taken = snapshots.create("tag1")

    with pytest.raises(InstanceStateError, match="stop"):
        snapshots.restore(taken)

    assert calls(simulated, "ApplySnapshot") + calls(simulated, "DetachDisks") == 0


def test_disks_that_know_no_snapshots_are_refused_before_any_is_made(
    simulated: TencentCloud,
) -> None:
    made = add(simulated, disk_type="LOCAL_BASIC")

    with pytest.raises(UnsupportedError, match="snapshots=False"):
        Snapshots(instance(simulated, made)).create("tag1")

    assert calls(simulated, "CreateSnapshot") == 0


def test_a_quota_that_is_used_up_is_named(simulated: TencentCloud) -> None:
    made = add(simulated)
    simulated.fail("InsufficientSnapshotQuota", action="CreateSnapshot", times=None)

    with pytest.raises(QuotaError, match="Delete snapshots"):
        Snapshots(instance(simulated, made)).create("tag1")


def test_a_snapshot_that_failed_before_it_was_seen_is_not_waited_for(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)
    # The second fails while the first is waited for.
    simulated.fail("failed-operation", action="CreateSnapshot", nth=2)

    with pytest.raises(NotFoundError, match="vanished") as caught:
        instance(simulated, made).snapshots.create("tag1")

    assert caught.value.remedy
    assert len(instance(simulated, made).snapshots.create("tag1")) == 2


@pytest.mark.parametrize("tag", ["", "with blank", "x" * 21])
def test_a_tag_that_the_name_has_no_room_for_is_refused(simulated: TencentCloud, tag: str) -> None:
    with pytest.raises(InvalidRequestError):
        Snapshots(instance(simulated, add(simulated))).create(tag)


SNAPSHOT_CALLS = (
    "DescribeDisks",
    "DescribeSnapshots",
    "CreateSnapshot",
    "DetachDisks",
    "ApplySnapshot",
    "AttachDisks",
    "DeleteSnapshots",
)


@pytest.mark.parametrize(("fault", "action"), list(itertools.product(PASSING, SNAPSHOT_CALLS)))
def test_a_failure_that_passes_neither_loses_nor_doubles_a_snapshot(
    simulated: TencentCloud, fault: str, action: str
) -> None:
    made = add(simulated, state="STOPPED")
    snapshots = Snapshots(instance(simulated, made, fault))
    fill(made, b"a")
    struck = simulated.fail(fault, action=action)

    taken = snapshots.create("tag1")
    fill(made, b"b")
    snapshots.restore(taken)
    kept = instance(simulated, made).client.describe_snapshots({"disk-id": made.disks[0].disk_id})
    snapshots.delete(taken)

    assert struck.hits == 1
    assert holds(made, b"a") == [True, True]
    assert kept["TotalCount"] == 1


# The data port


def test_the_data_port_is_opened_for_the_source_only_and_closed_again(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)
    cvm = instance(simulated, made)
    groups = SecurityGroups(cvm)
    before = rule_names(simulated, made)

    opened = groups.open_port(443, SOURCE, "tag1")
    assert groups.open_port(443, SOURCE, "tag1") == opened
    during = rule_names(simulated, made)

    assert during == [f"443 {SOURCE}/32 cvm_migrate {made.instance_id} tag1", *before]
    assert groups.close_port("tag1") == 1
    assert groups.close_port("tag1") == 0
    assert rule_names(simulated, made) == before
    assert calls(simulated, "CreateSecurityGroupPolicies") == 1


def test_only_our_own_rule_is_ever_removed(simulated: TencentCloud) -> None:
    theirs = [
        {
            "Protocol": "TCP",
            "Port": "443",
            "CidrBlock": "198.51.100.1",
            "Action": "ACCEPT",
            "PolicyDescription": text,
        }
        for text in ("cvm_migrate", "web", "cvm_migrate ins-other tag1")
    ]
    for number, one in enumerate(theirs):
        one["CidrBlock"] = f"198.51.100.{number}"
    group = simulated.add_security_group(ingress=theirs)
    made = add(simulated, security_groups=[group])
    groups = SecurityGroups(instance(simulated, made))
    before = rule_names(simulated, made)

    groups.open_port(443, SOURCE, "tag1")
    groups.open_port(8443, SOURCE, "tag2")
    assert groups.close_port("tag1") == 1
    assert any("8443" in name for name in rule_names(simulated, made))
    groups.close_port("tag2")

    assert rule_names(simulated, made) == before


def test_no_rule_is_made_where_others_allow_it_already(simulated: TencentCloud) -> None:
    everyone = {"Protocol": "ALL", "Port": "all", "CidrBlock": "0.0.0.0/0", "Action": "ACCEPT"}
    made = add(simulated, security_groups=[simulated.add_security_group(ingress=[everyone])])
    bare = add(simulated, security_groups=[])

    assert SecurityGroups(instance(simulated, made)).open_port(443, SOURCE, "tag1") is None
    assert SecurityGroups(instance(simulated, bare)).open_port(443, SOURCE, "tag1") is None
    assert calls(simulated, "CreateSecurityGroupPolicies") == 0


def test_a_source_that_has_moved_gets_a_new_rule_and_the_old_one_goes(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)
    groups = SecurityGroups(instance(simulated, made))

    groups.open_port(443, SOURCE, "tag1")
    groups.open_port(443, "203.0.113.99", "tag1")
    groups.open_port(443, MY_PUBLIC_IP, "tag1")

    ours = [name for name in rule_names(simulated, made) if "tag1" in name]
    assert ours == [f"443 127.0.0.1 cvm_migrate {made.instance_id} tag1"]


def test_others_who_change_the_group_at_the_same_moment_do_not_get_in_the_way(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)
    groups = SecurityGroups(instance(simulated, made))
    for action in ("CreateSecurityGroupPolicies", "DeleteSecurityGroupPolicies"):
        simulated.fail("UnsupportedOperation.VersionMismatch", action=action, times=2)

    groups.open_port(443, SOURCE, "tag1")
    assert groups.close_port("tag1") == 1

    assert calls(simulated, "CreateSecurityGroupPolicies") == 3


RULE_CALLS = (
    "DescribeSecurityGroupPolicies",
    "CreateSecurityGroupPolicies",
    "DeleteSecurityGroupPolicies",
)


@pytest.mark.parametrize(("fault", "action"), list(itertools.product(PASSING, RULE_CALLS)))
def test_a_failure_that_passes_neither_loses_nor_doubles_the_rule(
    simulated: TencentCloud, fault: str, action: str
) -> None:
    made = add(simulated)
    groups = SecurityGroups(instance(simulated, made, fault))
    struck = simulated.fail(fault, action=action)

    groups.open_port(443, SOURCE, "tag1")
    during = rule_names(simulated, made)
    groups.close_port("tag1")

    assert struck.hits == 1
    assert sum("tag1" in name for name in during) == 1
    assert not [name for name in rule_names(simulated, made) if "tag1" in name]


# The whole


def test_a_migration_goes_in_and_out_and_leaves_nothing_behind(simulated: TencentCloud) -> None:
    made = add(simulated)
    before = rule_names(simulated, made)
    notes: dict[str, str] = {}
    target = RescueTarget(instance(simulated, made), notes, wish=WISH, ledger="web-1")

    access = target.before_prepare()
    assert made.state == "RESCUE_MODE"
    target.writing()
    health = target.after_cutover()
    assert target.discard_snapshots() == 2

    assert health.healthy
    assert made.state == "RUNNING"
    assert rule_names(simulated, made) == before
    assert access.password not in str(notes)
    assert [
        r.params.get("Status")
        for r in simulated.requests
        if r.action == "ModifyMigrationTaskStatus"
    ] == [
        "migrating",
        "finish",
    ]


def test_each_step_of_the_whole_can_be_repeated_by_a_new_process(simulated: TencentCloud) -> None:
    made = add(simulated)
    notes: dict[str, str] = {}
    for _ in range(2):
        RescueTarget(instance(simulated, made), notes, wish=WISH).before_prepare()
        assert made.state == "RESCUE_MODE"
    for _ in range(2):
        RescueTarget(instance(simulated, made), notes, wish=WISH).after_cutover()
        assert made.state == "RUNNING"
    for _ in range(2):
        RescueTarget(instance(simulated, made), notes, wish=WISH).discard_snapshots()

    assert calls(simulated, "CreateSnapshot") == 2
    assert calls(simulated, "CreateSecurityGroupPolicies") == 1
    assert calls(simulated, "DeleteSnapshots") == 2


@pytest.mark.parametrize("start", ["RUNNING", "STOPPED"])
def test_giving_up_before_writing_leads_back_to_where_it_was(
    simulated: TencentCloud, start: str
) -> None:
    made = add(simulated, state=start)
    fill(made, b"a")
    before = rule_names(simulated, made)
    target = RescueTarget(instance(simulated, made), {}, wish=WISH)
    target.before_prepare()

    report = target.on_abort()

    assert (made.state, report.state) == (start, start)
    assert report.restored
    assert holds(made, b"a") == [True, True]
    assert rule_names(simulated, made) == before
    assert target.snapshots == ()


@pytest.mark.parametrize("start", ["RUNNING", "STOPPED"])
def test_giving_up_after_writing_puts_the_disks_back_first(
    simulated: TencentCloud, start: str
) -> None:
    made, _target, notes = half_copied(simulated, state=start)

    # Another process gives up.
    report = RescueTarget(instance(simulated, made), notes, wish=WISH).on_abort()

    assert (made.state, report.restored) == (start, True)
    assert holds(made, b"a") == [True, True]


def test_an_instance_that_expires_on_the_way_is_named_and_giving_up_mends_it_once_renewed(
    simulated: TencentCloud,
) -> None:
    made, target, _notes = half_copied(simulated)
    made.set_restricted("EXPIRED")

    with pytest.raises(CvmMigrateError) as caught:
        target.after_cutover()
    assert caught.value.remedy
    assert target.half_way
    made.set_restricted("NORMAL")

    assert target.on_abort().restored
    assert made.state == "RUNNING"
    assert holds(made, b"a") == [True, True]


@pytest.mark.parametrize("renewable", [True, False])
def test_a_token_that_runs_out_on_the_way_is_renewed_or_named(
    simulated: TencentCloud,
    renewable: bool,  # noqa: FBT001 - a parameter
) -> None:
    made = add(simulated)
    base = StaticCredentials(simulated.secret_id, simulated.secret_key)
    keys = simulated.new_credentials(seconds=3600)
    fixed = StaticCredentials(keys.secret_id, keys.secret_key, keys.token)
    role = AssumeRoleCredentials(
        base, simulated.add_role("migrator"), endpoint=simulated.endpoint, policy=QUICK
    )
    notes: dict[str, str] = {}
    target = RescueTarget(
        instance(simulated, made, credentials=role if renewable else fixed), notes, wish=WISH
    )
    target.before_prepare()
    simulated.expire_tokens()

    if renewable:
        assert target.after_cutover().healthy
    else:
        with pytest.raises(CredentialsError) as caught:
            target.after_cutover()
        assert "get new ones" in str(caught.value.remedy)
        assert "rescue mode" in str(caught.value.remedy)
        # With keys that work, another process goes on.
        RescueTarget(instance(simulated, made), notes, wish=WISH).after_cutover()

    assert made.state == "RUNNING"


def test_giving_up_never_takes_a_server_back_that_runs_the_copy(simulated: TencentCloud) -> None:
    """finish() failed after the instance was started, so that nobody has noted the end."""
    made = add(simulated)
    notes: dict[str, str] = {}
    first = RescueTarget(instance(simulated, made), notes, wish=WISH)
    first.before_prepare()
    first.writing()
    fill(made, b"b")
    simulated.fail("unauthorized", action="DescribeSecurityGroupPolicies", times=None)
    with pytest.raises(CvmMigrateError):
        first.after_cutover()
    simulated.heal()
    assert made.state == "RUNNING"

    for repeat in range(2):
        another = RescueTarget(instance(simulated, made), notes, wish=WISH)
        with pytest.raises(StepOrderError, match="runs the copy") as caught:
            another.on_abort() if repeat else another.before_prepare()
        assert "finish()" in str(caught.value.remedy)

    assert made.state == "RUNNING"
    assert "STOPPING" not in made.history
    assert made.history.count("ENTER_RESCUE_MODE") == 1
    assert holds(made, b"b") == [True, True]
    RescueTarget(instance(simulated, made), notes, wish=WISH).after_cutover()


def test_a_copy_that_was_never_started_can_still_be_given_up(simulated: TencentCloud) -> None:
    made = add(simulated)
    fill(made, b"a")
    notes: dict[str, str] = {}
    first = RescueTarget(
        instance(simulated, made, policy=attrs.evolve(QUICK, attempts=2)), notes, wish=WISH
    )
    first.before_prepare()
    first.writing()
    fill(made, b"b")
    simulated.fail("unauthorized", action="StartInstances", times=None)
    with pytest.raises(CvmMigrateError, match="start"):
        first.after_cutover()
    # Giving up gets as far as putting the disks back, and cannot start either.
    with pytest.raises(CvmMigrateError):
        RescueTarget(instance(simulated, made), notes, wish=WISH).on_abort()
    simulated.heal()
    made.wait_for("STOPPED")
    instance(simulated, made).start()

    report = RescueTarget(instance(simulated, made), notes, wish=WISH).on_abort()

    assert (made.state, report.restored) == ("RUNNING", True)
    assert holds(made, b"a") == [True, True]


def test_disks_that_are_half_put_back_are_neither_finished_nor_written(
    simulated: TencentCloud,
) -> None:
    made, target, _notes = half_copied(simulated)
    simulated.fail("unauthorized", action="ApplySnapshot", nth=2, times=1)
    with pytest.raises(CvmMigrateError, match="not yet what it was"):
        target.on_abort()

    for call in (target.after_cutover, target.before_prepare):
        with pytest.raises(StepOrderError, match="being put back") as caught:
            call()
        assert "abort()" in str(caught.value.remedy)
    assert made.state == "STOPPED"

    assert target.on_abort().restored
    assert holds(made, b"a") == [True, True]
    target.before_prepare()
    assert made.state == "RESCUE_MODE"


def test_half_a_system_that_cannot_be_put_back_is_left_off(simulated: TencentCloud) -> None:
    made = add(simulated)
    target = RescueTarget(instance(simulated, made), {}, wish=attrs.evolve(WISH, snapshots=False))
    target.before_prepare()
    target.writing()

    report = target.on_abort()

    assert made.state == "STOPPED"
    assert not report.restored
    assert "left off" in report.done[-1]


def test_a_process_that_ended_while_entering_leaves_enough_behind_to_go_on_or_give_up() -> None:
    for give_up in (True, False):
        with TencentCloud(operation_seconds=0.5) as slow:
            made = add(slow)
            notes: dict[str, str] = {}
            wish = attrs.evolve(WISH, snapshots=False)
            with pytest.raises(DeadlineError, match="rescue mode"):
                RescueTarget(instance(slow, made), notes, wish=wish).before_prepare(
                    deadline=Deadline(0.3)
                )
            made.wait_for("RESCUE_MODE")

            another = RescueTarget(instance(slow, made), notes, wish=wish)
            if give_up:
                another.on_abort()
            else:
                another.before_prepare()

            assert made.state == ("RUNNING" if give_up else "RESCUE_MODE")


def test_giving_up_what_never_began_changes_nothing(simulated: TencentCloud) -> None:
    made = add(simulated)

    report = RescueTarget(instance(simulated, made), {}, wish=WISH).on_abort()

    assert report.restored
    assert made.history == ("RUNNING",)


def test_snapshots_are_never_made_after_the_first_write(simulated: TencentCloud) -> None:
    made = add(simulated)
    target = RescueTarget(instance(simulated, made), {}, wish=WISH)
    target.writing()

    with pytest.raises(StepOrderError):
        target.before_prepare()

    assert made.state == "RUNNING"


def test_an_instance_that_waits_because_of_someone_else_is_not_taken_unasked(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)
    instance(simulated, made).enter_migration()

    with pytest.raises(InstanceStateError, match=r"nobody else.*take_over"):
        RescueTarget(instance(simulated, made), {}, wish=WISH).before_prepare()
    assert made.state == "RESCUE_MODE"

    wish = attrs.evolve(WISH, take_over=True)
    RescueTarget(instance(simulated, made), {}, wish=wish).before_prepare()

    assert made.history.count("RESCUE_MODE") == 2


def test_a_list_that_cannot_be_written_to_stops_no_migration(
    simulated: TencentCloud, caplog: pytest.LogCaptureFixture
) -> None:
    made = add(simulated)
    simulated.fail("unauthorized", action="RegisterMigrationTask", times=None)
    target = RescueTarget(instance(simulated, made), {}, wish=WISH, ledger="web-1")

    target.before_prepare()

    assert made.state == "RESCUE_MODE"
    assert "could not be entered in the list" in caplog.text


CALLS = (
    "DescribeInstances",
    *SNAPSHOT_CALLS[:3],
    *RULE_CALLS,
    "EnterRescueMode",
    "ExitRescueMode",
    "StartInstances",
    "DetachDisks",
    "ApplySnapshot",
    "AttachDisks",
)
KINDS = ("http-502", "drop-after-success", "unauthorized")


@pytest.mark.parametrize(("fault", "action"), list(itertools.product(KINDS, CALLS)))
def test_a_failure_that_does_not_pass_is_named_and_giving_up_mends_it(
    simulated: TencentCloud, fault: str, action: str
) -> None:
    """Wherever it strikes, in or out: in the end the instance runs its own system with its own data."""
    made = add(simulated)
    fill(made, b"a")
    before = rule_names(simulated, made)
    notes: dict[str, str] = {}
    quick = attrs.evolve(QUICK, attempts=2)
    simulated.fail(fault, action=action, times=None)
    errors: list[CvmMigrateError] = []

    def attempt(*, again: bool) -> None:
        target = RescueTarget(instance(simulated, made, policy=quick), notes, wish=WISH)
        try:
            if not again:
                target.before_prepare()
                target.writing()
                fill(made, b"b")
            target.on_abort()
        except CvmMigrateError as error:
            errors.append(error)

    attempt(again=False)
    attempt(again=True)
    stuck = made.state
    simulated.heal()
    attempt(again=True)

    assert all(error.remedy for error in errors), errors
    if stuck == "RESCUE_MODE":
        assert any("rescue mode" in str(error) for error in errors)
    assert made.state == "RUNNING"
    assert holds(made, b"a") == [True, True]
    assert rule_names(simulated, made) == before
    assert not any("StepOrder" in type(error).__name__ for error in errors)


# Checks


def found(findings: Any, severity: Severity) -> list[str]:
    return [finding.title for finding in findings if finding.severity is severity]


def test_an_instance_that_will_do_has_no_blocker_and_is_not_touched(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)

    findings = instance(simulated, made).check(
        TargetWish(disk_sizes=[MiB], source=SOURCE, machine="x86_64", firmware="bios")
    )

    assert found(findings, Severity.BLOCKER) == []
    assert found(findings, Severity.WARNING) == []
    assert any("Port 443 is closed" in title for title in found(findings, Severity.INFO))
    assert made.instance_id in found(findings, Severity.INFO)[-1]
    assert all(r.action.startswith("Describe") for r in simulated.requests)


@pytest.mark.parametrize(
    ("changes", "wish", "says"),
    [
        ({"state": "SHUTDOWN"}, {}, "waits to be destroyed"),
        ({"architecture": "arm64"}, {}, "ARM"),
        ({"restrict_state": "EXPIRED"}, {}, "expired"),
        ({"state": "STOPPED", "stop_charging_mode": "STOP_CHARGING"}, {}, "not charged for"),
        ({}, {"disk_sizes": [2 << 40]}, "smaller"),
        ({}, {"disk_sizes": [1, 1, 1]}, "has 3 disks"),
        ({}, {"machine": "aarch64"}, "aarch64"),
        ({"disk_type": "LOCAL_BASIC"}, {}, "no snapshots"),
    ],
)
def test_what_forbids_a_migration_is_a_blocker_with_a_remedy(
    simulated: TencentCloud, changes: dict[str, Any], wish: dict[str, Any], says: str
) -> None:
    made = add(simulated, **changes)

    findings = instance(simulated, made).check(TargetWish(**wish))

    (blocker,) = [one for one in findings if one.severity is Severity.BLOCKER]
    assert says in blocker.title
    assert blocker.remedy


def test_waiting_because_of_someone_else_is_a_blocker_unless_it_may_be_taken_over(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)
    cvm = instance(simulated, made)
    cvm.enter_migration()
    console = add(simulated)
    console.begin_console_migration()
    console.wait_for("SERVICE_LIVE_MIGRATE")

    assert "already" in found(cvm.check(), Severity.BLOCKER)[0]
    assert found(cvm.check(TargetWish(take_over=True)), Severity.BLOCKER) == []
    assert "console" in found(instance(simulated, console).check(), Severity.BLOCKER)[0]


def test_a_disk_without_room_for_another_snapshot_is_a_blocker(simulated: TencentCloud) -> None:
    made = add(simulated)
    system, data = (disk.disk_id for disk in made.disks)
    for number in range(63):
        simulated.add_snapshot(data, name=f"nightly {number}")
    cvm = instance(simulated, made)
    assert found(cvm.check(), Severity.BLOCKER) == []

    simulated.add_snapshot(data, name="weekly")
    (blocker,) = [one for one in cvm.check() if one.severity is Severity.BLOCKER]

    assert data in blocker.title
    assert system not in blocker.title
    assert blocker.evidence == "it has 64; a cloud disk keeps at most 64"
    assert "Delete snapshots" in blocker.remedy
    assert "snapshots=False" in blocker.remedy
    assert found(cvm.check(TargetWish(snapshots=False)), Severity.BLOCKER) == []
    # What check() foresees is what prepare() would run into.
    with pytest.raises(QuotaError, match="Delete snapshots"):
        RescueTarget(cvm, {}, wish=WISH).before_prepare()
    assert made.history == ("RUNNING",)


def test_a_migrations_own_snapshots_do_not_block_it(simulated: TencentCloud) -> None:
    """The 64th is its own: repeated, it finds it again; another migration has no room."""
    made = add(simulated)
    for disk in made.disks:
        for number in range(63):
            simulated.add_snapshot(disk.disk_id, name=f"nightly {number}")
    notes: dict[str, str] = {}
    RescueTarget(instance(simulated, made), notes, wish=WISH).before_prepare()

    again = RescueTarget(instance(simulated, made), notes, wish=WISH)
    other = RescueTarget(instance(simulated, made), {}, wish=attrs.evolve(WISH, take_over=True))

    assert found(again.check(), Severity.BLOCKER) == []
    assert len(found(other.check(), Severity.BLOCKER)) == 2
    again.before_prepare()
    assert calls(simulated, "CreateSnapshot") == 2


ACCEPT = {"Protocol": "TCP", "Port": "22", "CidrBlock": "203.0.113.0/24", "Action": "ACCEPT"}
DROP = {"Protocol": "ALL", "Port": "all", "CidrBlock": "0.0.0.0/0", "Action": "DROP"}


@pytest.mark.parametrize(
    ("ingress", "severity"),
    [
        ([], Severity.BLOCKER),
        ([DROP, ACCEPT], Severity.BLOCKER),
        ([{**ACCEPT, "Port": "80"}, DROP], Severity.BLOCKER),
        ([ACCEPT, DROP], Severity.WARNING),
        ([{**ACCEPT, "CidrBlock": "0.0.0.0/0"}, DROP], None),
    ],
)
def test_an_instance_nobody_can_log_in_to_is_refused_before_its_system_is_stopped(
    simulated: TencentCloud, ingress: list[dict[str, Any]], severity: Severity | None
) -> None:
    made = add(simulated, security_groups=[simulated.add_security_group(ingress=ingress)])
    target = RescueTarget(instance(simulated, made), {}, wish=WISH)

    findings = [finding for finding in target.check() if "(SSH)" in finding.title]
    if severity is Severity.BLOCKER:
        with pytest.raises(InstanceStateError, match="SSH") as caught:
            target.before_prepare()
        assert "Allow TCP 22" in str(caught.value.remedy)
        assert all(request.action.startswith("Describe") for request in simulated.requests)
    else:
        target.before_prepare()

    assert [finding.severity for finding in findings] == [severity] * bool(severity)
    assert made.state == ("RUNNING" if severity is Severity.BLOCKER else "RESCUE_MODE")


@pytest.mark.parametrize(
    ("firmware", "severity"), [("uefi", Severity.WARNING), ("bios", Severity.INFO)]
)
def test_how_the_source_boots_is_taken_from_what_its_agent_says(
    simulated: TencentCloud, firmware: str, severity: Severity
) -> None:
    target = CvmTarget(instance(simulated, add(simulated)))

    said = target.check_source([MiB], host("plain", firmware=firmware))

    assert [one.severity for one in said] == [severity]
    assert all(f"boots by {firmware.upper()}" in one.title for one in said)
    # It is remembered: check() says it, too.
    again = [one for one in target.check("target") if "boots by" in one.title]
    assert again == list(said)


TEMPLATE_CALLS = (
    "DescribeAddressTemplates",
    "DescribeAddressTemplateGroups",
    "DescribeServiceTemplates",
    "DescribeServiceTemplateGroups",
)


@attrs.frozen
class Templated:
    """An instance whose rules name templates, and what looks at it."""

    made: SimulatedInstance
    target: RescueTarget

    def about(self, port: int) -> list[tuple[Severity, str]]:
        """What check() says of a port."""
        text = f"Port {port} "
        found = [one for one in self.target.check() if one.title.startswith(text)]
        return [(one.severity, one.evidence) for one in found]


def templated(simulated: TencentCloud, *ingress: dict[str, Any]) -> Templated:
    made = add(simulated, security_groups=[simulated.add_security_group(ingress=ingress)])
    return Templated(made, RescueTarget(instance(simulated, made), {}, wish=WISH))


def by_template(**ids: str) -> dict[str, Any]:
    """A rule that names templates of addresses, services or both."""
    rule: dict[str, Any] = {"Action": "ACCEPT"}
    for name, value in ids.items():
        kind = "AddressTemplate" if name.startswith("Address") else "ServiceTemplate"
        rule[kind] = {name: value}
    if "ServiceTemplate" not in rule:
        rule |= {"Protocol": "TCP", "Port": "22,443"}
    if "AddressTemplate" not in rule:
        rule["CidrBlock"] = "0.0.0.0/0"
    return rule


def test_a_template_that_lets_in_is_as_good_as_a_rule(simulated: TencentCloud) -> None:
    here = simulated.add_address_template(["198.51.100.1", "203.0.113.1-203.0.113.9"])
    everyone = simulated.add_address_template(["0.0.0.0/1", "128.0.0.0/1"])
    both = simulated.add_template_group([here, everyone])
    ssh = simulated.add_service_template(["udp:all", "tcp: 22"])
    web = simulated.add_service_template(["tcp:80,443"])
    services = simulated.add_template_group([ssh, web])
    for rule in (
        by_template(AddressId=everyone),
        by_template(AddressGroupId=both),
        by_template(ServiceGroupId=services),
        by_template(AddressGroupId=both, ServiceGroupId=services),
    ):
        one = templated(simulated, rule)

        assert one.about(22) == one.about(443) == []
        one.target.before_prepare()

    assert calls(simulated, "CreateSecurityGroupPolicies") == 0


def test_a_template_that_keeps_out_is_found_before_the_system_is_stopped(
    simulated: TencentCloud,
) -> None:
    web = simulated.add_service_template(["tcp:80,443", "icmp"])
    one = templated(simulated, by_template(ServiceId=web))

    ((severity, evidence),) = one.about(22)
    assert (severity, evidence) == (Severity.BLOCKER, "no rule allows it")
    assert one.about(443) == []
    with pytest.raises(InstanceStateError, match="SSH"):
        one.target.before_prepare()
    assert one.made.history == ("RUNNING",)


def test_a_template_for_others_gets_the_source_a_rule_of_its_own(simulated: TencentCloud) -> None:
    others = simulated.add_address_template(["198.51.100.0/24"])
    ssh = {"Protocol": "TCP", "Port": "22", "CidrBlock": "0.0.0.0/0", "Action": "ACCEPT"}
    one = templated(simulated, ssh, by_template(AddressId=others))

    ((severity, evidence),) = one.about(443)
    assert (severity, evidence) == (Severity.INFO, "no rule allows it")
    one.target.before_prepare()
    assert calls(simulated, "CreateSecurityGroupPolicies") == 1


def test_templates_that_decide_nothing_are_not_looked_up(simulated: TencentCloud) -> None:
    addresses = simulated.add_address_template(["0.0.0.0/0"])
    everyone = {"Protocol": "ALL", "Port": "all", "CidrBlock": "0.0.0.0/0", "Action": "ACCEPT"}
    one = templated(
        simulated,
        {**by_template(AddressId=addresses), "Port": "8080"},
        everyone,
        by_template(AddressId=addresses),
    )

    one.target.check()
    one.target.before_prepare()

    assert [calls(simulated, action) for action in TEMPLATE_CALLS] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("fault", "ids", "says"),
    [
        ("unauthorized", {"AddressId": "the template"}, "UnauthorizedOperation"),
        ("InvalidAction", {"AddressId": "the template"}, "InvalidAction"),
        (None, {"AddressId": "ipm-00000000"}, "no template ipm-00000000"),
        (None, {"AddressGroupId": "ipmg-00000000"}, "no template ipmg-00000000"),
        (None, {"ServiceId": "the strange template"}, "tcp:http"),
    ],
)
def test_a_template_that_cannot_be_looked_into_is_not_known_and_says_why(
    simulated: TencentCloud, fault: str | None, ids: dict[str, str], says: str
) -> None:
    known = {
        "the template": simulated.add_address_template(["0.0.0.0/0"]),
        "the strange template": simulated.add_service_template(["tcp:22", "tcp:http"]),
    }
    if fault is not None:
        simulated.fail(fault, action="DescribeAddressTemplates", times=None)
    one = templated(simulated, by_template(**{k: known.get(v, v) for k, v in ids.items()}))

    (severity, evidence), *_ = one.about(22)

    assert severity is Severity.WARNING
    assert "rule 0: ACCEPT" in evidence
    assert says in evidence
    one.target.before_prepare()
    assert one.made.state == "RESCUE_MODE"


def test_a_port_that_is_closed_and_may_not_be_opened_is_a_warning(simulated: TencentCloud) -> None:
    made = add(
        simulated,
        security_groups=[simulated.add_security_group(ingress=[ACCEPT])],
        public_address=None,
    )

    warnings = found(
        instance(simulated, made).check(
            TargetWish(open_port=False, snapshots=False, firmware="uefi")
        ),
        Severity.WARNING,
    )

    for part in (
        "Port 22 (SSH)",
        "Port 443 (the data)",
        "No snapshots",
        "UEFI",
        "no public address",
    ):
        assert any(part in title for title in warnings), part


@pytest.mark.parametrize(
    ("fault", "action", "says"),
    [
        ("AuthFailure.SecretIdNotFound", "DescribeInstances", "keys"),
        ("skew", "DescribeInstances", "clock"),
        ("unauthorized", "DescribeSecurityGroupPolicies", "rights"),
        ("unauthorized", "DescribeDisks", "rights"),
        ("unauthorized", "DescribeSnapshots", "rights"),
        ("throttle", "DescribeInstances", "minute"),
        ("InvalidInstanceId.NotFound", "DescribeInstances", "region"),
    ],
)
def test_what_the_api_refuses_is_a_finding_and_not_an_error(
    simulated: TencentCloud, fault: str, action: str, says: str
) -> None:
    made = add(simulated)
    simulated.fail(fault, action=action, times=None)
    cvm = instance(simulated, made, policy=attrs.evolve(QUICK, attempts=2))

    (blocker,) = [one for one in cvm.check() if one.severity is Severity.BLOCKER]

    assert says in blocker.remedy
    assert action in blocker.evidence


def test_a_clock_that_is_off_is_a_warning(simulated: TencentCloud) -> None:
    made = add(simulated)
    simulated.clock_offset = 200.0

    warnings = found(instance(simulated, made).check(), Severity.WARNING)

    assert any("clock" in title and "behind" in title for title in warnings)


@pytest.mark.parametrize(
    ("endpoint", "evidence"),
    [
        ("http://127.0.0.1:9", "127.0.0.1:9 cannot be reached"),
        ("http://api.nowhere.invalid", "the name api.nowhere.invalid is not known here"),
    ],
)
def test_an_unreachable_api_is_a_finding(
    simulated: TencentCloud, endpoint: str, evidence: str
) -> None:
    made = add(simulated)
    cvm = instance(simulated, made, endpoint=endpoint, policy=attrs.evolve(QUICK, attempts=2))

    (finding,) = cvm.check(deadline=Deadline(30))

    assert finding.severity is Severity.BLOCKER
    assert evidence in finding.evidence
    assert "name resolution" in finding.remedy
    assert InstanceState.parse(made.state) is InstanceState.RUNNING


# Called off


def called_off_when(
    simulated: TencentCloud, made: SimulatedInstance, moment: str
) -> tuple[CvmInstance, CancelToken]:
    """Return the instance, and a token that is set at the first wait after that state or call has come."""
    token = CancelToken()

    def sleep(seconds: float) -> None:
        if moment in {*made.history, *(request.action for request in simulated.requests)}:
            token.cancel()
        time.sleep(seconds)

    return instance(simulated, made, policy=attrs.evolve(QUICK, sleep=sleep)), token


@pytest.mark.parametrize("moment", ["EXIT_RESCUE_MODE", "STARTING"])
def test_a_finish_that_is_called_off_says_how_the_instance_was_left_and_goes_on_later(
    moment: str,
) -> None:
    with TencentCloud(operation_seconds=1) as slow:
        made = add(slow)
        notes: dict[str, str] = {}
        before = rule_names(slow, made)
        RescueTarget(instance(slow, made), notes, wish=WISH).before_prepare()
        cvm, token = called_off_when(slow, made, moment)

        with pytest.raises(CancelledError, match=r"finish\(\) was called off") as caught:
            RescueTarget(cvm, notes, wish=WISH).after_cutover(cancel=token)
        health = RescueTarget(instance(slow, made), notes, wish=WISH).after_cutover()

        assert made.instance_id in caught.value.message
        assert any(f"({state})" in caught.value.message for state in made.history)
        assert caught.value.remedy == "Call finish() again, it goes on from there"
        assert health.healthy
        assert made.state == "RUNNING"
        assert rule_names(slow, made) == before
        assert calls(slow, "StartInstances") == 1


@pytest.mark.parametrize("moment", ["EXIT_RESCUE_MODE", "ApplySnapshot", "STARTING"])
def test_an_abort_that_is_called_off_says_how_the_instance_was_left_and_goes_on_later(
    moment: str,
) -> None:
    with TencentCloud(operation_seconds=1) as slow:
        made, _, notes = half_copied(slow)
        cvm, token = called_off_when(slow, made, moment)

        with pytest.raises(CancelledError, match=r"abort\(\) was called off") as caught:
            RescueTarget(cvm, notes, wish=WISH).on_abort(cancel=token)
        report = RescueTarget(instance(slow, made), notes, wish=WISH).on_abort()

        assert made.instance_id in caught.value.message
        assert "Call abort() again" in str(caught.value.remedy)
        half = moment == "ApplySnapshot"
        assert ("half overwritten" in caught.value.message) is half
        assert ("do not start" in str(caught.value.remedy)) is half
        assert report.restored
        assert made.state == "RUNNING"
        assert holds(made, b"a") == [True, True]


def test_a_state_that_cannot_be_asked_for_is_called_unknown(simulated: TencentCloud) -> None:
    made = add(simulated)
    notes: dict[str, str] = {}
    RescueTarget(instance(simulated, made), notes, wish=WISH).before_prepare()
    token = CancelToken()
    token.cancel()
    simulated.fail("unauthorized", action="DescribeInstances", times=None)

    with pytest.raises(CancelledError, match="not known") as caught:
        RescueTarget(instance(simulated, made), notes, wish=WISH).after_cutover(cancel=token)

    simulated.heal()
    assert caught.value.device == made.instance_id
    assert made.state == "RESCUE_MODE"
    assert RescueTarget(instance(simulated, made), notes, wish=WISH).after_cutover().healthy
