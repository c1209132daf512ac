"""From Tencent's error codes to our errors: one table, and rules by prefix for what it does not name.

Each rule says which error a code becomes, what to do about it, and whether the call may be repeated.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

import attrs

from cvm_migrate.cloud._states import STATES, InstanceState
from cvm_migrate.errors import (
    CredentialsError,
    CvmMigrateError,
    InstanceStateError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    QuotaError,
    SecurityError,
    ServiceError,
    ThrottledError,
    UnsupportedError,
)


class Repeat(enum.Enum):
    """Whether a call that failed may be sent again."""

    NEVER = "never"  # the answer would be the same
    SAFE = "safe"  # it was refused before anything was done
    PATIENT = "patient"  # as SAFE, and what is in the way may take minutes
    LOOK = "look"  # it may have been done: look first, unless it is idempotent
    RENEW = "renew"  # the credentials have run out: renew them, then send it again


@attrs.frozen
class Rule:
    """What a code means to us."""

    kind: type[CvmMigrateError]
    remedy: str
    repeat: Repeat = Repeat.NEVER


# Codes of our own, for what happens before Tencent answers.
NOT_SENT: Final = "Network.NotSent"
REPLY_LOST: Final = "Network.ReplyLost"
CERTIFICATE: Final = "Network.Certificate"
NO_JSON: Final = "Network.NoJson"

_KEYS: Final = (
    "Look at the keys in the console (Access Management, API keys) and give the right ones"
)
_CLOCK: Final = (
    "Set this machine's clock (NTP): the API refuses signatures more than 5 minutes off"
)
_RIGHTS: Final = (
    "Give the account the rights: the policies QcloudCVMFullAccess, QcloudCBSFullAccess and "
    "QcloudVPCFullAccess, or the actions listed in docs/reference/cloud.md"
)
_SLOWER: Final = (
    "Repeat the step in a minute; run fewer migrations of one account at the same time"
)
_MUTEX: Final = "Wait until the other task on the instance ends (console, CVM, Operation log), then repeat the step"
_AGAIN: Final = "Repeat the step; if it recurs, give Tencent's support the request id"
_LOOK: Final = (
    "The call may have been carried out all the same: repeat the step, it looks before it acts"
)
_REACH: Final = "Look at the network, name resolution and proxy between this machine and the API, then repeat the step"
_ID: Final = "Look at the id and the region: instances are found only in their own region"
_TAKEN_FORM: Final = (
    "Give a password of 8 to 30 characters (12 for Windows) with lower and upper case letters and digits, or none: "
    "one is made then"
)
_QUOTA: Final = "Raise the quota in the console (or free what is not needed), then repeat the step"
_BUSY_DISK: Final = "Wait until the other task on the disk ends, then repeat the step"

CODES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        NOT_SENT: Rule(ServiceError, _REACH, Repeat.SAFE),
        REPLY_LOST: Rule(ServiceError, _LOOK, Repeat.LOOK),
        CERTIFICATE: Rule(
            SecurityError,
            "Find out who answers in the API's place; behind a proxy that opens TLS, name its CA file",
        ),
        NO_JSON: Rule(
            ServiceError,
            "Look whether endpoint and proxy are right: what answers is not the API",
            Repeat.LOOK,
        ),
        # Who is calling.
        "AuthFailure.SecretIdNotFound": Rule(CredentialsError, _KEYS),
        "AuthFailure.InvalidSecretId": Rule(CredentialsError, _KEYS),
        "AuthFailure.SignatureFailure": Rule(CredentialsError, _KEYS),
        "AuthFailure.InvalidAuthorization": Rule(CredentialsError, _KEYS),
        "AuthFailure.SignatureExpire": Rule(CredentialsError, _CLOCK, Repeat.RENEW),
        "AuthFailure.TokenFailure": Rule(
            CredentialsError,
            "The temporary credentials have run out or are wrong: get new ones, then repeat the step",
            Repeat.RENEW,
        ),
        "AuthFailure.MFAFailure": Rule(
            CredentialsError, "Use keys that need no second factor, or a role (AssumeRole)"
        ),
        "AuthFailure.UnauthorizedOperation": Rule(PermissionDeniedError, _RIGHTS),
        "AuthFailure.CamRoleNameAuthenticateFailed": Rule(PermissionDeniedError, _RIGHTS),
        # Too fast, or one after the other.
        "MutexOperation.TaskRunning": Rule(ThrottledError, _MUTEX, Repeat.PATIENT),
        "OperationDenied.InstanceOperationInProgress": Rule(
            ThrottledError, _MUTEX, Repeat.PATIENT
        ),
        "OperationDenied.MutexTaskRunning": Rule(ThrottledError, _MUTEX, Repeat.PATIENT),
        "UnsupportedOperation.MutexOperationTaskRunning": Rule(
            ThrottledError, _MUTEX, Repeat.PATIENT
        ),
        "ResourceBusy": Rule(ThrottledError, _MUTEX, Repeat.PATIENT),
        "InvalidDisk.Busy": Rule(ThrottledError, _BUSY_DISK, Repeat.PATIENT),
        "InvalidDisk.SnapshotCreating": Rule(ThrottledError, _BUSY_DISK, Repeat.PATIENT),
        "ResourceUnavailable.SnapshotCreating": Rule(ThrottledError, _BUSY_DISK, Repeat.PATIENT),
        "ResourceUnavailable.TooManyCreatingSnapshot": Rule(
            ThrottledError, _BUSY_DISK, Repeat.PATIENT
        ),
        "ResourceInUse.DiskRollbacking": Rule(ThrottledError, _BUSY_DISK, Repeat.PATIENT),
        "ResourceInUse.DiskMigrating": Rule(ThrottledError, _BUSY_DISK, Repeat.PATIENT),
        "UnsupportedOperation.VersionMismatch": Rule(
            ThrottledError,
            "Someone else changed the security group at the same moment: repeat the step",
        ),
        "LimitExceeded.ActionLimited": Rule(ThrottledError, _SLOWER, Repeat.SAFE),
        # The instance.
        "InvalidInstanceId.NotFound": Rule(NotFoundError, _ID),
        "InvalidInstanceId.Malformed": Rule(InvalidRequestError, "Write the id as ins-xxxxxxxx"),
        "InvalidParameterValue.InstanceIdMalformed": Rule(
            InvalidRequestError, "Write the id as ins-xxxxxxxx"
        ),
        "InvalidInstance.NotSupported": Rule(
            UnsupportedError, "Name an instance of another type: this one knows no rescue mode"
        ),
        "UnsupportedOperation.ArmArchitecture": Rule(
            UnsupportedError, "Name an x86 instance: ARM instances have no rescue mode"
        ),
        "UnsupportedOperation.EdgeZoneNotSupportCloudDisk": Rule(
            UnsupportedError, "Name an instance outside the edge zones"
        ),
        "UnsupportedOperation.EdgeZoneInstance": Rule(
            UnsupportedError, "Name an instance outside the edge zones"
        ),
        "UnsupportedOperation.SpecialInstanceType": Rule(
            UnsupportedError, "Name an instance of a standard type"
        ),
        "UnsupportedOperation.StoppedModeStopCharging": Rule(
            InstanceStateError,
            "Start the instance first (start()): it was stopped in the mode that is not charged for",
        ),
        "UnsupportedOperation.InstanceReinstallFailed": Rule(
            InstanceStateError,
            "Reinstall the instance's system in the console, then repeat the step",
        ),
        "UnsupportedRegion": Rule(
            UnsupportedError, "Name an instance in a region that offers rescue mode"
        ),
        "InvalidPassword": Rule(InvalidRequestError, _TAKEN_FORM),
        "InvalidParameterValue.InvalidPassword": Rule(InvalidRequestError, _TAKEN_FORM),
        "InvalidAccount.InsufficientBalance": Rule(
            QuotaError, "Top up the account, then repeat the step"
        ),
        # Disks and snapshots.
        "InvalidDiskId.NotFound": Rule(NotFoundError, _ID),
        "InvalidSnapshotId.NotFound": Rule(
            NotFoundError, "The snapshot is gone: someone deleted it, or its time had come"
        ),
        "InvalidDisk.NotSupportSnapshot": Rule(
            UnsupportedError, "Go on without snapshots (snapshots=False), or make an image first"
        ),
        "ResourceUnavailable.NotSupportSnapshot": Rule(
            UnsupportedError, "Go on without snapshots (snapshots=False), or make an image first"
        ),
        "InsufficientSnapshotQuota": Rule(
            QuotaError,
            "Delete snapshots that are not needed, raise the quota, or go on without (snapshots=False)",
        ),
        "ResourceInsufficient.OverQuota": Rule(QuotaError, _QUOTA),
        "InvalidDisk.NotPortable": Rule(
            UnsupportedError, "Only elastic data disks can be detached"
        ),
        "ResourceUnavailable.NotPortable": Rule(
            UnsupportedError, "Only elastic data disks can be detached"
        ),
        "UnsupportedOperation.InstanceNotStopped": Rule(
            InstanceStateError, "Stop the instance first (stop()), then repeat the step"
        ),
        "ResourceUnavailable.Attached": Rule(
            InstanceStateError, "Detach the elastic disk first, then repeat the step"
        ),
        "ResourceUnavailable.DiskSnapshotChainTooLarge": Rule(
            QuotaError, "Delete old snapshots of the disk, then repeat the step"
        ),
        # Security groups.
        "InvalidSecurityGroupID.NotFound": Rule(NotFoundError, _ID),
        "UnsupportedOperation.DuplicatePolicy": Rule(
            InvalidRequestError,
            "The same rule is there already, perhaps as DROP: look at the group",
        ),
        "LimitExceeded.SecurityGroupPolicySet": Rule(
            QuotaError,
            "Delete rules of the security group that are not needed, or bind another group",
        ),
        "InvalidAction": Rule(
            UnsupportedError, "This endpoint or region does not know the call: look at both"
        ),
        "UnsupportedProtocol": Rule(InvalidRequestError, "Look at the endpoint: use https"),
        "ResourceUnavailable": Rule(ServiceError, _AGAIN),
    }
)

# Tried in order; the first that fits counts.
PREFIXES: Final[tuple[tuple[str, Rule], ...]] = (
    ("AuthFailure.Token", Rule(CredentialsError, _KEYS, Repeat.RENEW)),
    ("AuthFailure", Rule(CredentialsError, _KEYS)),
    ("UnauthorizedOperation", Rule(PermissionDeniedError, _RIGHTS)),
    ("RequestLimitExceeded", Rule(ThrottledError, _SLOWER, Repeat.SAFE)),
    ("MutexOperation", Rule(ThrottledError, _MUTEX, Repeat.PATIENT)),
    ("InternalError", Rule(ServiceError, _AGAIN, Repeat.LOOK)),
    ("InternalServerError", Rule(ServiceError, _AGAIN, Repeat.LOOK)),
    ("ServiceUnavailable", Rule(ServiceError, _AGAIN, Repeat.LOOK)),
    ("HttpStatus.5", Rule(ServiceError, _AGAIN, Repeat.LOOK)),
    ("HttpStatus.429", Rule(ThrottledError, _SLOWER, Repeat.SAFE)),
    (
        "HttpStatus",
        Rule(ServiceError, "Look at endpoint and proxy: the API itself answers 200 always"),
    ),
    ("OperationDenied", Rule(InstanceStateError, _MUTEX)),
    ("UnsupportedRegion", Rule(UnsupportedError, "Look at the region's name")),
    (
        "UnsupportedOperation",
        Rule(UnsupportedError, "Name another instance, or mend what it says"),
    ),
    ("ResourceNotFound", Rule(NotFoundError, _ID)),
    ("ResourceInsufficient", Rule(QuotaError, _QUOTA)),
    ("ResourcesSoldOut", Rule(QuotaError, _QUOTA)),
    ("ResourceInUse", Rule(ThrottledError, _BUSY_DISK, Repeat.PATIENT)),
    ("ResourceUnavailable", Rule(InstanceStateError, "Mend what it says, then repeat the step")),
    ("LimitExceeded", Rule(QuotaError, _QUOTA)),
    ("InvalidAccount", Rule(CredentialsError, "Look at the account's state in the console")),
    ("InvalidDisk", Rule(InstanceStateError, "Look at the disk in the console, then repeat")),
    ("Invalid", Rule(InvalidRequestError, "Mend the value and call again")),
    ("MissingParameter", Rule(ProtocolError, _AGAIN)),
    ("UnknownParameter", Rule(ProtocolError, _AGAIN)),
    ("FailedOperation", Rule(ServiceError, _AGAIN)),
    ("DryRunOperation", Rule(ServiceError, _AGAIN)),
)

_UNKNOWN: Final = Rule(ServiceError, _AGAIN)

# The errors name states the API never shows in InstanceState, too.
_STATE_PREFIX: Final = "UnsupportedOperation.InstanceState"
_OTHER_STATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Banning": "Have Tencent's support lift the ban on the instance",
        "Corrupted": "Have Tencent's support repair the instance, or name another",
        "Freezing": "The account owes money: top it up, then repeat the step",
        "Isolating": "Renew the instance (console, recycle bin), then repeat the step",
        "NotRunning": "Start the instance first (start()), then repeat the step",
        "Terminated": "Name another instance",
    }
)


def state_named(code: str) -> InstanceState | None:
    """Return the state that an ``UnsupportedOperation.InstanceState...`` code names, if it is one."""
    if not code.startswith(_STATE_PREFIX):
        return None
    name = code.removeprefix(_STATE_PREFIX)
    for state in InstanceState:
        if name == "".join(word.capitalize() for word in state.split("_")):
            return state
    return None


def rule_for(code: str) -> Rule:
    """Return what a code means: by name, by the state it names, by prefix."""
    if code in CODES:
        return CODES[code]
    if code.startswith(_STATE_PREFIX):
        state = state_named(code)
        if state is not None:
            return Rule(InstanceStateError, STATES[state].advice)
        name = code.removeprefix(_STATE_PREFIX)
        return Rule(
            InstanceStateError,
            _OTHER_STATES.get(name, "Look at the instance in the console, then repeat the step"),
        )
    for prefix, rule in PREFIXES:
        if code.startswith(prefix):
            return rule
    # OverQuota, InstancesQuotaLimitExceeded and their like.
    return Rule(QuotaError, _QUOTA) if "Quota" in code or "LimitExceeded" in code else _UNKNOWN


def error_from(
    code: str,
    message: str,
    *,
    action: str,
    request_id: str | None = None,
    device: str | None = None,
    secrets: Iterable[str] = (),
) -> CvmMigrateError:
    """Make our error from what Tencent (or the way there) answered.

    Args:
        code: Tencent's code, or one of this module's own.
        message: Tencent's sentence.
        action: The call.
        request_id: What support asks for.
        device: The instance, disk or group concerned.
        secrets: Texts that must not be in the message.
    """
    rule = rule_for(code)
    subject = f" for {device}" if device else ""
    reference = f" (request id {request_id})" if request_id else ""
    text = f"{action}{subject} failed: {code}: {scrub(message, secrets).rstrip('. ')}{reference}"
    return rule.kind(
        text,
        remedy=rule.remedy,
        device=device,
        code=code,
        action=action,
        request_id=request_id,
    )


def repeat_of(error: CvmMigrateError) -> Repeat:
    """Return whether the call that ended in *error* may be sent again."""
    if error.action is None or error.code is None:
        return Repeat.NEVER
    return rule_for(error.code).repeat


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Take secrets out of a text that someone else wrote."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text
