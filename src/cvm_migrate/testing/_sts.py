"""The actions of STS 2018-08-13: who calls, and temporary keys."""

from __future__ import annotations

import re
from typing import Any, Final

from cvm_migrate.testing._actions import Action
from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._world import Call, World, utc

Answer = dict[str, Any]

_ROLE: Final = re.compile(r"qcs::cam::uin/(?P<uin>\d+):role(?:Name)?/(?P<name>[\w+=,.@-]+)")
_MOST_SECONDS: Final = 43200


def _get_caller_identity(world: World, call: Call) -> Answer:
    role = call.key.role
    kind = "CAMRole" if role else "CAMUser"
    name = f"roleName/{role}" if role else f"uin/{world.uin}"
    return {
        "Arn": f"qcs::sts::uin/{world.uin}:{name}",
        "AccountId": world.uin,
        "UserId": world.uin,
        "PrincipalId": world.uin,
        "Type": kind,
    }


def _assume_role(world: World, call: Call) -> Answer:
    match = _ROLE.fullmatch(call.params["RoleArn"])
    if match is None:
        raise ApiError("InvalidParameter.ParamError", "The RoleArn is malformed.")
    if match["uin"] != world.uin or match["name"] not in world.roles:
        raise ApiError("ResourceNotFound.RoleNotFound", f"There is no role `{match['name']}`.")
    if not 2 <= len(call.params["RoleSessionName"]) <= 128:
        raise ApiError("InvalidParameter.ParamError", "RoleSessionName needs 2 to 128 characters.")
    seconds: int = call.params.get("DurationSeconds", 7200)
    if not 1 <= seconds <= _MOST_SECONDS:
        raise ApiError("InvalidParameter.OverTimeError", "DurationSeconds must be 1 to 43200.")
    key = world.new_key(role=match["name"], seconds=seconds)
    assert key.expires is not None  # noqa: S101 - temporary keys have an end
    return {
        "Credentials": {
            "Token": key.token,
            "TmpSecretId": key.secret_id,
            "TmpSecretKey": key.secret_key,
        },
        "ExpiredTime": int(key.expires),
        "Expiration": utc(key.expires),
    }


ACTIONS: Final[dict[str, Action]] = {
    "GetCallerIdentity": Action(_get_caller_identity, {}),
    "AssumeRole": Action(
        _assume_role,
        {
            "RoleArn": str,
            "RoleSessionName": str,
            "DurationSeconds": int,
            "Policy": str,
            "ExternalId": str,
            "Tags": [{"Key": str, "Value": str}],
            "SourceIdentity": str,
            "SerialNumber": str,
            "TokenCode": str,
        },
        frozenset({"RoleArn", "RoleSessionName"}),
    ),
}
