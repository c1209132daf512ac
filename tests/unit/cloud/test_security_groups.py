"""What the rules of security groups do with a connection."""

from __future__ import annotations

from typing import Any

import attrs
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


BY_ADDRESSES = {"Protocol": "TCP", "Port": "443", "AddressTemplate": {"AddressId": "ipm-1"}}
BY_SERVICES = {"ServiceTemplate": {"ServiceId": "ppm-1"}, "CidrBlock": "203.0.113.0/24"}


@pytest.mark.parametrize(
    ("addresses", "source", "allowed"),
    [
        (["203.0.113.0/24"], "203.0.113.5", True),
        (["203.0.113.0/24"], "203.0.114.5", False),
        (["198.51.100.1", "203.0.113.5"], "203.0.113.5", True),
        (["203.0.113.1-203.0.113.9"], "203.0.113.9", True),
        (["203.0.113.1-203.0.113.9"], "203.0.113.10", False),
        (["203.0.113.1-203.0.113.9"], "203.0.113.8/30", False),
        # Together they are a network, or everything.
        (["203.0.113.128/25", "203.0.113.0/25"], "203.0.113.0/24", True),
        (["128.0.0.0/1", "0.0.0.0/1"], None, True),
        (["0.0.0.0/1"], None, None),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["2001:db8::/32"], "203.0.113.5", False),
    ],
)
def test_what_a_template_of_addresses_says_counts(
    addresses: list[str],
    source: str | None,
    allowed: bool | None,  # noqa: FBT001 - a parameter of the table
) -> None:
    (unread,) = rules(BY_ADDRESSES)
    read = attrs.evolve(unread, addresses=tuple(addresses), opaque=False)

    assert unread.unread
    assert not read.unread
    assert evaluate([unread], 443, source).allowed is None
    assert evaluate([read], 443, source).allowed is allowed


@pytest.mark.parametrize(
    ("services", "allowed"),
    [
        (["tcp:443"], True),
        (["tcp:80,443"], True),
        (["tcp:80", "tcp:440-450"], True),
        (["TCP: 443"], True),
        (["tcp:all"], True),
        (["tcp"], True),
        (["all"], True),
        (["tcp:80", "udp:443", "udp:all", "icmp", "gre"], False),
        (["tcp:444-450"], False),
    ],
)
def test_what_a_template_of_services_says_counts(
    services: list[str],
    allowed: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    (unread,) = rules(BY_SERVICES)
    read = attrs.evolve(unread, services=tuple(services), opaque=False)

    assert evaluate([unread], 443, "203.0.113.5").allowed is None
    assert evaluate([read], 443, "203.0.113.5").allowed is allowed
    # From elsewhere it is about nothing, whatever the template says.
    assert evaluate([unread], 443, "198.51.100.1").allowed is False


def test_a_rule_by_another_group_stays_unknown_but_for_other_services() -> None:
    (unread,) = rules({"ServiceTemplate": {"ServiceId": "ppm-1"}, "SecurityGroupId": "sg-2"})
    web = attrs.evolve(unread, services=("tcp:443",))

    assert evaluate([web], 443, "203.0.113.5").allowed is None
    assert evaluate([web], 22, "203.0.113.5").allowed is False


def test_the_rule_that_decides_is_named_with_what_its_templates_say() -> None:
    unread, group = rules(
        {**BY_ADDRESSES, "ServiceTemplate": {"ServiceGroupId": "ppmg-2"}},
        {"SecurityGroupId": "sg-2"},
    )
    read = attrs.evolve(
        unread, addresses=tuple(f"10.0.0.{host}" for host in range(6)), services=("tcp:443",)
    )

    assert str(unread) == ("sg-1 rule 0: ACCEPT the template ppmg-2 from the template ipm-1")
    assert str(read) == (
        "sg-1 rule 0: ACCEPT the template ppmg-2 (tcp:443) from the template ipm-1"
        " (10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3 and 2 more)"
    )
    assert str(group) == "sg-1 rule 1: ACCEPT ALL all from the security group sg-2"
    assert str(attrs.evolve(unread, unknown="it is gone")).endswith("ipm-1; it is gone")


def test_the_rule_that_decides_is_named() -> None:
    verdict = evaluate(rules(rule(port="80"), rule(**DROP)), 443, "1.2.3.4")

    assert str(verdict.rule) == "sg-1 rule 1: DROP TCP 443 from 0.0.0.0/0"


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="not an address"):
        evaluate([], 443, "example.com")
