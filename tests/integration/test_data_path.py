"""check() tries and measures the way of the data between two machines, each on a network of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import capabilities
from cvm_migrate import CheckReport, ImageFile, Migration, Options
from cvm_migrate.interfaces import Agent
from cvm_migrate.model import Finding, Severity
from cvm_migrate.transport import AgentSession, start_local_agent
from rig.networks import Lan, Machine, lan
from rig.processes import children, kill, wait_until
from rig.pythons import interpreters

MiB = 1 << 20
SIZE = 8 * MiB


@pytest.fixture(autouse=True)
def _needs() -> None:
    capabilities.require("root", "namespaces", "bridge", "pyenv")


@pytest.fixture
def network() -> Iterator[Lan]:
    with lan() as made:
        yield made


@attrs.frozen
class On(ImageFile):
    """Image files of a machine, whose agent runs on that machine's network."""

    machine: Machine = attrs.field(kw_only=True)
    version: str = attrs.field(kw_only=True)
    started: list[AgentSession] = attrs.field(factory=list[AgentSession], kw_only=True)

    def open_agent(self) -> Agent:
        agent = self.machine.run(lambda: start_local_agent(python=interpreters()[self.version]))
        self.started.append(agent)
        return agent


@attrs.define
class Checked:
    """What came of a check, while its agents still run."""

    report: CheckReport
    source: AgentSession
    target: AgentSession

    def found(self, severity: Severity, *words: str) -> Finding:
        """Return the one finding that has all these words in its title."""
        findings = [
            one
            for one in self.report.findings
            if one.severity is severity and all(word in one.title for word in words)
        ]
        assert len(findings) == 1, self.report.findings
        return findings[0]

    def data(self) -> list[Finding]:
        """Findings that tell what a way carries."""
        return [one for one in self.report.findings if one.title.startswith("data goes")]


def ends(
    network: Lan,
    folder: Path,
    *,
    size: int = SIZE,
    versions: tuple[str, str] = ("2.7", "3.6"),
    data_host: str | None = None,
    data_port: int | None = None,
) -> tuple[On, On]:
    """A source with some bytes, and a target that is still to be made, with these versions of Python."""
    image = folder / "source.img"
    image.write_bytes(os.urandom(size))
    return (
        On(image, machine=network.source, version=versions[0]),
        On(
            folder / "target.img",
            machine=network.target,
            version=versions[1],
            data_host=network.target.address if data_host is None else data_host,
            data_port=data_port,
        ),
    )


@contextlib.contextmanager
def checked(
    network: Lan,
    folder: Path,
    *,
    data_host: str | None = None,
    data_port: int | None = None,
    **options: Any,
) -> Generator[Checked]:
    """A check of a migration from a source with Python 2.7 to a target with Python 3.6."""
    source, target = ends(network, folder, data_host=data_host, data_port=data_port)
    with Migration(source, target, options=Options(**options)) as migration:
        report = migration.check()
        yield Checked(report, source.started[0], target.started[0])
        assert not (folder / "target.img").exists()


@contextlib.contextmanager
def listening(machine: Machine, address: str) -> Generator[tuple[int, list[int]]]:
    """Something that takes connections there and says nothing; its port, and how much it was sent."""
    server = machine.run(lambda: socket.create_server((address, 0)))
    server.settimeout(0.1)
    over = threading.Event()
    heard: list[int] = []

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(20)
                    heard.append(len(connection.recv(1 << 16)))

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield server.getsockname()[1], heard
    finally:
        over.set()
        thread.join(30)
        server.close()


def pumps(agent: AgentSession) -> list[int]:
    return children(agent.pid, "--pump")


def test_an_open_port_is_measured_from_the_source_and_nothing_is_left(
    network: Lan, tmp_path: Path
) -> None:
    before = network.source.carried()
    caller = network.caller.carried()
    with checked(network, tmp_path, data_port=4443) as done:
        finding = done.found(Severity.INFO, "data goes to 10.99.7.3, port 4443, at ")
        sent = network.source.carried() - before
        # Nobody listens any more, and no pump is left at either end.
        after = done.source.reach(network.target.address, 4443, timeout=20)
        left = pumps(done.source) + pumps(done.target)

    assert done.report.possible
    assert "/s, " in finding.title
    assert " ms, MTU 1500, TLSv1." in finding.title
    assert "segments of 14" in finding.evidence
    assert done.report.estimated_seconds is not None
    assert done.report.estimated_seconds > 0
    # It was the source's network, not the caller's.
    assert sent > 16 << 10
    assert network.caller.carried() - caller < 64 << 10
    assert after.outcome == "refused"
    assert left == []


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_smaller_mtu_is_reported(end: str, network: Lan, tmp_path: Path) -> None:
    machine = network.source if end == "source" else network.target
    machine.ip("link", "set", "dev", "eth0", "mtu", "1400")
    with checked(network, tmp_path) as done:
        finding = done.found(Severity.INFO, "data goes to")

    if end == "source":
        assert "MTU 1400" in finding.title
    # What the target's end takes shows in the segments.
    assert "segments of 13" in finding.evidence


def test_a_bandwidth_limit_holds_for_the_measurement_and_the_estimate(
    network: Lan, tmp_path: Path
) -> None:
    before = network.source.carried()
    with checked(network, tmp_path, bandwidth=MiB) as done:
        finding = done.found(Severity.INFO, "data goes to")
        sent = network.source.carried() - before

    assert "1.00 MiB/s allowed" in finding.evidence
    assert sent < 6 * MiB
    assert done.report.estimated_seconds is not None
    assert done.report.estimated_seconds >= SIZE / MiB


