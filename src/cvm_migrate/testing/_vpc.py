"""The actions of VPC 2017-03-12 about security groups, and the templates that their rules name."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from cvm_migrate.testing._actions import Action, filtered, page
from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._world import Call, SecurityGroup, Template, World, utc

Answer = dict[str, Any]
Rule = dict[str, Any]

_MOST_RULES: Final = 100
_PROTOCOLS: Final = frozenset({"TCP", "UDP", "ICMP", "ICMPV6", "ALL"})
_PORT: Final = re.compile(r"all|\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", re.IGNORECASE)
_DIRECTIONS: Final = ("Ingress", "Egress")

_RULE: Final = {
    "PolicyIndex": int,
    "Protocol": str,
    "Port": str,
    "ServiceTemplate": {"ServiceId": str, "ServiceGroupId": str},
    "CidrBlock": str,
    "Ipv6CidrBlock": str,
    "SecurityGroupId": str,
    "AddressTemplate": {"AddressId": str, "AddressGroupId": str},
    "Action": str,
    "PolicyDescription": str,
    "ModifyTime": str,
    "Priority": int,
}
# What an id begins with, and how the names of fields and actions are made.
_TEMPLATES: Final = {
    "ipm": ("Address", ""),
    "ipmg": ("Address", "Group"),
    "ppm": ("Service", ""),
    "ppmg": ("Service", "Group"),
}
# What makes two rules the same one.
_IDENTITY: Final = (
    "Protocol",
    "Port",
    "CidrBlock",
    "Ipv6CidrBlock",
    "SecurityGroupId",
    "AddressTemplate",
    "ServiceTemplate",
    "Action",
)


def _group(world: World, call: Call) -> SecurityGroup:
    group_id: str = call.params["SecurityGroupId"]
    if not group_id.startswith("sg-") or len(group_id) != 11:
        raise ApiError(
            "InvalidSecurityGroupID.Malformed", f"The security group `{group_id}` is malformed."
        )
    group = world.groups.get(group_id)
    if group is None or group.region != call.region:
        raise ApiError("ResourceNotFound", f"The security group `{group_id}` is not found.")
    return group


def _rules(group: SecurityGroup, direction: str) -> list[Rule]:
    return group.ingress if direction == "Ingress" else group.egress


def _describe_security_groups(world: World, call: Call) -> Answer:
    with world.lock:
        ids: list[str] = call.params.get("SecurityGroupIds") or []
        found = [group for group in world.groups.values() if group.region == call.region]
        for one in ids:
            if one not in world.groups or world.groups[one].region != call.region:
                raise ApiError("ResourceNotFound", f"The security group `{one}` is not found.")
        if ids:
            found = [group for group in found if group.id in ids]
        return {
            "TotalCount": len(found),
            "SecurityGroupSet": [
                {
                    "SecurityGroupId": group.id,
                    "SecurityGroupName": group.name,
                    "SecurityGroupDesc": "",
                    "ProjectId": "0",
                    "IsDefault": False,
                    "CreatedTime": utc(group.created),
                    "TagSet": [],
                }
                for group in page(found, call.params)
            ],
        }


def _describe_policies(world: World, call: Call) -> Answer:
    with world.lock:
        group = _group(world, call)
        return {
            "SecurityGroupPolicySet": {
                "Version": str(group.version),
                **{
                    direction: [
                        {**rule, "PolicyIndex": index}
                        for index, rule in enumerate(_rules(group, direction))
                    ]
                    for direction in _DIRECTIONS
                },
            }
        }


def _change(group: SecurityGroup, call: Call) -> tuple[list[Rule], list[Rule]]:
    """Return the rules of the one direction that a call is about, and those that it brings."""
    policies: dict[str, Any] = call.params["SecurityGroupPolicySet"]
    version = policies.get("Version")
    if version is not None and version != str(group.version):
        raise ApiError(
            "UnsupportedOperation.VersionMismatch",
            f"The group is at version {group.version}, the request at {version}.",
        )
    named = [direction for direction in _DIRECTIONS if policies.get(direction)]
    if len(named) != 1:
        raise ApiError(
            "InvalidParameter.Coexist" if named else "MissingParameter",
            "Exactly one of Ingress and Egress must be given.",
        )
    return _rules(group, named[0]), policies[named[0]]


def _checked(rule: Rule, caller: str) -> Rule:
    """Return a rule as the service keeps it."""
    protocol = str(rule.get("Protocol", "ALL")).upper()
    port = str(rule.get("Port", "all")).lower()
    if protocol not in _PROTOCOLS or not _PORT.fullmatch(port):
        raise ApiError("InvalidParameterValue", f"Protocol {protocol}, Port {port}: not known.")
    if str(rule.get("Action", "")).upper() not in {"ACCEPT", "DROP"}:
        raise ApiError("InvalidParameterValue", "Action must be ACCEPT or DROP.")
    kept = {name: value for name, value in rule.items() if name not in {"PolicyIndex", "Priority"}}
    kept |= {"Protocol": protocol, "Port": port, "Action": str(rule["Action"]).upper()}
    if kept.get("CidrBlock") == "MY_PUBLIC_IP":
        kept["CidrBlock"] = caller
    for name, kind in (
        ("CidrBlock", ipaddress.IPv4Network),
        ("Ipv6CidrBlock", ipaddress.IPv6Network),
    ):
        try:
            if kept.get(name):
                kind(kept[name], strict=False)
        except ValueError:
            raise ApiError(
                "InvalidParameterValue.Malformed", f"{name} `{kept[name]}` is no network."
            ) from None
    kept.setdefault("PolicyDescription", "")
    return kept


def _same(one: Rule, other: Rule) -> bool:
    return all((one.get(name) or "") == (other.get(name) or "") for name in _IDENTITY)


def _create_policies(world: World, call: Call) -> Answer:
    with world.lock:
        group = _group(world, call)
        rules, given = _change(group, call)
        added = [_checked(rule, call.caller) for rule in given]
        if any(_same(one, other) for one in added for other in rules):
            raise ApiError("UnsupportedOperation.DuplicatePolicy", "The rule is there already.")
        if len(rules) + len(added) > _MOST_RULES:
            raise ApiError("LimitExceeded.SecurityGroupPolicySet", "At most 100 rules.")
        place = int(given[0].get("PolicyIndex", 0))
        if not 0 <= place <= len(rules):
            raise ApiError("InvalidParameterValue.Range", f"PolicyIndex {place} is out of range.")
        rules[place:place] = added
        group.version += 1
    return {}


def _delete_policies(world: World, call: Call) -> Answer:
    with world.lock:
        group = _group(world, call)
        rules, given = _change(group, call)
        doomed: set[int] = set()
        for rule in given:
            if set(rule) == {"PolicyIndex"}:
                found = [rule["PolicyIndex"]] if 0 <= rule["PolicyIndex"] < len(rules) else []
            else:
                wanted = _checked(rule, call.caller)
                found = [index for index, one in enumerate(rules) if _same(one, wanted)]
            if not found:
                raise ApiError("ResourceNotFound", "There is no such rule.")
            doomed.update(found)
        for index in sorted(doomed, reverse=True):
            del rules[index]
        group.version += 1
    return {}


def _time(moment: float) -> str:
    return utc(moment).replace("T", " ").rstrip("Z")


def _template(template: Template) -> Answer:
    """Describe a template, or a group of them."""
    kind, suffix = _TEMPLATES[template.id.partition("-")[0]]
    answer: Answer = {
        f"{kind}Template{suffix}Id": template.id,
        f"{kind}Template{suffix}Name": template.name,
        "CreatedTime": _time(template.created),
        "UpdatedTime": _time(template.created),
        "TagSet": [],
    }
    if suffix:
        answer[f"{kind}TemplateIdSet"] = list(template.members)
    else:
        answer[f"{kind}Set"] = list(template.members)
        answer[f"{kind}ExtraSet"] = [
            {kind: member, "Description": "", "UpdatedTime": _time(template.created)}
            for member in template.members
        ]
    return answer


def _describe_templates(prefix: str, world: World, call: Call) -> Answer:
    kind, suffix = _TEMPLATES[prefix]
    filters: dict[str, Callable[[Template], Sequence[str]]] = {
        f"{kind.lower()}-template{suffix and '-group'}-id": lambda one: [one.id],
        f"{kind.lower()}-template{suffix and '-group'}-name": lambda one: [one.name],
    }
    with world.lock:
        found = [one for one in world.templates.values() if one.id.startswith(f"{prefix}-")]
        found = filtered(found, call.params, filters)
        return {
            "TotalCount": len(found),
            f"{kind}Template{suffix}Set": [_template(one) for one in page(found, call.params)],
        }


_POLICIES: Final = {
    "SecurityGroupId": str,
    "SecurityGroupPolicySet": {"Version": str, "Ingress": [_RULE], "Egress": [_RULE]},
}
_BOTH: Final = frozenset(_POLICIES)
_FILTERS: Final = [{"Name": str, "Values": [str]}]
# Numbers are text here; that is Tencent's own.
_LIST: Final = {
    "Filters": _FILTERS,
    "Offset": str,
    "Limit": str,
    "NeedMemberInfo": bool,
    "OrderField": str,
    "OrderDirection": str,
    "MemberOrderField": str,
    "MemberOrderDirection": str,
}

ACTIONS: Final[dict[str, Action]] = {
    "DescribeSecurityGroups": Action(
        _describe_security_groups,
        {"SecurityGroupIds": [str], "Filters": _FILTERS, "Offset": str, "Limit": str},
    ),
    "DescribeSecurityGroupPolicies": Action(
        _describe_policies,
        {"SecurityGroupId": str, "Filters": _FILTERS},
        frozenset({"SecurityGroupId"}),
    ),
    **{
        f"Describe{kind}Template{suffix}s": Action(
            functools.partial(_describe_templates, prefix), _LIST
        )
        for prefix, (kind, suffix) in _TEMPLATES.items()
    },
    "CreateSecurityGroupPolicies": Action(_create_policies, _POLICIES, _BOTH),
    "DeleteSecurityGroupPolicies": Action(_delete_policies, _POLICIES, _BOTH),
}
