"""Addresses and services as rules of security groups and their templates write them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

import attrs

# What templates of services know (CreateServiceTemplate), and the rules' own word for any of them.
_PROTOCOLS: Final = frozenset({"tcp", "udp", "icmp", "icmpv6", "gre", "all"})
_MOST_PORTS: Final = 65_535


@attrs.frozen
class Span:
    """Addresses that follow one another, as numbers, both ends included."""

    version: int
    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read an address, a network, or a range such as ``10.0.0.1-10.0.0.9``.

        Raises:
            ValueError: It is none of them.
        """
        first, dash, last = (part.strip() for part in text.partition("-"))
        if not dash:
            network = ipaddress.ip_network(first, strict=False)
            ends = network.network_address, network.broadcast_address
        else:
            ends = ipaddress.ip_address(first), ipaddress.ip_address(last)
        if ends[0].version != ends[1].version or int(ends[0]) > int(ends[1]):
            raise ValueError(f"not a range of addresses: {text!r}")
        return cls(ends[0].version, int(ends[0]), int(ends[1]))

    @property
    def everything(self) -> bool:
        """Whether it is all addresses there are."""
        return self.first == 0 and self.last == (1 << (32 if self.version == 4 else 128)) - 1

    def touches(self, other: Span) -> bool:
        """Whether they have an address in common."""
        same = self.version == other.version
        return same and self.first <= other.last and other.first <= self.last

    def contains(self, other: Span) -> bool:
        """Whether all of *other* lies in it."""
        same = self.version == other.version
        return same and self.first <= other.first and other.last <= self.last


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the same addresses in as few spans as possible: halves of a network are the network."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.version, one.first, one.last)):
        before = found[-1] if found else None
        if before is None or before.version != span.version or span.first > before.last + 1:
            found.append(span)
        else:
            found[-1] = attrs.evolve(before, last=max(before.last, span.last))
    return tuple(found)


def ports_of(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``all``, a port, a range such as ``8000-8010``, or several of them with commas.

    Raises:
        ValueError: It is nothing of that.
    """
    if text.strip().lower() == "all":
        return ((0, _MOST_PORTS),)
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        ends = int(low), int(high) if dash else int(low)
        if not 0 <= ends[0] <= ends[1] <= _MOST_PORTS:
            raise ValueError(f"not ports: {text!r}")
        found.append(ends)
    return tuple(found)


def tcp_ports(service: str) -> tuple[tuple[int, int], ...]:
    """Return the TCP ports of a service such as ``tcp:80``, ``tcp:80,443``, ``udp:all``, ``icmp`` or ``all``.

    Raises:
        ValueError: It is no service that is known.
    """
    protocol, _, ports = (part.strip().lower() for part in service.partition(":"))
    if protocol not in _PROTOCOLS:
        raise ValueError(f"not a service: {service!r}")
    # Read in any case: what is not understood must not pass for something else.
    found = ports_of(ports or "all")
    return found if protocol in {"tcp", "all"} else ()
