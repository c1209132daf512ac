"""What the rules of security groups do with a connection."""

from __future__ import annotations

from typing import Any

import pytest

from cvm_migrate.cloud import MY_PUBLIC_IP, SecurityGroupRule, evaluate
from cvm_migrate.errors import InvalidRequestError


def rules(*given: dict[str, Any]) -> list[SecurityGroupRule]:
    return [
        SecurityGroupRule.from_wire("sg-1", {"PolicyIndex": index, "Action": "ACCEPT", **one})
        for index, one in enumerate(given)
    ]


def rule(source: str = "0.0.0.0/0", port: str = "443", **more: Any) -> dict[str, Any]:
    return {"Protocol": "TCP", "Port": port, "CidrBlock": source, **more}


DROP = {"Action": "DROP"}


@pytest.mark.parametrize(
    ("given", "source", "allowed"),
    [
        ([], "203.0.113.5", False),
        ([rule()], "203.0.113.5", True),
        ([rule()], None, True),
        ([rule(port="80")], "203.0.113.5", False),
        ([rule(port="all")], "203.0.113.5", True),
        ([rule(port="80,440-450")], "203.0.113.5", True),
        ([rule(port="444-450")], "203.0.113.5", False),
        ([rule(Protocol="UDP")], "203.0.113.5", False),
        ([rule(Protocol="ALL", Port="all")], "203.0.113.5", True),
        ([rule("203.0.113.0/24")], "203.0.113.5", True),
        ([rule("203.0.113.5")], "203.0.113.5/32", True),
        ([rule("203.0.114.0/24")], "203.0.113.5", False),
        # The first that matches counts.
        ([rule(**DROP), rule()], "203.0.113.5", False),
        ([rule(), rule(**DROP)], "203.0.113.5", True),
        ([rule("203.0.113.0/24", **DROP), rule()], "203.0.113.5", False),
        ([rule("203.0.113.0/24", **DROP), rule()], "198.51.100.1", True),
        # A network is allowed only if all of it is.
        ([rule("203.0.113.5")], "203.0.113.0/24", False),
        ([rule("203.0.113.5", **DROP), rule()], "203.0.113.0/24", False),
        # Who cannot be known cannot be judged.
        ([rule("203.0.113.5")], None, None),
        ([rule("203.0.113.5")], MY_PUBLIC_IP, None),
        # IPv6 rules are for IPv6.
        ([{"Protocol": "TCP", "Port": "443", "Ipv6CidrBlock": "::/0"}], "2001:db8::1", True),
        ([{"Protocol": "TCP", "Port": "443", "Ipv6CidrBlock": "::/0"}], "203.0.113.5", False),
        # Templates and groups cannot be looked into.
        (
            [{"AddressTemplate": {"AddressId": "ipm-1"}, "Protocol": "TCP"}, rule()],
            "1.2.3.4",
            None,
        ),
        ([{"SecurityGroupId": "sg-2", "Protocol": "TCP"}], "1.2.3.4", None),
        ([rule(), {"SecurityGroupId": "sg-2"}], "1.2.3.4", True),
        ([{"SecurityGroupId": "sg-2", "Protocol": "UDP"}, rule()], "1.2.3.4", True),
        # But what they say of the port counts.
        (
            [{"AddressTemplate": {"AddressId": "ipm-1"}, "Protocol": "TCP", "Port": "22"}, rule()],
            "1.2.3.4",
            True,
        ),
        ([{"SecurityGroupId": "sg-2", "Protocol": "TCP", "Port": "22"}], "1.2.3.4", False),
        # A template of services says it itself.
        (
            [{"ServiceTemplate": {"ServiceId": "ppm-1"}, "CidrBlock": "0.0.0.0/0"}, rule()],
            "1.2.3.4",
            None,
        ),
        ([rule(AddressTemplate={"AddressId": "", "AddressGroupId": ""})], "1.2.3.4", True),
    ],
)
def test_rules_match_from_the_top_and_what_none_matches_is_refused(
    given: list[dict[str, Any]],
    source: str | None,
    allowed: bool | None,  # noqa: FBT001 - a parameter of the table
) -> None:
    assert evaluate(rules(*given), 443, source).allowed is allowed


def test_the_rule_that_decides_is_named() -> None:
    verdict = evaluate(rules(rule(port="80"), rule(**DROP)), 443, "1.2.3.4")

    assert str(verdict.rule) == "sg-1 rule 1: DROP TCP 443 from 0.0.0.0/0"


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="not an address"):
        evaluate([], 443, "example.com")
