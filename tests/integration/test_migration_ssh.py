"""Migrations from and to hosts that are reached over a real sshd, whatever Python is there, and by every way."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

import capabilities
from cvm_migrate import ImageFile, LocalHost, Migration, Options, Report, SshHost, events
from cvm_migrate.errors import (
    ConnectionLostError,
    InvalidRequestError,
    UnsafeTargetError,
    UnsupportedError,
)
from cvm_migrate.model import Severity
from cvm_migrate.transport import start_ssh_agent
from rig import loopdev
from rig.processes import children, wait_until
from rig.proxy import proxy
from rig.pythons import interpreters
from rig.sshd import Sshd, programs, sshd, system_program

MiB = 1 << 20
SIZE = 20 * MiB
VERSIONS = ("2.7", "3.6", "3.8", "3.11", "3.13")
# These run always, the others in CI.
ALWAYS = {("2.7", "target", "direct"), ("3.6", "source", "ssh")}


@pytest.fixture(autouse=True)
def _needs() -> None:
    capabilities.require("root", "loop", "namespaces", "sshd", "pyenv", "loopback")


@contextlib.contextmanager
def host(folder: Path, version: str, *, settings: str = "") -> Generator[Sshd]:
    """A machine with one Python; nothing of ours may be left there at the end."""
    name = "python" if version == "2.7" else f"python{version}"
    links = {name: interpreters()[version], "id": system_program("id")}
    folder.mkdir()
    path = programs(folder / "bin", links)
    with sshd(folder / "server", path=path, settings=settings) as server:
        yield server
        _wait_for_end(server)


def _wait_for_end(server: Sshd) -> None:
    wait_until(lambda: not server.sessions(), "every process of ours ends there")
    assert server.memory() == []


def ssh_host(server: Sshd, *disks: Path, **more: Any) -> SshHost:
    how: dict[str, Any] = attrs.asdict(server.target)
    return SshHost(how.pop("destination"), disks=disks, **how, **more)


def fill(disk: Path) -> None:
    """Random data, zeroes, and what can be compressed."""
    with disk.open("r+b") as file:
        file.write(os.urandom(6 * MiB))
        file.seek(12 * MiB)
        file.write(b"compressible " * (2 * MiB // 13))
        file.seek(SIZE - 4096)
        file.write(os.urandom(4096))
        file.flush()
        os.fsync(file.fileno())


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A source that has data, and a target that has other data."""
    with (
        loopdev.loop_device(tmp_path / "source.img", SIZE) as source,
        loopdev.loop_device(tmp_path / "target.img", SIZE) as target,
    ):
        fill(source)
        with target.open("r+b") as file:
            file.write(os.urandom(MiB))
        yield source, target


def move(source: Any, target: Any, **options: Any) -> tuple[Report, list[str]]:
    """Migrate; the report, and by which ways data went."""
    routes: list[str] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Connected):
            routes.append(event.route)

    options.setdefault("max_downtime", 20)
    with Migration(source, target, options=Options(**options), observer=observe) as migration:
        return migration.run(), routes


def cases() -> list[Any]:
    return [
        pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.slow)
        for case in itertools.product(VERSIONS, ("source", "target"), ("direct", "ssh"))
    ]