def test_a_port_that_is_dropped_blocks_and_says_what_to_open(network: Lan, tmp_path: Path) -> None:
    """As a firewall that answers nothing does it."""
    network.target.ip("route", "add", "blackhole", f"{network.source.address}/32")
    with checked(network, tmp_path, data_port=4443) as done:
        blocker = done.found(Severity.BLOCKER, "the source cannot send data to 10.99.7.3")

    assert not done.report.possible
    assert "port 4443 of 10.99.7.3 gives the source no answer within" in blocker.evidence
    for word in ("Allow port 4443", "security group", "data_port=", "data_host="):
        assert word in blocker.remedy
    assert done.data() == []


def test_a_port_that_refuses_blocks_and_names_the_address(network: Lan, tmp_path: Path) -> None:
    """The address is another machine's, which answers with a reset."""
    with checked(network, tmp_path, data_host=network.caller.address) as done:
        blocker = done.found(Severity.BLOCKER, "the source cannot send data to 10.99.7.1")

    assert "refuses" in blocker.evidence
    assert "data_host=" in blocker.remedy


@pytest.mark.parametrize(
    ("host", "says"),
    [("192.0.2.1", "unreachable"), ("a.name.that.is.invalid", "does not know the name")],
)
def test_an_address_without_a_route_or_an_unknown_name_blocks(
    host: str, says: str, network: Lan, tmp_path: Path
) -> None:
    with checked(network, tmp_path, data_host=host) as done:
        blocker = done.found(Severity.BLOCKER, f"the source cannot send data to {host}")

    assert says in blocker.evidence
    assert "data_host=" in blocker.remedy


def test_something_else_at_the_address_gets_no_data(network: Lan, tmp_path: Path) -> None:
    """As where an address is translated to another machine: it takes connections, and knows nothing of TLS."""
    with (
        listening(network.caller, network.caller.address) as (port, heard),
        checked(
            network, tmp_path, data_host=network.caller.address, data_port=port, patience=2
        ) as done,
    ):
        blocker = done.found(Severity.BLOCKER, "the source cannot send data to 10.99.7.1")

    assert f"port {port} of 10.99.7.1 takes connections" in blocker.evidence
    assert "MTU" in blocker.remedy
    # A greeting of TLS, and the first try that came to nothing.
    assert all(size < 2048 for size in heard)


def test_a_path_that_loses_large_packets_blocks_and_names_the_mtu(
    network: Lan, tmp_path: Path
) -> None:
    """A connection is made, and nothing comes through it: the network takes less than the machines believe."""
    network.swallow(1000)
    with checked(network, tmp_path, patience=3) as done:
        blocker = done.found(Severity.BLOCKER, "the source cannot send data to 10.99.7.3")

    assert "takes connections" in blocker.evidence
    assert "MTU, 1500 at the source" in blocker.remedy
    assert done.data() == []


def test_a_port_that_is_taken_blocks(network: Lan, tmp_path: Path) -> None:
    with (
        listening(network.target, "0.0.0.0") as (port, _),  # noqa: S104 - of a network of its own
        checked(network, tmp_path, data_port=port) as done,
    ):
        blocker = done.found(Severity.BLOCKER, f"port {port}")

    assert "in use" in blocker.title
    assert done.data() == []


def test_an_address_of_ipv6_is_measured(network: Lan, tmp_path: Path) -> None:
    capabilities.require("ipv6")
    for machine, address in ((network.source, "fd99::2"), (network.target, "fd99::3")):
        machine.ip("-6", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
    with checked(network, tmp_path, data_host="fd99::3") as done:
        finding = done.found(Severity.INFO, "data goes to fd99::3")

    assert "MTU 1500" in finding.title


def test_a_check_of_what_is_connected_measures_that(network: Lan, tmp_path: Path) -> None:
    """The port is taken by the migration's own pump."""
    source, target = ends(network, tmp_path, versions=("3.6", "2.7"), data_port=4443)
    with Migration(source, target) as migration:
        assert migration.check().possible
        migration.prepare()
        report = migration.check()
        assert report.possible
        assert any(one.title.startswith("data goes to") for one in report.findings)
        assert migration.run().proven
    assert (tmp_path / "target.img").read_bytes() == (tmp_path / "source.img").read_bytes()


@pytest.mark.parametrize("what", ["pump", "agent"])
@pytest.mark.parametrize("end", ["source", "target"])
def test_what_dies_while_it_is_measured_is_a_finding_and_the_next_check_is_whole(
    end: str, what: str, network: Lan, tmp_path: Path
) -> None:
    source, target = ends(network, tmp_path, size=MiB)

    def end_it() -> None:
        wait_until(lambda: bool(source.started and pumps(source.started[0])), "a pump sends")
        agent = source.started[0] if end == "source" else target.started[0]
        for pid in pumps(agent) if what == "pump" else [agent.pid]:
            kill(pid)

    killer = threading.Thread(target=end_it)
    with Migration(source, target, options=Options(patience=2, bandwidth=64 << 10)) as migration:
        # So slow a path takes two seconds to confirm what was sent: there is time to kill.
        killer.start()
        report = migration.check()
        killer.join()
        assert len(report.blockers) == 1, report.findings
        assert migration.check().possible
