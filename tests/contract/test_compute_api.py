"""What the API does, checked through Tencent's SDK: on the simulator, and on the real service with ``-m cloud``.

The real service needs ``TENCENTCLOUD_SECRET_ID``, ``TENCENTCLOUD_SECRET_KEY`` (and ``TENCENTCLOUD_TOKEN``, if they are
temporary), ``CVM_MIGRATE_TEST_REGION`` and ``CVM_MIGRATE_TEST_INSTANCE``: an instance that is there for nothing else.
It is stopped and started, and a snapshot of its disk is made and deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from cvm_migrate.testing import TencentCloud
from rig.sdk import RefusedError, Sdk


@attrs.frozen
class Compute:
    """An account with an instance, and how to call it."""

    sdk: Callable[..., Sdk]
    secret_id: str
    secret_key: str
    instance_id: str
    patience: float

    def call(self, service: str, action: str, **params: Any) -> dict[str, Any]:
        return self.sdk(self.secret_id, self.secret_key).call(service, action, params)

    def state(self) -> str:
        answer = self.call("cvm", "DescribeInstancesStatus", InstanceIds=[self.instance_id])
        return str(answer["InstanceStatusSet"][0]["InstanceState"])

    def wait_for(self, state: str) -> None:
        end = time.monotonic() + self.patience
        while (now := self.state()) != state:
            assert time.monotonic() < end, f"{now}, not {state}"
            time.sleep(self.patience / 2000)


def _service() -> Compute:
    own_id = os.environ.get("TENCENTCLOUD_SECRET_ID", "")
    own_key = os.environ.get("TENCENTCLOUD_SECRET_KEY", "")
    region = os.environ.get("CVM_MIGRATE_TEST_REGION", "")
    instance_id = os.environ.get("CVM_MIGRATE_TEST_INSTANCE", "")
    if not all((own_id, own_key, region, instance_id)):
        pytest.skip("no credentials, region and instance of a real account are set")

    def sdk(secret_id: str, secret_key: str, **more: Any) -> Sdk:
        # A wrong key has no token either.
        token = os.environ.get("TENCENTCLOUD_TOKEN") if secret_key == own_key else None
        options: dict[str, Any] = {"endpoint": None, "region": region, "token": token, **more}
        return Sdk(secret_id, secret_key, **options)

    return Compute(sdk, own_id, own_key, instance_id, patience=900)


@pytest.fixture(params=["simulator", pytest.param("service", marks=pytest.mark.cloud)])
def compute(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compute]:
    if request.param == "service":
        yield _service()
        return
    # The SDK would send what is meant for this machine through a proxy.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with TencentCloud(operation_seconds=0.05) as cloud:
        instance = cloud.add_instance(rescue_system="none")
        cloud.add_template_group([cloud.add_address_template(["10.0.0.1", "10.0.1.0/24"])])
        cloud.add_template_group([cloud.add_service_template(["tcp:80,443"])])

        def sdk(secret_id: str, secret_key: str, **more: Any) -> Sdk:
            return Sdk(secret_id, secret_key, endpoint=cloud.endpoint, **more)

        yield Compute(sdk, cloud.secret_id, cloud.secret_key, instance.instance_id, patience=60)


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as caught:
        call()
    return caught.value.code


def test_a_wrong_key_is_a_wrong_signature(compute: Compute) -> None:
    caller = compute.sdk(compute.secret_id, "x" * 32)

    assert _refusal(lambda: caller.call("cvm", "DescribeInstances")) == (
        "AuthFailure.SignatureFailure"
    )


def test_an_id_that_is_not_known_is_named_as_the_cause(compute: Compute) -> None:
    caller = compute.sdk("AKID" + "x" * 32, compute.secret_key)

    assert _refusal(lambda: caller.call("cvm", "DescribeInstances")) == (
        "AuthFailure.SecretIdNotFound"
    )


def test_a_region_that_is_not_known_is_refused(compute: Compute) -> None:
    caller = compute.sdk(compute.secret_id, compute.secret_key, region="ap-nowhere")

    assert _refusal(lambda: caller.call("cvm", "DescribeInstances")) == "UnsupportedRegion"


def test_an_action_that_is_not_known_is_refused(compute: Compute) -> None:
    assert _refusal(lambda: compute.call("cvm", "EnterRescueModes")) == "InvalidAction"


def test_the_caller_learns_who_it_is(compute: Compute) -> None:
    answer = compute.call("sts", "GetCallerIdentity")

    assert answer["AccountId"].isdigit()
    assert answer["Arn"].startswith("qcs::")


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_an_instance_is_described_whatever_the_method(compute: Compute, method: str) -> None:
    caller = compute.sdk(compute.secret_id, compute.secret_key, method=method)
    answer = caller.call("cvm", "DescribeInstances", InstanceIds=[compute.instance_id])

    assert answer["TotalCount"] == 1
    (instance,) = answer["InstanceSet"]
    assert instance["InstanceId"] == compute.instance_id
    assert instance["SystemDisk"]["DiskId"].startswith("disk-")
    assert instance["SystemDisk"]["DiskSize"] >= 1
    assert instance["RestrictState"] == "NORMAL"
    assert instance["Placement"]["Zone"].startswith("ap-")
    assert isinstance(instance["PrivateIpAddresses"], list)


def test_filters_find_what_ids_find(compute: Compute) -> None:
    filters = [{"Name": "instance-id", "Values": [compute.instance_id]}]
    answer = compute.call("cvm", "DescribeInstances", Filters=filters)

    assert [one["InstanceId"] for one in answer["InstanceSet"]] == [compute.instance_id]


def test_ids_and_filters_do_not_go_together(compute: Compute) -> None:
    filters = [{"Name": "instance-id", "Values": [compute.instance_id]}]
    code = _refusal(
        lambda: compute.call(
            "cvm", "DescribeInstances", InstanceIds=[compute.instance_id], Filters=filters
        )
    )

    assert code.startswith("InvalidParameter")


def test_the_disks_of_an_instance_are_those_of_cbs(compute: Compute) -> None:
    described = compute.call("cvm", "DescribeInstances", InstanceIds=[compute.instance_id])
    (instance,) = described["InstanceSet"]
    disk_id = instance["SystemDisk"]["DiskId"]
    answer = compute.call("cbs", "DescribeDisks", DiskIds=[disk_id])

    (disk,) = answer["DiskSet"]
    assert disk["InstanceId"] == compute.instance_id
    assert disk["DiskUsage"] == "SYSTEM_DISK"
    assert disk["DiskState"] == "ATTACHED"
    assert disk["DiskSize"] == instance["SystemDisk"]["DiskSize"]


@pytest.mark.parametrize(
    ("instance_id", "codes"),
    [
        ("ins-00000000", {"InvalidInstanceId.NotFound"}),
        (
            "no-instance",
            {"InvalidInstanceId.Malformed", "InvalidParameterValue.InstanceIdMalformed"},
        ),
    ],
)
def test_an_instance_that_is_not_there_is_said_not_to_be(
    compute: Compute, instance_id: str, codes: set[str]
) -> None:
    code = _refusal(lambda: compute.call("cvm", "ExitRescueMode", InstanceId=instance_id))

    assert code in codes


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, "MissingParameter"),
        ({"InstanceId": "ins-00000000", "Colour": "red"}, "UnknownParameter"),
        ({"InstanceId": 5}, "InvalidParameter"),
    ],
)
def test_parameters_are_checked_before_anything_else(
    compute: Compute, params: dict[str, Any], code: str
) -> None:
    assert _refusal(lambda: compute.call("cvm", "ExitRescueMode", **params)) == code


@pytest.mark.parametrize("password", ["short1", "onlyletters", "x1" * 16])
def test_a_password_must_be_a_good_one(compute: Compute, password: str) -> None:
    code = _refusal(
        lambda: compute.call(
            "cvm", "EnterRescueMode", InstanceId=compute.instance_id, Password=password
        )
    )

    assert code in {"InvalidPassword", "InvalidParameterValue.InvalidPassword"}


def test_rescue_mode_is_not_left_by_who_is_not_in_it(compute: Compute) -> None:
    state = compute.state()
    code = _refusal(lambda: compute.call("cvm", "ExitRescueMode", InstanceId=compute.instance_id))

    assert code == f"UnsupportedOperation.InstanceState{state.capitalize()}"


@pytest.mark.timeout(3600)
def test_the_way_through_rescue_mode(compute: Compute) -> None:
    """Entering, what is refused inside, leaving to STOPPED, and starting."""
    ids = {"InstanceIds": [compute.instance_id]}
    if compute.state() == "STOPPED":
        compute.call("cvm", "StartInstances", **ids)
        compute.wait_for("RUNNING")

    entered = compute.call(
        "cvm",
        "EnterRescueMode",
        InstanceId=compute.instance_id,
        Password="one-time-Password-1",
        StopType="SOFT_FIRST",
    )
    compute.wait_for("RESCUE_MODE")

    described = compute.call("cvm", "DescribeInstances", **ids)
    (instance,) = described["InstanceSet"]
    assert instance["LatestOperation"] == "EnterRescueMode"
    assert instance["LatestOperationState"] == "SUCCESS"
    assert instance["LatestOperationRequestId"] == entered["RequestId"]
    refused = "UnsupportedOperation.InstanceStateRescueMode"
    assert _refusal(lambda: compute.call("cvm", "StartInstances", **ids)) == refused
    assert _refusal(lambda: compute.call("cvm", "StopInstances", **ids)) == refused
    again = {"InstanceId": compute.instance_id, "Password": "one-time-Password-2"}
    assert _refusal(lambda: compute.call("cvm", "EnterRescueMode", **again)) == refused

    compute.call("cvm", "ExitRescueMode", InstanceId=compute.instance_id)
    compute.wait_for("STOPPED")
    compute.call("cvm", "StartInstances", **ids)
    compute.wait_for("RUNNING")


def test_a_snapshot_is_made_found_by_its_disk_and_deleted(compute: Compute) -> None:
    answer = compute.call("cvm", "DescribeInstances", InstanceIds=[compute.instance_id])
    disk = answer["InstanceSet"][0]["SystemDisk"]["DiskId"]

    def listed(name: str, value: str) -> dict[str, str]:
        wanted = [{"Name": name, "Values": [value]}]
        found = compute.call("cbs", "DescribeSnapshots", Filters=wanted, Limit=100)["SnapshotSet"]
        return {one["SnapshotId"]: one["SnapshotState"] for one in found}

    made = compute.call(
        "cbs", "CreateSnapshot", DiskId=disk, SnapshotName="cvm_migrate conformance"
    )["SnapshotId"]
    try:
        end = time.monotonic() + compute.patience
        while listed("snapshot-id", made).get(made) != "NORMAL":
            assert time.monotonic() < end
            time.sleep(compute.patience / 2000)
        assert made in listed("disk-id", disk)
    finally:
        compute.call("cbs", "DeleteSnapshots", SnapshotIds=[made])
    end = time.monotonic() + compute.patience
    while listed("snapshot-id", made).get(made, "TORECYCLE") != "TORECYCLE":
        assert time.monotonic() < end
        time.sleep(compute.patience / 2000)


def test_a_rule_comes_and_goes_and_versions_guard_it(compute: Compute) -> None:
    described = compute.call("cvm", "DescribeInstances", InstanceIds=[compute.instance_id])
    group = described["InstanceSet"][0]["SecurityGroupIds"][0]
    policy = {
        "PolicyIndex": 0,
        "Protocol": "TCP",
        "Port": "44321",
        "CidrBlock": "198.51.100.7",
        "Action": "ACCEPT",
        "PolicyDescription": "cvm_migrate contract test",
    }

    def read() -> tuple[str, list[dict[str, Any]]]:
        answer = compute.call("vpc", "DescribeSecurityGroupPolicies", SecurityGroupId=group)
        policies = answer["SecurityGroupPolicySet"]
        return policies["Version"], policies["Ingress"]

    def change(action: str, version: str, rule: dict[str, Any]) -> None:
        compute.call(
            "vpc",
            action,
            SecurityGroupId=group,
            SecurityGroupPolicySet={"Version": version, "Ingress": [rule]},
        )

    first, before = read()
    change("CreateSecurityGroupPolicies", first, policy)
    second, with_rule = read()
    try:
        assert second != first
        assert with_rule[0]["Port"] == "44321"
        assert with_rule[0]["PolicyIndex"] == 0
        assert len(with_rule) == len(before) + 1
        assert _refusal(lambda: change("DeleteSecurityGroupPolicies", first, policy)) == (
            "UnsupportedOperation.VersionMismatch"
        )
        assert _refusal(lambda: change("CreateSecurityGroupPolicies", second, policy)) == (
            "UnsupportedOperation.DuplicatePolicy"
        )
    finally:
        change("DeleteSecurityGroupPolicies", read()[0], {"PolicyIndex": 0})
    assert [rule["Port"] for rule in read()[1]] == [rule["Port"] for rule in before]


@pytest.mark.parametrize("kind", ["Address", "Service"])
@pytest.mark.parametrize("group", ["", "Group"])
def test_templates_are_found_by_id_and_numbers_are_texts(
    compute: Compute, kind: str, group: str
) -> None:
    """An account may have none."""
    action, name = f"Describe{kind}Template{group}s", f"{kind}Template{group}"
    key = f"{kind.lower()}-template{group and '-group'}-id"
    listed = compute.call("vpc", action, Offset="0", Limit="1")
    missing = {"address": "ipm", "service": "ppm"}[kind.lower()] + ("g" if group else "")
    filters = [{"Name": key, "Values": [f"{missing}-00000000"]}]

    assert len(listed[f"{name}Set"]) == min(1, listed["TotalCount"])
    assert compute.call("vpc", action, Filters=filters)[f"{name}Set"] == []
    assert _refusal(lambda: compute.call("vpc", action, Limit=1)).startswith("InvalidParameter")
    for one in listed[f"{name}Set"]:
        filters[0]["Values"] = [one[f"{name}Id"]]
        (same,) = compute.call("vpc", action, Filters=filters, Limit="5")[f"{name}Set"]
        members = same[f"{kind}TemplateIdSet" if group else f"{kind}Set"]
        assert same[f"{name}Id"] == one[f"{name}Id"]
        assert members
        assert all(isinstance(member, str) for member in members)