@pytest.mark.parametrize(("version", "role", "route"), cases())
def test_a_host_with_one_old_python_is_source_and_target(
    version: str, role: str, route: str, disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """Whichever Python is there, as source and as target, directly and through SSH: the copy is identical."""
    source, target = disks
    with host(tmp_path / "host", version) as server:
        report, routes = move(
            ssh_host(server, source) if role == "source" else LocalHost(disks=[source]),
            ssh_host(server, target) if role == "target" else LocalHost(disks=[target]),
            route=route,
        )
        accepted = server.log.count("Accepted publickey")

    assert loopdev.first_difference(source, target) is None
    assert report.proven
    assert report.rung is not None, report.refused
    assert routes == [route]
    assert not any("told to end" in finding.title for finding in report.findings)
    # One login for the agent; through SSH, where check() measures and then, one for the port, or one for each of two
    # streams.
    assert accepted == (1 if route == "direct" else 3 if role == "source" else 5)


def test_the_end_names_an_agent_that_could_not_be_told_and_when_it_ends_by_itself(
    disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """The connection to the target's host is cut once the copy is proven."""
    source, target = disks
    with host(tmp_path / "host", "3.6") as server, proxy(server.port) as between:
        to = ssh_host(server, target)
        known = (server.folder / "known_hosts").read_text()
        (server.folder / "known_hosts").write_text(
            known.replace(f":{server.port} ", f":{between.port} ")
        )
        with Migration(
            LocalHost(disks=[source]),
            attrs.evolve(to, port=between.port),
            options=Options(max_downtime=20),
        ) as migration:
            migration.prepare()
            migration.full_sync()
            migration.cutover()
            between.cut()
            before = time.time()
            report = migration.finish()
            after = time.time()
            again = migration.finish()

    (left,) = [one for one in report.findings if "could not be told to end" in one.title]
    assert left.title.startswith("the agent on root@127.0.0.1 ")
    stamp = re.search(r"after 120 s without a word, by (.*)", left.evidence)
    assert stamp is not None
    moment = datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC).timestamp()
    assert before + 119 <= moment <= after + 120
    assert report.state == "finished"
    assert again.findings == report.findings
    for told in (report.to_text(), report.to_json(), report.to_html()):
        assert left.title in told
        assert stamp[1] in told


@pytest.mark.parametrize(
    ("source_version", "target_version"),
    [
        ("3.13", "2.7"),
        pytest.param("2.7", "3.13", marks=pytest.mark.slow),
        pytest.param("3.6", "3.8", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("route", ["direct", pytest.param("ssh", marks=pytest.mark.slow)])
def test_both_ends_can_be_other_machines(
    source_version: str,
    target_version: str,
    route: str,
    disks: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """The caller only steers, or, through SSH, joins what it reaches at both ends."""
    source, target = disks
    with (
        host(tmp_path / "one", source_version) as one,
        host(tmp_path / "other", target_version) as other,
    ):
        report, routes = move(ssh_host(one, source), ssh_host(other, target), route=route)

    assert loopdev.first_difference(source, target) is None
    assert report.proven
    assert routes == [route]


@pytest.mark.slow
def test_data_goes_through_ssh_where_the_port_cannot_be_reached(
    disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """Without a direct way the migration goes on through SSH, and the report says so."""
    source, target = disks
    with host(tmp_path / "host", "3.8") as server:
        # "This network" can be no one's address: the system refuses at once.
        to = ssh_host(server, target, data_host="0.0.0.1")
        report, routes = move(LocalHost(disks=[source]), to)
        assert routes == ["ssh"]
        assert loopdev.first_difference(source, target) is None
        assert any("through SSH" in finding.title for finding in report.findings)

        with pytest.raises(ConnectionLostError, match=r"0\.0\.0\.1"):
            move(LocalHost(disks=[source]), to, route="direct", patience=1, attempts=1)


def test_a_check_measures_the_way_through_ssh_where_the_port_cannot_be_reached(
    disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """It says why, which way data will take, and what that carries; afterwards nothing of it is left."""
    source, target = disks
    with host(tmp_path / "host", "2.7") as server:
        # "This network" can be no one's address: the system refuses at once.
        to = ssh_host(server, target, data_host="0.0.0.1")
        with Migration(LocalHost(disks=[source]), to) as migration:
            report = migration.check()
            clients = children(os.getpid(), "-W ")
        with Migration(
            LocalHost(disks=[source]), to, options=Options(route="direct")
        ) as migration:
            (blocker,) = migration.check().blockers

    assert report.possible
    (warning,) = [one for one in report.findings if "will go through SSH" in one.title]
    assert warning.severity is Severity.WARNING
    assert "0.0.0.1" in warning.evidence
    assert "data_host=" in warning.remedy
    (measured,) = [one for one in report.findings if one.title.startswith("data goes through SSH")]
    assert measured.severity is Severity.INFO
    assert "/s, " in measured.title
    assert report.estimated_seconds is not None
    assert clients == []
    assert "0.0.0.1" in blocker.title


def test_a_check_names_what_keeps_data_from_every_way(
    disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """Neither the port nor SSH: one blocker with both reasons."""
    source, target = disks
    with host(tmp_path / "host", "3.11", settings="AllowTcpForwarding no") as server:
        to = ssh_host(server, target, data_host="0.0.0.1")
        with Migration(LocalHost(disks=[source]), to, options=Options(patience=1)) as migration:
            (blocker,) = migration.check().blockers

    assert "0.0.0.1" in blocker.evidence
    assert "through SSH" in blocker.evidence


def test_a_remote_source_finds_a_caller_whose_address_nobody_knows(tmp_path: Path) -> None:
    """An image on the caller's machine needs no open port there."""
    image = tmp_path / "copy.img"
    with (
        loopdev.loop_device(tmp_path / "source.img", SIZE) as source,
        host(tmp_path / "host", "3.11") as server,
    ):
        fill(source)
        report, routes = move(ssh_host(server, source), ImageFile(image), route="ssh")
        assert image.read_bytes() == loopdev.read_direct(source)

    assert report.proven
    assert routes == ["ssh"]


def test_a_source_whose_sshd_forwards_no_ports_is_named(
    disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """The error says which setting of which machine forbids it."""
    source, target = disks
    with (
        host(tmp_path / "host", "3.11", settings="AllowTcpForwarding no") as server,
        pytest.raises(UnsupportedError, match=r"127\.0\.0\.1.*AllowTcpForwarding"),
    ):
        move(ssh_host(server, source), LocalHost(disks=[target]), route="ssh")


def test_no_ssh_leads_from_the_caller_to_itself(disks: tuple[Path, Path]) -> None:
    """Two local ends cannot be told to use SSH."""
    source, target = disks
    with pytest.raises(InvalidRequestError, match="to itself"):
        move(LocalHost(disks=[source]), LocalHost(disks=[target]), route="ssh")


@pytest.mark.slow
def test_killed_ssh_clients_of_the_data_are_made_anew(
    disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """When what carries the data through SSH is killed, the pass goes on and the copy is identical."""
    source, target = disks
    killed: list[int] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.kind == "send" and not killed:
            # Those to the target's port, then the one with the port on the source.
            for word in ("-W ", "-R "):
                for client in children(os.getpid(), word):
                    os.kill(client, signal.SIGKILL)
                    killed.append(client)

    with (
        host(tmp_path / "one", "3.11") as one,
        host(tmp_path / "other", "3.11") as other,
        Migration(
            ssh_host(one, source),
            ssh_host(other, target),
            options=Options(route="ssh", bandwidth=4 * MiB, codec="raw", max_downtime=20),
            observer=observe,
        ) as migration,
    ):
        report = migration.run()

    assert len(killed) >= 2
    assert loopdev.first_difference(source, target) is None
    assert report.proven
    assert not any("repeated" in finding.title for finding in report.findings)


@pytest.mark.slow
def test_a_target_that_a_lost_agent_still_holds_is_waited_for(
    disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """An agent whose caller was lost lets go after a while: a run that continues waits, a new one is refused."""
    source, target = disks
    with host(tmp_path / "host", "3.11") as server:
        ends = LocalHost(disks=[source]), ssh_host(server, target)
        with Migration(*ends, state=tmp_path / "state") as migration:
            migration.prepare()
            migration.full_sync()
        lost = start_ssh_agent(server.target)
        lost.open_disk(str(target), mode="write")
        with Migration(*ends) as another, pytest.raises(UnsafeTargetError, match="in use"):
            another.prepare()
        timer = threading.Timer(4, lost.close)
        timer.start()
        with Migration(*ends, state=tmp_path / "state") as migration:
            report = migration.run()
        timer.join()

    assert report.proven
    assert loopdev.first_difference(source, target) is None


def _config(folder: Path, *servers: Sshd) -> Path:
    known = folder / "known"
    known.write_text("".join((server.folder / "known_hosts").read_text() for server in servers))
    config = folder / "config"
    config.write_text(f"Host *\n  UserKnownHostsFile {known}\n")
    return config


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "cvm_migrate", *map(str, words)]


def test_the_command_line_reaches_hosts_over_ssh(disks: tuple[Path, Path], tmp_path: Path) -> None:
    """``ssh://user@host:port/dev/...`` with a configuration and a key of its own."""
    source, target = disks
    with host(tmp_path / "host", "3.6") as server:
        done = subprocess.run(
            _command(
                *("run", "--source", f"local:{source}"),
                *("--target", f"ssh://root@127.0.0.1:{server.port}{target}"),
                *("--ssh-config", _config(tmp_path, server)),
                *("--identity", server.folder / "user_key"),
                *("--max-downtime", 20),
            ),
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 0, done.stderr
    assert loopdev.first_difference(source, target) is None


@pytest.mark.slow
def test_nothing_is_left_anywhere_when_the_caller_is_killed(
    disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """After a kill -9 of the caller, agents and SSH clients end by themselves, and another run continues."""
    source, target = disks
    words = ["run", "--state", tmp_path / "state", "--max-downtime", 20, "--route", "ssh"]
    with (
        host(tmp_path / "one", "3.11") as one,
        host(tmp_path / "other", "2.7") as other,
    ):
        words += ["--source", f"ssh://root@127.0.0.1:{one.port}{source}"]
        words += ["--target", f"ssh://root@127.0.0.1:{other.port}{target}"]
        # Both have the same keys: the second's are the first's.
        (other.folder / "authorized_keys").write_text((one.folder / "authorized_keys").read_text())
        words += ["--ssh-config", _config(tmp_path, one, other)]
        words += ["--identity", one.folder / "user_key"]
        with subprocess.Popen(
            _command(*words, "--bandwidth", "1M", "--codec", "raw"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as caller:
            try:
                wait_until(
                    lambda: len(children(caller.pid, "-W ")) == 2 or caller.poll() is not None,
                    "data goes through SSH",
                )
                clients = children(caller.pid, "ssh ")
            finally:
                caller.kill()
        assert len(clients) == 5
        for server in (one, other):
            _wait_for_end(server)
        wait_until(lambda: not any(map(_is_ssh, clients)), "SSH clients end")
        done = subprocess.run(
            _command(*words), check=False, capture_output=True, text=True, timeout=100
        )

    assert done.returncode == 0, done.stderr
    assert loopdev.first_difference(source, target) is None


def _is_ssh(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ssh\0")
    except OSError:
        return False
