"""An instance into "waiting for migration" and back, over HTTP, with and without failures."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import attrs
import pytest

from cvm_migrate.cloud import CvmInstance, InstanceState
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import (
    CancelledError,
    CredentialsError,
    CvmMigrateError,
    DeadlineError,
    InstanceStateError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedError,
)
from cvm_migrate.testing import SimulatedInstance, TencentCloud
from cvm_migrate.units import GiB
from rig.cloud import LASTING, PASSING, QUICK, add, cloud, instance


@pytest.fixture
def simulated() -> Iterator[TencentCloud]:
    with cloud() as running:
        yield running


def calls(simulated: TencentCloud, action: str) -> int:
    return sum(request.action == action for request in simulated.requests)


def in_and_out(cvm: CvmInstance) -> None:
    cvm.enter_migration()
    cvm.leave_migration()


def test_an_instance_is_described_with_its_disks_in_order(simulated: TencentCloud) -> None:
    made = add(simulated, system_disk=20 * GiB, data_disks=[10 * GiB, 30 * GiB])

    facts = instance(simulated, made).describe()

    assert (facts.state, facts.region, facts.zone) == (
        InstanceState.RUNNING,
        "ap-guangzhou",
        "ap-guangzhou-1",
    )
    assert [(disk.path, disk.usage, disk.size) for disk in facts.disks] == [
        ("/dev/vda", "system", 20 * GiB),
        ("/dev/vdb", "data", 10 * GiB),
        ("/dev/vdc", "data", 30 * GiB),
    ]
    assert facts.memory == 4 * GiB
    assert facts.architecture == "x86_64"
    assert len(facts.security_groups) == 1


@pytest.mark.parametrize("start", ["RUNNING", "STOPPED"])
def test_it_enters_waits_and_leaves(simulated: TencentCloud, start: str) -> None:
    made = add(simulated, state=start)
    cvm = instance(simulated, made)

    access = cvm.enter_migration()
    assert made.state == "RESCUE_MODE"
    facts = cvm.leave_migration()

    assert (access.host, access.user) == ("127.0.0.1", "root")
    assert access.password not in repr(access)
    assert facts.state is InstanceState.RUNNING
    assert made.history == (
        start,
        "ENTER_RESCUE_MODE",
        "RESCUE_MODE",
        "EXIT_RESCUE_MODE",
        "STOPPED",
        "STARTING",
        "RUNNING",
    )


def test_each_step_can_be_repeated_without_another_call(simulated: TencentCloud) -> None:
    made = add(simulated)
    cvm = instance(simulated, made)

    assert cvm.enter_migration() == cvm.enter_migration()
    cvm.leave_migration(start=False)
    cvm.leave_migration(start=False)
    cvm.start()
    cvm.start()
    cvm.stop()
    cvm.stop()

    for action in ("EnterRescueMode", "ExitRescueMode", "StartInstances", "StopInstances"):
        assert calls(simulated, action) == 1, action
    assert made.state == "STOPPED"


def test_another_process_needs_the_password_or_to_enter_anew(simulated: TencentCloud) -> None:
    made = add(simulated)
    first = instance(simulated, made).enter_migration()
    other = instance(simulated, made)

    with pytest.raises(InstanceStateError, match=r"not known here.*renew=True"):
        other.enter_migration()
    assert other.enter_migration(first.password).password == first.password
    assert calls(simulated, "EnterRescueMode") == 1

    renewed = other.enter_migration(renew=True)

    assert renewed.password != first.password
    assert calls(simulated, "EnterRescueMode") == 2
    assert made.state == "RESCUE_MODE"


def test_moving_states_are_waited_out(simulated: TencentCloud) -> None:
    made = add(simulated, state="STOPPED")
    cvm = instance(simulated, made)
    cvm.client.start_instances(made.instance_id)

    cvm.enter_migration()

    assert made.history[-3:] == ("RUNNING", "ENTER_RESCUE_MODE", "RESCUE_MODE")


def test_the_console_s_waiting_for_migration_is_recognised_and_never_ended(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)
    made.begin_console_migration()
    cvm = instance(simulated, made)

    with pytest.raises(InstanceStateError, match=r"by the console.*password"):
        cvm.enter_migration()
    access = cvm.enter_migration("Known-to-me-1")
    with pytest.raises(InstanceStateError, match="Finish or delete the migration task"):
        cvm.leave_migration()

    assert access.password == "Known-to-me-1"
    assert made.state == "SERVICE_LIVE_MIGRATE"
    assert calls(simulated, "EnterRescueMode") + calls(simulated, "ExitRescueMode") == 0


@pytest.mark.parametrize("state", ["SHUTDOWN", "TERMINATING", "LAUNCH_FAILED"])
def test_a_state_that_forbids_it_is_refused_before_anything_is_touched(
    simulated: TencentCloud, state: str
) -> None:
    made = add(simulated, state=state)
    cvm = instance(simulated, made)
    deadline = Deadline(1.0)

    with pytest.raises((InstanceStateError, DeadlineError)) as caught:
        cvm.enter_migration(deadline=deadline)

    assert caught.value.remedy
    assert made.instance_id in str(caught.value)
    assert {request.action for request in simulated.requests} == {"DescribeInstances"}


def test_what_the_api_refuses_ends_in_an_error_with_a_remedy(simulated: TencentCloud) -> None:
    arm = add(simulated, architecture="arm64")
    free = add(simulated, state="STOPPED", stop_charging_mode="STOP_CHARGING")
    expired = add(simulated, restrict_state="EXPIRED")
    here = add(simulated)

    with pytest.raises(UnsupportedError, match="Name an x86 instance"):
        instance(simulated, arm).enter_migration()
    with pytest.raises(InstanceStateError, match="Start the instance first"):
        instance(simulated, free).enter_migration()
    with pytest.raises(InstanceStateError, match="Renew the instance"):
        instance(simulated, expired).enter_migration()
    with pytest.raises(NotFoundError, match="region"):
        instance(simulated, here, region="ap-beijing").enter_migration()
    for one in (arm, free, expired, here):
        assert one.history == (one.history[0],)


@pytest.mark.parametrize("password", ["short", "onlylowercaseletters", "Too-long-" * 4])
def test_a_password_that_the_api_would_refuse_is_refused_first_and_not_shown(
    simulated: TencentCloud, password: str
) -> None:
    made = add(simulated)

    with pytest.raises(InvalidRequestError) as caught:
        instance(simulated, made).enter_migration(password)

    assert password not in str(caught.value)
    assert calls(simulated, "EnterRescueMode") == 0


# One of each kind.
KINDS = (
    "throttle",
    "mutex",
    "internal-after-success",
    "http-502",
    "timeout",
    "timeout-after-success",
    "drop-before",
    "drop-after-success",
    "garbage",
)
STEPS = ("DescribeInstances", "EnterRescueMode", "ExitRescueMode", "StartInstances")


@pytest.mark.parametrize(("fault", "action"), list(itertools.product(PASSING, STEPS)))
def test_a_failure_that_passes_does_not_keep_it_from_entering_and_leaving(
    simulated: TencentCloud, fault: str, action: str
) -> None:
    made = add(simulated)
    cvm = instance(simulated, made, fault)
    struck = simulated.fail(fault, action=action)

    cvm.enter_migration()
    facts = cvm.leave_migration()

    assert struck.hits == 1
    assert facts.state is InstanceState.RUNNING
    assert made.history.count("ENTER_RESCUE_MODE") == 1
    assert made.history.count("EXIT_RESCUE_MODE") == 1


@pytest.mark.parametrize(("fault", "action"), list(itertools.product(KINDS, STEPS)))
def test_a_failure_that_does_not_pass_is_named_and_leaving_mends_it(
    simulated: TencentCloud, fault: str, action: str
) -> None:
    """Never in rescue mode without the error saying so."""
    made = add(simulated)
    impatient = instance(
        simulated,
        made,
        fault,
        policy=attrs.evolve(QUICK, attempts=2, patience=0.05),
    )
    simulated.fail(fault, action=action, nth=1 if action != "DescribeInstances" else 3, times=None)
    error: CvmMigrateError | None = None
    try:
        impatient.enter_migration()
        impatient.leave_migration()
    except CvmMigrateError as caught:
        error = caught

    simulated.heal()
    settle(made)
    if made.state == "RESCUE_MODE":
        assert error is not None
        assert "rescue mode" in str(error)
        assert "leave_migration()" in str(error)
    if error is None:
        assert made.state == "RUNNING"
    else:
        assert error.remedy
    assert instance(simulated, made).leave_migration().state is InstanceState.RUNNING


def settle(made: SimulatedInstance) -> None:
    """Let an operation that is under way end."""
    end = time.monotonic() + 30
    while made.state not in {"RESCUE_MODE", "STOPPED", "RUNNING"}:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("fault", "action"), list(itertools.product(LASTING, STEPS)))
def test_a_refusal_is_an_error_that_says_what_to_do(
    simulated: TencentCloud, fault: str, action: str
) -> None:
    made = add(simulated)
    cvm = instance(simulated, made)
    simulated.fail(fault, action=action, times=None)

    with pytest.raises((CredentialsError, PermissionDeniedError)) as caught:
        in_and_out(cvm)

    assert caught.value.remedy
    assert caught.value.action == action
    assert caught.value.request_id
    simulated.heal()
    if made.state == "RESCUE_MODE":
        assert "leave_migration()" in str(caught.value)
    assert cvm.leave_migration().state is InstanceState.RUNNING


@pytest.mark.parametrize("action", ["EnterRescueMode", "ExitRescueMode", "StartInstances"])
def test_an_operation_that_is_taken_and_then_fails_is_told_from_one_that_takes_long(
    simulated: TencentCloud, action: str
) -> None:
    made = add(simulated)
    cvm = instance(simulated, made)
    simulated.fail("failed-operation", action=action)

    with pytest.raises(
        InstanceStateError, match=f"{action} of {made.instance_id} was taken"
    ) as caught:
        in_and_out(cvm)

    assert caught.value.request_id
    if made.state == "RESCUE_MODE":
        assert "leave_migration()" in str(caught.value)
    assert cvm.leave_migration().state is InstanceState.RUNNING


def test_a_lost_answer_does_not_enter_twice_nor_lose_the_password(simulated: TencentCloud) -> None:
    made = add(simulated)
    cvm = instance(simulated, made)
    simulated.fail("drop-after-success", action="EnterRescueMode")

    access = cvm.enter_migration()

    assert calls(simulated, "EnterRescueMode") == 1
    assert cvm.enter_migration() == access


def test_time_that_runs_out_is_an_error_that_says_where_the_instance_may_be() -> None:
    with TencentCloud(operation_seconds=1.0) as slow:
        made = add(slow)
        cvm = instance(slow, made)

        with pytest.raises(
            DeadlineError, match=r"may be in rescue mode.*leave_migration"
        ) as caught:
            cvm.enter_migration(deadline=Deadline(0.3))

        assert caught.value.device == made.instance_id
        assert cvm.leave_migration().state is InstanceState.RUNNING


def test_calling_off_says_where_the_instance_may_be() -> None:
    with TencentCloud(operation_seconds=0.5) as slow:
        made = add(slow)
        token = CancelToken()

        def cancel(_seconds: float) -> None:
            token.cancel()

        policy = attrs.evolve(QUICK, sleep=cancel)
        cvm = instance(slow, made, policy=policy)

        with pytest.raises(CancelledError) as caught:
            cvm.enter_migration(cancel=token)

        assert "leave_migration" in str(caught.value)


def test_someone_who_enters_at_the_same_moment_is_noticed(simulated: TencentCloud) -> None:
    made = add(simulated)
    cvm = instance(simulated, made)
    simulated.fail("UnsupportedOperation.InstanceStateEnterRescueMode", action="EnterRescueMode")

    with pytest.raises(InstanceStateError, match="Wait"):
        cvm.enter_migration()


def test_health_names_what_is_wrong(simulated: TencentCloud) -> None:
    made = add(simulated)
    cvm = instance(simulated, made)

    assert cvm.health().healthy
    assert cvm.health(connect=lambda _host, _port, _timeout: True).login_reachable
    assert (
        "does not answer" in cvm.health(connect=lambda _host, _port, _timeout: False).problems[0]
    )

    made.set_state("STOPPED")
    made.set_restricted("EXPIRED")
    health = cvm.health()

    assert not health.running
    assert ["STOPPED" in health.problems[0], "EXPIRED" in health.problems[1]] == [True, True]
