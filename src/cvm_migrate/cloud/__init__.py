"""Tencent Cloud: credentials, instances and their states, snapshots, security groups."""

from __future__ import annotations

from cvm_migrate.cloud._assume_role import AssumeRoleCredentials
from cvm_migrate.cloud._checks import TargetWish, check_fit, check_instance
from cvm_migrate.cloud._client import CloudClient
from cvm_migrate.cloud._credentials import (
    CredentialSource,
    CvmRoleCredentials,
    DefaultCredentials,
    EnvironmentCredentials,
    ProfileCredentials,
    Secrets,
    StaticCredentials,
    TemporaryCredentials,
)
from cvm_migrate.cloud._facts import InstanceDisk, InstanceFacts, LatestOperation
from cvm_migrate.cloud._http import CloudEndpoint
from cvm_migrate.cloud._instance import (
    CvmInstance,
    InstanceHealth,
    RescueAccess,
    one_time_password,
    tcp_answers,
)
from cvm_migrate.cloud._ledger import MigrationLedger
from cvm_migrate.cloud._retry import RetryPolicy
from cvm_migrate.cloud._security_groups import (
    MY_PUBLIC_IP,
    PortRule,
    SecurityGroupRule,
    SecurityGroups,
    Verdict,
    evaluate,
)
from cvm_migrate.cloud._snapshots import DiskSnapshot, Snapshots
from cvm_migrate.cloud._states import (
    STATES,
    TRANSITIONS,
    Call,
    InstanceState,
    StateKind,
    StateRule,
    Transition,
    state_diagram,
)
from cvm_migrate.cloud._target import AbortReport, RescueTarget

__all__ = [
    "MY_PUBLIC_IP",
    "STATES",
    "TRANSITIONS",
    "AbortReport",
    "AssumeRoleCredentials",
    "Call",
    "CloudClient",
    "CloudEndpoint",
    "CredentialSource",
    "CvmInstance",
    "CvmRoleCredentials",
    "DefaultCredentials",
    "DiskSnapshot",
    "EnvironmentCredentials",
    "InstanceDisk",
    "InstanceFacts",
    "InstanceHealth",
    "InstanceState",
    "LatestOperation",
    "MigrationLedger",
    "PortRule",
    "ProfileCredentials",
    "RescueAccess",
    "RescueTarget",
    "RetryPolicy",
    "Secrets",
    "SecurityGroupRule",
    "SecurityGroups",
    "Snapshots",
    "StateKind",
    "StateRule",
    "StaticCredentials",
    "TargetWish",
    "TemporaryCredentials",
    "Transition",
    "Verdict",
    "check_fit",
    "check_instance",
    "evaluate",
    "one_time_password",
    "state_diagram",
    "tcp_answers",
]
