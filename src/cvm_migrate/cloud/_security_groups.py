"""Security groups: what their rules do with a connection, and one rule of ours for the data port.

Rules match from the top of the first group down; what none matches is refused. Our rule names the source's address
only, is recognised by its description, and only such a rule is ever removed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from cvm_migrate.cloud._calls import InstanceCalls
from cvm_migrate.cloud._json import JsonObject, child, children
from cvm_migrate.cloud._notation import Span, joined, ports_of, tcp_ports
from cvm_migrate.cloud._templates import Templates
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import (
    CvmMigrateError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ThrottledError,
    UnsupportedError,
)

# The API's word for the address it sees the caller under.
MY_PUBLIC_IP: Final = "MY_PUBLIC_IP"

_MISMATCH: Final = "UnsupportedOperation.VersionMismatch"
_ROUNDS: Final = 6
# Members of a template that a message names.
_LISTED: Final = 4

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class SecurityGroupRule:
    """A rule for incoming traffic.

    Attributes:
        index: Its place in the group; 0 counts first.
        port: ``all``, a port, a range ``8000-8010``, or several with commas.
        source: An address or network; ``None`` for a rule about a template or another group.
        opaque: Whether it names another group, which cannot be looked into here, or a template that was not, or could
            not be, looked into.
        group: Id of the other group.
        address_templates: Ids of templates, or of groups of them, that say from where.
        service_templates: Ids of templates, or of groups of them, that say to which ports.
        addresses: What the former say; empty until they are looked into (see :meth:`SecurityGroups.known`).
        services: What the latter say.
        unknown: Why a template could not be looked into.
    """

    group_id: str
    index: int
    protocol: str
    port: str
    source: str | None
    action: str
    description: str
    opaque: bool
    group: str = ""
    address_templates: tuple[str, ...] = ()
    service_templates: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    unknown: str = ""

    @classmethod
    def from_wire(cls, group_id: str, rule: JsonObject) -> SecurityGroupRule:
        """Make the value from one element of ``Ingress``."""
        addresses, services = (
            tuple(str(one) for one in child(rule, name).values() if one)
            for name in ("AddressTemplate", "ServiceTemplate")
        )
        group = str(rule.get("SecurityGroupId") or "")
        return cls(
            group_id,
            int(rule.get("PolicyIndex") or 0),
            str(rule.get("Protocol") or "ALL").upper(),
            str(rule.get("Port") or "all").lower(),
            rule.get("CidrBlock") or rule.get("Ipv6CidrBlock") or None,
            str(rule.get("Action") or "DROP").upper(),
            str(rule.get("PolicyDescription") or ""),
            bool(addresses or services or group),
            group,
            addresses,
            services,
        )

    @property
    def unread(self) -> bool:
        """Whether it names templates that nobody has tried to look into."""
        named = self.address_templates or self.service_templates
        return bool(named) and not (self.addresses or self.services or self.unknown)

    def covers_port(self, port: int) -> bool:
        """Whether it is about TCP on that port, or may be."""
        if self.service_templates:
            # The template names protocol and ports; unless it was looked into, perhaps these.
            return not self.services or any(
                low <= port <= high for one in self.services for low, high in tcp_ports(one)
            )
        if self.protocol not in {"TCP", "ALL"}:
            return False
        try:
            return any(low <= port <= high for low, high in ports_of(self.port))
        except ValueError:
            return False

    def may_come(self, network: _Network | None) -> bool:
        """Whether it is about traffic from *network*, all or some of it, as far as is known."""
        if self.group or (self.address_templates and not self.addresses):
            return True
        return self.covers(network, wholly=False)

    def covers(self, network: _Network | None, *, wholly: bool) -> bool:
        """Whether it is about traffic from *network*: all of it, or any of it.

        An unknown network (``None``) is wholly covered only by a rule for every address.
        """
        given = self.addresses or (() if self.source is None else (self.source,))
        try:
            spans = joined(Span.parse(one) for one in given)
        except ValueError:
            return False
        if network is None:
            return any(span.everything for span in spans) or (bool(spans) and not wholly)
        wanted = Span.parse(str(network))
        return any(span.contains(wanted) if wholly else span.touches(wanted) for span in spans)

    def __str__(self) -> str:
        """Name group, place and effect."""
        what = f"{self.protocol} {self.port}"
        if self.service_templates:
            what = _named(self.service_templates, self.services)
        who = self.source or f"the security group {self.group}"
        if self.address_templates:
            who = _named(self.address_templates, self.addresses)
        text = f"{self.group_id} rule {self.index}: {self.action} {what} from {who}"
        return f"{text}; {self.unknown}" if self.unknown else text


def _named(templates: Sequence[str], members: Sequence[str]) -> str:
    """Name templates, and the first of what they say."""
    text = f"the template {', '.join(templates)}"
    if not members:
        return text
    more = f" and {len(members) - _LISTED} more" if len(members) > _LISTED else ""
    return f"{text} ({', '.join(members[:_LISTED])}{more})"


@attrs.frozen
class Verdict:
    """What the rules do with a connection.

    Attributes:
        allowed: ``None`` where a rule cannot be looked into, or where the address is not known.
        rule: The rule that decides; ``None`` where none matches.
    """

    allowed: bool | None
    rule: SecurityGroupRule | None


def evaluate(rules: Sequence[SecurityGroupRule], port: int, source: str | None) -> Verdict:
    """Tell what the rules do with a TCP connection.

    Args:
        rules: Of all groups of the instance, in the order in which they count.
        port: Where it goes to.
        source: Address or network it comes from; ``None`` if that is not known.
    """
    network = None if source in {None, MY_PUBLIC_IP} else parse_source(str(source))
    for rule in rules:
        if not rule.covers_port(port):
            continue
        if rule.opaque:
            if rule.may_come(network):
                return Verdict(None, rule)
            continue
        if rule.covers(network, wholly=True):
            return Verdict(rule.action == "ACCEPT", rule)
        if rule.covers(network, wholly=False) and (network is None or rule.action == "DROP"):
            return Verdict(None if network is None else False, rule)
    return Verdict(allowed=False, rule=None)


def parse_source(text: str) -> _Network:
    """Read an address or network.

    Raises:
        InvalidRequestError: It is neither.
    """
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidRequestError(
            f"not an address: {text!r}",
            remedy="Write an IP address or network, such as 203.0.113.5",
        ) from error


def _looked_into(rule: SecurityGroupRule, templates: Templates) -> SecurityGroupRule:
    addresses: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    try:
        if rule.service_templates:
            services = templates.services(rule.service_templates)
        if rule.address_templates:
            addresses = templates.addresses(rule.address_templates)
    except (
        InvalidRequestError,
        NotFoundError,
        PermissionDeniedError,
        UnsupportedError,
    ) as error:
        return attrs.evolve(rule, services=services, unknown=error.message)
    return attrs.evolve(rule, services=services, addresses=addresses, opaque=bool(rule.group))


def _is_for(rule: SecurityGroupRule, port: int, cidr: str) -> bool:
    return (
        rule.port == str(port)
        and rule.source is not None
        and parse_source(rule.source) == parse_source(cidr)
    )


@attrs.frozen
class PortRule:
    """A rule of ours."""

    group_id: str
    port: int
    source: str
    description: str


class SecurityGroups:
    """The security groups of an instance.

    Args:
        instance: Whose.
    """

    def __init__(self, instance: InstanceCalls) -> None:
        self._instance = instance

    def rules(
        self,
        group_ids: Sequence[str],
        *,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> tuple[SecurityGroupRule, ...]:
        """Return the rules for incoming traffic, in the order in which they count."""
        return tuple(
            rule for group_id in group_ids for rule in self._read(group_id, deadline, cancel)[1]
        )

    def known(
        self,
        rules: Sequence[SecurityGroupRule],
        asked: Iterable[tuple[int, str | None]],
        *,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> tuple[SecurityGroupRule, ...]:
        """Look into the templates that decide about connections; what others say is not asked for.

        Args:
            rules: As :meth:`rules` returns them.
            asked: Ports, and where the connections come from, as :func:`evaluate` takes them.
            deadline: Ends the attempts.
            cancel: Ends the waits.

        Returns:
            The rules. Of one whose templates are gone, or may not be looked at, ``unknown`` says why.
        """
        found = list(rules)
        templates = Templates(self._instance, deadline=deadline, cancel=cancel)
        for port, source in asked:
            rule = evaluate(found, port, source).rule
            while rule is not None and rule.unread:
                found[found.index(rule)] = _looked_into(rule, templates)
                rule = evaluate(found, port, source).rule
        return tuple(found)

    def open_port(
        self,
        port: int,
        source: str,
        tag: str,
        *,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> PortRule | None:
        """Let TCP connections from *source* to *port* in.

        Args:
            port: Where they go to.
            source: The address or network they come from, or :data:`MY_PUBLIC_IP`.
            tag: Tells this migration's rule from those of others.
            deadline: Ends the attempts.
            cancel: Ends the waits.

        Returns:
            The rule that was made, or is there from an earlier call; ``None`` where other rules allow it already, or
            the instance has no group.

        Raises:
            InvalidRequestError: *source* is no address.
            QuotaError: The group is full.
            ThrottledError: Others kept changing the group.
        """
        cidr = source if source == MY_PUBLIC_IP else str(parse_source(source))
        facts = self._instance.describe(deadline=deadline, cancel=cancel)
        if not facts.security_groups:
            return None
        description = self.description(tag)
        ours = PortRule(facts.security_groups[0], port, cidr, description)
        rules = self.rules(facts.security_groups, deadline=deadline, cancel=cancel)
        mine = [rule for rule in rules if rule.description == description]
        if mine:
            if source != MY_PUBLIC_IP and all(_is_for(rule, port, cidr) for rule in mine):
                return PortRule(mine[0].group_id, port, cidr, description)
            # The source has moved, or may have.
            self.close_port(tag, deadline=deadline, cancel=cancel)
            rules = tuple(rule for rule in rules if rule.description != description)
        if source != MY_PUBLIC_IP:
            rules = self.known(rules, [(port, cidr)], deadline=deadline, cancel=cancel)
            if evaluate(rules, port, cidr).allowed:
                return None
        field = "Ipv6CidrBlock" if ":" in cidr else "CidrBlock"
        wanted: JsonObject = {
            "PolicyIndex": 0,
            "Protocol": "TCP",
            "Port": str(port),
            field: cidr,
            "Action": "ACCEPT",
            "PolicyDescription": description,
        }

        def look() -> JsonObject | None:
            _, now = self._read(ours.group_id, deadline, cancel)
            return {} if any(rule.description == description for rule in now) else None

        def settled(error: CvmMigrateError) -> JsonObject | None:
            return (
                look()
                if error.code in {_MISMATCH, "UnsupportedOperation.DuplicatePolicy"}
                else None
            )

        def create() -> None:
            version, _ = self._read(ours.group_id, deadline, cancel)
            self._instance.change(
                lambda: self._instance.client.create_security_group_policies(
                    ours.group_id, version, [wanted]
                ),
                doing=f"opening port {port} in {ours.group_id}",
                look=look,
                settled=settled,
                deadline=deadline,
                cancel=cancel,
            )

        self._against_others(create)
        return ours

    def close_port(
        self,
        tag: str,
        *,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> int:
        """Remove the rules that :meth:`open_port` made with this tag, and no others; return how many."""
        facts = self._instance.describe(deadline=deadline, cancel=cancel)
        description = self.description(tag)
        removed = 0

        def ours_in(group_id: str) -> tuple[str | None, list[SecurityGroupRule]]:
            version, rules = self._read(group_id, deadline, cancel)
            return version, [rule for rule in rules if rule.description == description]

        for group_id in facts.security_groups:
            counted = len(ours_in(group_id)[1])

            def delete(group_id: str = group_id) -> None:
                version, ours = ours_in(group_id)
                if not ours:
                    return
                # By place and version: if the group has changed meanwhile, it is refused.
                places: list[JsonObject] = [{"PolicyIndex": rule.index} for rule in ours]
                self._instance.change(
                    lambda: self._instance.client.delete_security_group_policies(
                        group_id, version, places
                    ),
                    doing=f"closing the data port in {group_id}",
                    look=lambda: None if ours_in(group_id)[1] else {},
                    settled=lambda _error: None if ours_in(group_id)[1] else {},
                    deadline=deadline,
                    cancel=cancel,
                )

            self._against_others(delete)
            removed += counted
        return removed

    def description(self, tag: str) -> str:
        """Return what marks a rule as ours."""
        return f"cvm_migrate {self._instance.instance_id} {tag}"

    def _read(
        self, group_id: str, deadline: Deadline | None, cancel: CancelToken | None
    ) -> tuple[str | None, list[SecurityGroupRule]]:
        answer = self._instance.read(
            lambda: self._instance.client.describe_security_group_policies(group_id),
            doing=f"reading {group_id}",
            deadline=deadline,
            cancel=cancel,
        )
        policies = child(answer, "SecurityGroupPolicySet")
        rules = [
            SecurityGroupRule.from_wire(group_id, rule) for rule in children(policies, "Ingress")
        ]
        version = policies.get("Version")
        return None if version is None else str(version), sorted(rules, key=lambda r: r.index)

    def _against_others(self, change: Callable[[], None]) -> None:
        for left in reversed(range(_ROUNDS)):
            try:
                change()
            except ThrottledError as error:
                # Someone else changed the group between our reading and our writing.
                if error.code != _MISMATCH or not left:
                    raise
                self._instance.policy.sleep(self._instance.policy.wait_after(_ROUNDS - left))
            else:
                return
