"""One method for each call of the API that we use, without policy: no retry, no waiting, no reading of the answer."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import attrs

from cvm_migrate.cloud._credentials import CredentialSource, Secrets
from cvm_migrate.cloud._errors import error_from
from cvm_migrate.cloud._http import CloudEndpoint, Transport
from cvm_migrate.cloud._json import JsonObject
from cvm_migrate.errors import CvmMigrateError, DefectError, InvalidRequestError, UnsupportedError

_log: Final = logging.getLogger("cvm_migrate.cloud")

VERSIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cvm": "2017-03-12",
        "cbs": "2017-03-12",
        "vpc": "2017-03-12",
        "sts": "2018-08-13",
        "msp": "2018-03-19",
    }
)

_import_lock: Final = threading.Lock()


@attrs.frozen
class _Sdk:
    """The three classes of the SDK that we use; the SDK has no types."""

    client: Any
    client_profile: Any
    http_profile: Any
    exception: type[Exception]


def _load_sdk() -> _Sdk:
    """Import the SDK, and keep what its import does to the process's warnings from lasting.

    Raises:
        UnsupportedError: It is not installed, or only half of it.
    """
    try:
        with _import_lock, warnings.catch_warnings():
            common: Any = importlib.import_module("tencentcloud.common.common_client")
            client: Any = importlib.import_module("tencentcloud.common.profile.client_profile")
            http: Any = importlib.import_module("tencentcloud.common.profile.http_profile")
            exception: Any = importlib.import_module(
                "tencentcloud.common.exception.tencent_cloud_sdk_exception"
            )
    except (ImportError, AttributeError) as error:
        # Removing one of the SDK's split packages takes a file of all others with it: AttributeError.
        raise UnsupportedError(
            f"Tencent's SDK cannot be imported: {error}",
            remedy="Install it again: pip install --force-reinstall tencentcloud-sdk-python",
        ) from error
    return _Sdk(
        _quiet(common.CommonClient),
        client.ClientProfile,
        http.HttpProfile,
        exception.TencentCloudSDKException,
    )


def _quiet(base: Any) -> Any:  # noqa: ANN401 - the SDK has no types
    """Return the SDK's client without the deprecation warning that its signing causes since Python 3.12."""
    if sys.hexversion < 0x030C0000:
        return base

    def sign(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as above
        # Only around the signing: filters are the whole process's, and a call may take a minute.
        with _import_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            base._build_req_with_tc3_signature(self, *args, **kwargs)  # noqa: SLF001 - its only seam

    return type("QuietClient", (base,), {"_build_req_with_tc3_signature": sign})


class _Signer:
    """The keys of one call as the SDK asks for them."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def get_credential_info(self) -> tuple[str, str, str | None]:
        return self._secrets.secret_id, self._secrets.secret_key, self._secrets.token


class CloudClient:
    """The API of one region; safe to use from several threads.

    Every method returns the answer's ``Response`` as it came, and raises the error that the code is mapped to
    (see ``docs/reference/cloud.md``) after one attempt.

    Args:
        credentials: Where the keys come from; asked at each call.
        region: Such as ``ap-guangzhou``.
        endpoint: Where and how the API is reached.
    """

    def __init__(
        self,
        credentials: CredentialSource,
        region: str,
        endpoint: CloudEndpoint | str | None = None,
    ) -> None:
        self.credentials = credentials
        self.region = region
        self.endpoint = CloudEndpoint.of(endpoint)
        self._skew: float | None = None

    def __repr__(self) -> str:
        """Show where it calls."""
        return f"CloudClient(region={self.region!r}, endpoint={self.endpoint!r})"

    @property
    def clock_skew(self) -> float | None:
        """This machine's clock minus the API's in seconds, to about a second; ``None`` before the first answer."""
        return self._skew

    def call(
        self,
        service: str,
        action: str,
        params: JsonObject,
        *,
        device: str | None = None,
        secrets: Sequence[str] = (),
    ) -> JsonObject:
        """Make any call.

        Args:
            service: Such as ``cvm``.
            action: Such as ``DescribeInstances``.
            params: Its parameters.
            device: What it is about, for messages.
            secrets: Values among the parameters that must be in no message.

        Raises:
            CvmMigrateError: The API refused, or no answer came.
        """
        sdk = _load_sdk()
        keys = self.credentials.get()
        scheme, host = self.endpoint.address(service)
        hidden = (keys.secret_key, keys.token or "", *secrets)
        transport = Transport(
            self.endpoint, scheme=scheme, action=action, device=device, secrets=hidden
        )
        http = sdk.http_profile(protocol=scheme, endpoint=host)
        profile = sdk.client_profile(
            httpProfile=http, language="en-US", request_client="cvm_migrate"
        )
        client = sdk.client(service, VERSIONS[service], _Signer(keys), self.region, profile)
        client.request = transport
        began = time.monotonic()
        try:
            answer: Any = client.call_json(action, params)
        except sdk.exception as error:
            code = str(getattr(error, "code", None) or "ClientError")
            message = str(getattr(error, "message", ""))
            mapped = error_from(code, message, action=action, device=device, secrets=hidden)
            raise DefectError(mapped.message, code=code, action=action) from None
        except CvmMigrateError as error:
            _log.debug("%s: %s after %.2f s", action, error.code, time.monotonic() - began)
            raise
        finally:
            if transport.server_time is not None and transport.answered_at is not None:
                # The header has whole seconds, cut off.
                self._skew = transport.answered_at - transport.server_time - 0.5
        response: JsonObject = answer["Response"]
        _log.debug(
            "%s: done in %.2f s, request id %s",
            action,
            time.monotonic() - began,
            response.get("RequestId"),
        )
        return response

    # CVM

    def describe_instances(self, instance_id: str) -> JsonObject:
        """``DescribeInstances`` of one instance."""
        return self.call(
            "cvm", "DescribeInstances", {"InstanceIds": [instance_id]}, device=instance_id
        )

    def describe_instances_status(self, instance_id: str) -> JsonObject:
        """``DescribeInstancesStatus`` of one instance."""
        return self.call(
            "cvm", "DescribeInstancesStatus", {"InstanceIds": [instance_id]}, device=instance_id
        )

    def enter_rescue_mode(self, instance_id: str, password: str, stop_type: str) -> JsonObject:
        """``EnterRescueMode``; *stop_type* is ``SOFT``, ``SOFT_FIRST`` or ``HARD``."""
        return self.call(
            "cvm",
            "EnterRescueMode",
            {"InstanceId": instance_id, "Password": password, "StopType": stop_type},
            device=instance_id,
            secrets=(password,),
        )

    def exit_rescue_mode(self, instance_id: str) -> JsonObject:
        """``ExitRescueMode``."""
        return self.call("cvm", "ExitRescueMode", {"InstanceId": instance_id}, device=instance_id)

    def start_instances(self, instance_id: str) -> JsonObject:
        """``StartInstances`` of one instance."""
        return self.call(
            "cvm", "StartInstances", {"InstanceIds": [instance_id]}, device=instance_id
        )

    def stop_instances(self, instance_id: str, stop_type: str) -> JsonObject:
        """``StopInstances`` of one instance, in the mode that goes on being charged for."""
        return self.call(
            "cvm",
            "StopInstances",
            {"InstanceIds": [instance_id], "StopType": stop_type, "StoppedMode": "KEEP_CHARGING"},
            device=instance_id,
        )

    def reboot_instances(self, instance_id: str, stop_type: str) -> JsonObject:
        """``RebootInstances`` of one instance."""
        return self.call(
            "cvm",
            "RebootInstances",
            {"InstanceIds": [instance_id], "StopType": stop_type},
            device=instance_id,
        )

    # CBS

    def describe_disks(self, disk_ids: Sequence[str]) -> JsonObject:
        """``DescribeDisks`` by id, at most 100."""
        return self.call(
            "cbs",
            "DescribeDisks",
            {"DiskIds": list(disk_ids), "Limit": 100},
            device=", ".join(disk_ids),
        )

    def create_snapshot(self, disk_id: str, name: str, delete_at: str | None) -> JsonObject:
        """``CreateSnapshot``; *delete_at* is ISO 8601 in UTC, at least a day ahead."""
        params: JsonObject = {"DiskId": disk_id, "SnapshotName": name}
        if delete_at is not None:
            params["Deadline"] = delete_at
        return self.call("cbs", "CreateSnapshot", params, device=disk_id)

    def describe_snapshots(self, filters: Mapping[str, str], offset: int = 0) -> JsonObject:
        """``DescribeSnapshots`` by filters, a page of 100."""
        listed = [{"Name": name, "Values": [value]} for name, value in filters.items()]
        return self.call(
            "cbs", "DescribeSnapshots", {"Filters": listed, "Limit": 100, "Offset": offset}
        )

    def apply_snapshot(self, snapshot_id: str, disk_id: str) -> JsonObject:
        """``ApplySnapshot``: the disk becomes again what it was."""
        return self.call(
            "cbs", "ApplySnapshot", {"SnapshotId": snapshot_id, "DiskId": disk_id}, device=disk_id
        )

    def delete_snapshots(self, snapshot_ids: Sequence[str]) -> JsonObject:
        """``DeleteSnapshots``."""
        return self.call(
            "cbs",
            "DeleteSnapshots",
            {"SnapshotIds": list(snapshot_ids)},
            device=", ".join(snapshot_ids),
        )

    def attach_disks(self, instance_id: str, disk_ids: Sequence[str]) -> JsonObject:
        """``AttachDisks``."""
        return self.call(
            "cbs",
            "AttachDisks",
            {"InstanceId": instance_id, "DiskIds": list(disk_ids)},
            device=", ".join(disk_ids),
        )

    def detach_disks(self, instance_id: str, disk_ids: Sequence[str]) -> JsonObject:
        """``DetachDisks``."""
        return self.call(
            "cbs",
            "DetachDisks",
            {"InstanceId": instance_id, "DiskIds": list(disk_ids)},
            device=", ".join(disk_ids),
        )

    # VPC

    def describe_security_group_policies(self, group_id: str) -> JsonObject:
        """``DescribeSecurityGroupPolicies``."""
        return self.call(
            "vpc",
            "DescribeSecurityGroupPolicies",
            {"SecurityGroupId": group_id},
            device=group_id,
        )

    def create_security_group_policies(
        self, group_id: str, version: str | None, ingress: Sequence[JsonObject]
    ) -> JsonObject:
        """``CreateSecurityGroupPolicies`` for incoming traffic, refused if the group is not at *version*."""
        return self._policies("CreateSecurityGroupPolicies", group_id, version, ingress)

    def delete_security_group_policies(
        self, group_id: str, version: str | None, ingress: Sequence[JsonObject]
    ) -> JsonObject:
        """``DeleteSecurityGroupPolicies`` for incoming traffic, refused if the group is not at *version*."""
        return self._policies("DeleteSecurityGroupPolicies", group_id, version, ingress)

    def describe_address_templates(self, template_ids: Sequence[str]) -> JsonObject:
        """``DescribeAddressTemplates`` by id, at most 5."""
        return self._templates("DescribeAddressTemplates", "address-template-id", template_ids)

    def describe_address_template_groups(self, group_ids: Sequence[str]) -> JsonObject:
        """``DescribeAddressTemplateGroups`` by id, at most 5."""
        return self._templates(
            "DescribeAddressTemplateGroups", "address-template-group-id", group_ids
        )

    def describe_service_templates(self, template_ids: Sequence[str]) -> JsonObject:
        """``DescribeServiceTemplates`` by id, at most 5."""
        return self._templates("DescribeServiceTemplates", "service-template-id", template_ids)

    def describe_service_template_groups(self, group_ids: Sequence[str]) -> JsonObject:
        """``DescribeServiceTemplateGroups`` by id, at most 5."""
        return self._templates(
            "DescribeServiceTemplateGroups", "service-template-group-id", group_ids
        )

    def _templates(self, action: str, name: str, ids: Sequence[str]) -> JsonObject:
        return self.call(
            "vpc",
            action,
            # Its numbers are texts.
            {"Filters": [{"Name": name, "Values": list(ids)}], "Offset": "0", "Limit": "100"},
            device=", ".join(ids),
        )

    def _policies(
        self, action: str, group_id: str, version: str | None, ingress: Sequence[JsonObject]
    ) -> JsonObject:
        policies: JsonObject = {"Ingress": list(ingress)}
        if version is not None:
            policies["Version"] = version
        return self.call(
            "vpc",
            action,
            {"SecurityGroupId": group_id, "SecurityGroupPolicySet": policies},
            device=group_id,
        )

    # STS

    def get_caller_identity(self) -> JsonObject:
        """``GetCallerIdentity``."""
        return self.call("sts", "GetCallerIdentity", {})

    def assume_role(self, role_arn: str, session_name: str, seconds: int) -> JsonObject:
        """``AssumeRole``."""
        return self.call(
            "sts",
            "AssumeRole",
            {"RoleArn": role_arn, "RoleSessionName": session_name, "DurationSeconds": seconds},
            device=role_arn,
        )

    # MSP

    def register_migration_task(self, params: JsonObject) -> JsonObject:
        """``RegisterMigrationTask``."""
        return self.call("msp", "RegisterMigrationTask", params)

    def modify_migration_task_status(self, task_id: str, status: str) -> JsonObject:
        """``ModifyMigrationTaskStatus``; *status* is ``unstart``, ``migrating``, ``finish`` or ``fail``."""
        return self.call(
            "msp",
            "ModifyMigrationTaskStatus",
            {"TaskId": task_id, "Status": status},
            device=task_id,
        )


def check_region(region: str) -> str:
    """Return the region's name if it can be one.

    Raises:
        InvalidRequestError: It is a zone, or nothing like a region.
    """
    parts = region.split("-")
    if len(parts) < 2 or not all(part.isalnum() for part in parts) or not parts[0].islower():
        raise InvalidRequestError(
            f"not a region: {region!r}", remedy="Write a region's name, such as ap-guangzhou"
        )
    if len(parts) > 2 and parts[-1].isdigit():
        raise InvalidRequestError(
            f"{region} is a zone, not a region",
            remedy=f"Write {'-'.join(parts[:-1])}",
        )
    return region
