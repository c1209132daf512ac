"""The simulated cloud over HTTP: faults, disks and snapshots, keys, the ledger, what is recorded."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvm_migrate.errors import InvalidRequestError, NotFoundError
from cvm_migrate.testing import SimulatedInstance, TencentCloud
from cvm_migrate.testing._faults import KINDS
from cvm_migrate.testing._tables import MOVES, STATES, move, refusal
from cvm_migrate.units import MiB
from rig.sdk import RefusedError, Sdk

pytest_plugins = ["cvm_migrate.testing.pytest_plugin"]

_PASSWORD = "One-time-password-1"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def instance(tencent_cloud: TencentCloud) -> SimulatedInstance:
    return tencent_cloud.add_instance(rescue_system="none", system_disk=MiB)


def _sdk(cloud: TencentCloud, **more: Any) -> Sdk:
    return Sdk(cloud.secret_id, cloud.secret_key, endpoint=cloud.endpoint, **more)


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as caught:
        call()
    return caught.value.code


def _eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class TestStates:
    """The tables hold over the wire too."""

    @pytest.mark.parametrize("action", [name for name in MOVES if not name.startswith("(")])
    def test_each_action_in_each_state(
        self, tencent_cloud: TencentCloud, instance: SimulatedInstance, action: str
    ) -> None:
        sdk = _sdk(tencent_cloud)
        plural = action in {"StartInstances", "StopInstances", "RebootInstances"}
        named: dict[str, Any] = (
            {"InstanceIds": [instance.instance_id]}
            if plural
            else {"InstanceId": instance.instance_id}
        )
        if action == "EnterRescueMode":
            named["Password"] = _PASSWORD
        for state in STATES:
            instance.set_state(state)
            row = move(action, state)
            if row is None:
                code = _refusal(lambda: sdk.call("cvm", action, named))
                assert (state, code) == (state, refusal(action, state))
                assert instance.state == state
            else:
                sdk.call("cvm", action, named)
                instance.wait_for(row.end)
                assert row.through in instance.history

    def test_if_one_of_several_refuses_none_begins(
        self, tencent_cloud: TencentCloud, instance: SimulatedInstance
    ) -> None:
        other = tencent_cloud.add_instance(rescue_system="none", state="STOPPED")
        ids = [instance.instance_id, other.instance_id]
        code = _refusal(lambda: _sdk(tencent_cloud).call("cvm", "StopInstances", InstanceIds=ids))

        assert code == "UnsupportedOperation.InstanceStateStopped"
        assert instance.history == ("RUNNING",)

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"architecture": "arm64"}, "UnsupportedOperation.ArmArchitecture"),
            (
                {"state": "STOPPED", "stop_charging_mode": "STOP_CHARGING"},
                "UnsupportedOperation.StoppedModeStopCharging",
            ),
            ({"restrict_state": "EXPIRED"}, "UnsupportedOperation.InstanceStateIsolating"),
        ],
        ids=["arm", "stop-charging", "expired"],
    )
    def test_what_cannot_enter_rescue_mode_is_told_why(
        self, tencent_cloud: TencentCloud, changes: dict[str, Any], code: str
    ) -> None:
        unfit = tencent_cloud.add_instance(rescue_system="none", **changes)
        params = {"InstanceId": unfit.instance_id, "Password": _PASSWORD}

        assert _refusal(lambda: _sdk(tencent_cloud).call("cvm", "EnterRescueMode", params)) == code

    def test_an_instance_is_in_its_region_only(
        self, tencent_cloud: TencentCloud, instance: SimulatedInstance
    ) -> None:
        elsewhere = _sdk(tencent_cloud, region="ap-shanghai")
        ids = [instance.instance_id]

        assert _refusal(lambda: elsewhere.call("cvm", "DescribeInstances", InstanceIds=ids)) == (
            "InvalidInstanceId.NotFound"
        )
        assert elsewhere.call("cvm", "DescribeInstances")["TotalCount"] == 0

    def test_the_consoles_migration_shows_and_refuses(
        self, tencent_cloud: TencentCloud, instance: SimulatedInstance
    ) -> None:
        instance.begin_console_migration()
        instance.wait_for("SERVICE_LIVE_MIGRATE")
        params = {"InstanceId": instance.instance_id, "Password": _PASSWORD}
        code = _refusal(lambda: _sdk(tencent_cloud).call("cvm", "EnterRescueMode", params))
        instance.end_console_migration()
        instance.wait_for("RUNNING")

        assert code == "UnsupportedOperation.InstanceStateServiceLiveMigrate"


class TestFaults:
    """Each kind does what the table says, and only once."""

    @pytest.mark.parametrize(
        "name", [name for name, kind in KINDS.items() if kind.effect != "hang"]
    )
    def test_a_fault_strikes_once_and_the_work_is_done_or_not_as_it_says(
        self, tencent_cloud: TencentCloud, instance: SimulatedInstance, name: str
    ) -> None:
        kind = KINDS[name]
        fault = tencent_cloud.fail(name, action="StopInstances")
        sdk = _sdk(tencent_cloud)
        ids = [instance.instance_id]
        if kind.effect == "failed-operation":
            sdk.call("cvm", "StopInstances", InstanceIds=ids)
            assert _eventually(lambda: instance.history == ("RUNNING", "STOPPING", "RUNNING"))
        else:
            code = _refusal(lambda: sdk.call("cvm", "StopInstances", InstanceIds=ids))
            if kind.effect == "code":
                assert code == kind.value
            assert ("STOPPING" in instance.history) is kind.after
        if kind.after:
            instance.wait_for("STOPPED")
        else:
            sdk.call("cvm", "StopInstances", InstanceIds=ids)
            instance.wait_for("STOPPED")

        assert fault.hits == 1
        assert tencent_cloud.requests[0].fault == kind.effect

    @pytest.mark.parametrize(
        "name", [name for name, kind in KINDS.items() if kind.effect == "hang"]
    )
    def test_a_caller_that_gives_up_finds_the_work_done_or_not_as_the_kind_says(
        self, tencent_cloud: TencentCloud, instance: SimulatedInstance, name: str
    ) -> None:
        fault = tencent_cloud.fail(name, action="StopInstances")
        impatient = _sdk(tencent_cloud, timeout=1)
        ids = [instance.instance_id]

        assert _refusal(lambda: impatient.call("cvm", "StopInstances", InstanceIds=ids)) == (
            "ClientNetworkError"
        )
        # A busy machine may get to the work only after the caller has given up.
        assert _eventually(lambda: fault.hits == 1)
        assert _eventually(lambda: ("STOPPING" in instance.history) is KINDS[name].after)

    def test_a_silent_cloud_can_be_closed(self) -> None:
        outcome: list[str] = []
        with TencentCloud() as cloud:
            cloud.fail("timeout")
            sdk = _sdk(cloud, timeout=60)

            def call() -> None:
                outcome.append(_refusal(lambda: sdk.call("cvm", "DescribeInstances")))

            caller = threading.Thread(target=call)
            caller.start()
            assert _eventually(lambda: len(cloud.requests) == 1)
        caller.join(60)

        assert outcome == ["ClientNetworkError"]

    def test_healing_forgets_faults(self, tencent_cloud: TencentCloud) -> None:
        tencent_cloud.fail("internal", times=None)
        tencent_cloud.heal()

        assert _sdk(tencent_cloud).call("cvm", "DescribeInstances")["TotalCount"] == 0

    def test_clocks_that_are_too_far_apart_are_an_expired_signature(
        self, tencent_cloud: TencentCloud
    ) -> None:
        tencent_cloud.clock_offset = 400

        assert _refusal(lambda: _sdk(tencent_cloud).call("cvm", "DescribeInstances")) == (
            "AuthFailure.SignatureExpire"
        )


class TestKeys:
    """Who may call."""

    def test_the_keys_of_a_role_work_until_they_are_ended(
        self, tencent_cloud: TencentCloud
    ) -> None:
        arn = tencent_cloud.add_role("migrator")
        answer = _sdk(tencent_cloud).call(
            "sts", "AssumeRole", RoleArn=arn, RoleSessionName="test", DurationSeconds=900
        )
        keys = answer["Credentials"]
        role = Sdk(
            keys["TmpSecretId"],
            keys["TmpSecretKey"],
            keys["Token"],
            endpoint=tencent_cloud.endpoint,
        )
        identity = role.call("sts", "GetCallerIdentity")
        ended = tencent_cloud.expire_tokens()

        assert identity["Type"] == "CAMRole"
        assert ended == 1
        assert (
            _refusal(lambda: role.call("sts", "GetCallerIdentity")) == "AuthFailure.TokenFailure"
        )

    def test_a_role_that_is_not_there_cannot_be_assumed(self, tencent_cloud: TencentCloud) -> None:
        arn = f"qcs::cam::uin/{tencent_cloud.account}:roleName/nobody"
        code = _refusal(
            lambda: _sdk(tencent_cloud).call(
                "sts", "AssumeRole", RoleArn=arn, RoleSessionName="test"
            )
        )

        assert code == "ResourceNotFound.RoleNotFound"

    def test_the_metadata_service_gives_a_roles_keys(self, tencent_cloud: TencentCloud) -> None:
        tencent_cloud.add_role("migrator")
        folder = f"{tencent_cloud.metadata_url}/cam/security-credentials/"
        (name,) = _get(folder).split()
        keys = json.loads(_get(folder + name))
        role = Sdk(
            keys["TmpSecretId"],
            keys["TmpSecretKey"],
            keys["Token"],
            endpoint=tencent_cloud.endpoint,
        )

        assert keys["Code"] == "Success"
        assert keys["ExpiredTime"] > time.time()
        assert role.call("sts", "GetCallerIdentity")["Type"] == "CAMRole"

    def test_the_metadata_service_knows_no_role_where_there_is_none(
        self, tencent_cloud: TencentCloud
    ) -> None:
        with pytest.raises(urllib.error.HTTPError) as caught:
            _get(f"{tencent_cloud.metadata_url}/cam/security-credentials/")
        caught.value.close()

        assert caught.value.code == 404


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - http to this machine
        return str(answer.read().decode())


class TestDisks:
    """Snapshots are copies of the file, and bring it back."""

    def _snapshot(self, cloud: TencentCloud, disk_id: str) -> str:
        sdk = _sdk(cloud)
        made = sdk.call("cbs", "CreateSnapshot", DiskId=disk_id, SnapshotName="before")
        snapshot_id = str(made["SnapshotId"])

        def ready() -> bool:
            answer = sdk.call("cbs", "DescribeSnapshots", SnapshotIds=[snapshot_id])
            return bool(answer["SnapshotSet"][0]["SnapshotState"] == "NORMAL")

        assert _eventually(ready)
        return snapshot_id

    def test_a_snapshot_brings_the_disk_back_as_it_was(self, tencent_cloud: TencentCloud) -> None:
        instance = tencent_cloud.add_instance(
            rescue_system="none", system_disk=MiB, state="STOPPED"
        )
        (disk,) = instance.disks
        _write(disk.path, b"before")
        inode = disk.path.stat().st_ino
        snapshot_id = self._snapshot(tencent_cloud, disk.disk_id)
        _write(disk.path, b"after!")
        sdk = _sdk(tencent_cloud)
        sdk.call("cbs", "ApplySnapshot", SnapshotId=snapshot_id, DiskId=disk.disk_id)

        def done() -> bool:
            answer = sdk.call("cbs", "DescribeDisks", DiskIds=[disk.disk_id])
            return bool(answer["DiskSet"][0]["DiskState"] == "ATTACHED")

        assert _eventually(done)
        content = disk.path.read_bytes()
        assert content == b"before".ljust(MiB, b"\0")
        assert disk.path.stat().st_ino == inode

    def test_a_snapshot_is_the_disk_at_the_moment_of_the_call(
        self, tencent_cloud: TencentCloud, instance: SimulatedInstance
    ) -> None:
        (disk,) = instance.disks
        _write(disk.path, b"before")
        made = _sdk(tencent_cloud).call("cbs", "CreateSnapshot", DiskId=disk.disk_id)
        _write(disk.path, b"after!")

        assert (disk.path.parent / f"{made['SnapshotId']}.img").read_bytes()[:6] == b"before"

    def test_a_disk_in_use_is_not_rolled_back(
        self, tencent_cloud: TencentCloud, instance: SimulatedInstance
    ) -> None:
        (disk,) = instance.disks
        snapshot_id = self._snapshot(tencent_cloud, disk.disk_id)
        params = {"SnapshotId": snapshot_id, "DiskId": disk.disk_id}

        assert _refusal(lambda: _sdk(tencent_cloud).call("cbs", "ApplySnapshot", params)) == (
            "InvalidDisk.Busy"
        )

    def test_the_quota_of_snapshots_is_each_disks_own_and_ends(self) -> None:
        with TencentCloud(operation_seconds=0.01, snapshot_quota=1) as cloud:
            instance = cloud.add_instance(rescue_system="none", system_disk=MiB, data_disks=[MiB])
            disk_id, other_id = (disk.disk_id for disk in instance.disks)
            cloud.add_snapshot(other_id)
            snapshot_id = self._snapshot(cloud, disk_id)
            sdk = _sdk(cloud)
            code = _refusal(lambda: sdk.call("cbs", "CreateSnapshot", DiskId=disk_id))
            sdk.call("cbs", "DeleteSnapshots", SnapshotIds=[snapshot_id])

            assert code == "InsufficientSnapshotQuota"
            assert sdk.call("cbs", "DescribeSnapshots")["TotalCount"] == 1
            assert self._snapshot(cloud, disk_id)

    def test_a_local_disk_knows_no_snapshots(self, tencent_cloud: TencentCloud) -> None:
        instance = tencent_cloud.add_instance(
            rescue_system="none", system_disk=MiB, disk_type="LOCAL_BASIC"
        )
        disk_id = instance.disks[0].disk_id

        assert _refusal(
            lambda: _sdk(tencent_cloud).call("cbs", "CreateSnapshot", DiskId=disk_id)
        ) == ("InvalidDisk.NotSupportSnapshot")

    def test_a_data_disk_goes_and_comes_back_and_a_system_disk_stays(
        self, tencent_cloud: TencentCloud
    ) -> None:
        instance = tencent_cloud.add_instance(
            rescue_system="none", system_disk=MiB, data_disks=[MiB]
        )
        system, data = (disk.disk_id for disk in instance.disks)
        sdk = _sdk(tencent_cloud)

        def state() -> str:
            answer = sdk.call("cbs", "DescribeDisks", DiskIds=[data])
            return str(answer["DiskSet"][0]["DiskState"])

        sdk.call("cbs", "DetachDisks", DiskIds=[data])
        assert _eventually(lambda: state() == "UNATTACHED")
        assert [disk.disk_id for disk in instance.disks] == [system]
        sdk.call("cbs", "AttachDisks", InstanceId=instance.instance_id, DiskIds=[data])
        assert _eventually(lambda: state() == "ATTACHED")
        assert [disk.disk_id for disk in instance.disks] == [system, data]
        assert _refusal(lambda: sdk.call("cbs", "DetachDisks", DiskIds=[system])) == (
            "InvalidDisk.NotPortable"
        )

    def test_a_size_is_shown_in_whole_gib_rounded_up(
        self, tencent_cloud: TencentCloud, instance: SimulatedInstance
    ) -> None:
        answer = _sdk(tencent_cloud).call(
            "cbs", "DescribeDisks", DiskIds=[instance.disks[0].disk_id]
        )

        assert answer["DiskSet"][0]["DiskSize"] == 1
        assert instance.disks[0].size == MiB


def _write(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


def test_the_callers_own_address_can_be_named_in_a_rule(tencent_cloud: TencentCloud) -> None:
    group = tencent_cloud.add_security_group()
    rule = {"Protocol": "TCP", "Port": "443", "CidrBlock": "MY_PUBLIC_IP", "Action": "ACCEPT"}
    sdk = _sdk(tencent_cloud)
    sdk.call(
        "vpc",
        "CreateSecurityGroupPolicies",
        SecurityGroupId=group,
        SecurityGroupPolicySet={"Ingress": [rule]},
    )
    answer = sdk.call("vpc", "DescribeSecurityGroupPolicies", SecurityGroupId=group)

    assert answer["SecurityGroupPolicySet"]["Ingress"][0]["CidrBlock"] == "127.0.0.1"


def test_the_ledger_keeps_what_became_of_a_migration(tencent_cloud: TencentCloud) -> None:
    place = {"Region": "ap-guangzhou"}
    sdk = _sdk(tencent_cloud)
    task = sdk.call(
        "msp",
        "RegisterMigrationTask",
        TaskType="host",
        TaskName="move",
        ServiceSupplier="cvm_migrate",
        CreateTime="2025-01-01 00:00:00",
        UpdateTime="2025-01-01 00:00:00",
        MigrateClass="host",
        SrcInfo=place,
        DstInfo=place,
    )["TaskId"]
    for status in ("migrating", "finish"):
        sdk.call("msp", "ModifyMigrationTaskStatus", TaskId=task, Status=status)
    answer = sdk.call("msp", "DescribeMigrationTask", TaskId=task)

    assert [one["Status"] for one in answer["TaskStatus"]] == ["unstart", "migrating", "finish"]


def test_what_is_recorded_has_no_password_and_no_key(
    tencent_cloud: TencentCloud, instance: SimulatedInstance
) -> None:
    _sdk(tencent_cloud).call(
        "cvm", "EnterRescueMode", InstanceId=instance.instance_id, Password=_PASSWORD
    )
    (request,) = tencent_cloud.requests

    assert request.action == "EnterRescueMode"
    assert request.params["InstanceId"] == instance.instance_id
    assert request.code is None
    assert _PASSWORD not in repr(request)
    assert tencent_cloud.secret_key not in repr(request)
    assert tencent_cloud.secret_key not in repr(tencent_cloud.credentials)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"{}"),
        ({"Authorization": "nonsense"}, b"not json"),
        ({"X-TC-Timestamp": "9" * 40}, b""),
    ],
)
def test_nonsense_gets_an_error_and_the_server_lives(
    tencent_cloud: TencentCloud, headers: dict[str, str], body: bytes
) -> None:
    connection = http.client.HTTPConnection(tencent_cloud.endpoint.removeprefix("http://"))
    try:
        connection.request("POST", "/", body, headers)
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()

    assert answer["Response"]["Error"]["Code"] == "AuthFailure.InvalidAuthorization"
    assert _sdk(tencent_cloud).call("cvm", "DescribeInstances")["TotalCount"] == 0


def test_its_folder_and_its_threads_are_gone_afterwards() -> None:
    before = set(threading.enumerate())
    with TencentCloud() as cloud:
        instance = cloud.add_instance(rescue_system="none")
        _sdk(cloud).call("cvm", "StopInstances", InstanceIds=[instance.instance_id])
        folder = instance.disks[0].path.parent
        assert folder.is_dir()

    assert not folder.exists()
    assert set(threading.enumerate()) <= before


def test_what_cannot_be_is_refused_when_it_is_made(tencent_cloud: TencentCloud) -> None:
    with pytest.raises(InvalidRequestError, match="nowhere"):
        tencent_cloud.add_instance(region="nowhere")
    with pytest.raises(InvalidRequestError, match="SLEEPING"):
        tencent_cloud.add_instance(state="SLEEPING")
    with pytest.raises(NotFoundError, match="no-such-file"):
        tencent_cloud.add_instance(system_disk=Path("no-such-file"))
    with pytest.raises(InvalidRequestError, match="with"):
        _ = TencentCloud().endpoint


def test_the_command_line_says_all_a_caller_needs_and_ends_when_interrupted() -> None:
    command = [sys.executable, "-m", "cvm_migrate.testing"]
    options = ["--rescue-system", "none", "--state", "STOPPED", "--operation-seconds", "0.01"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None
    try:
        facts = json.loads(process.stdout.readline())
        sdk = Sdk(
            facts["secret_id"],
            facts["secret_key"],
            endpoint=facts["endpoint"],
            region=facts["region"],
        )
        answer = sdk.call("cvm", "DescribeInstancesStatus", InstanceIds=[facts["instance_id"]])
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

    assert answer["InstanceStatusSet"][0]["InstanceState"] == "STOPPED"
    assert code == 0
    assert not Path(facts["disks"][0]).exists()


def test_the_command_line_refuses_a_disk_that_is_none() -> None:
    command = [sys.executable, "-m", "cvm_migrate.testing", "--system-disk", "no-such-file"]
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)

    assert done.returncode == 2
    assert b"neither a file nor a size" in done.stderr
