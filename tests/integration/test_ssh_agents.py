"""The agent on the far side of a real sshd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import capabilities
from cvm_migrate.errors import (
    AgentLostError,
    ConnectionLostError,
    HostKeyError,
    InvalidRequestError,
    PermissionDeniedError,
    ProtocolError,
    UnsupportedError,
)
from cvm_migrate.transport import SshForward, SshTarget, start_ssh_agent
from cvm_migrate.transport._bootstrap import Bootstrap
from rig import loopdev
from rig.processes import runs, wait_until
from rig.pythons import interpreters
from rig.sshd import Sshd, programs, sshd, system_program

VERSIONS = ("2.7", "3.6", "3.8", "3.11", "3.13")
PASSWORD = "Rescue-me 'now' $HOME"


@pytest.fixture(autouse=True)
def _needs() -> None:
    capabilities.require("root", "namespaces", "sshd", "pyenv", "loopback")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An sshd whose logins find Python 3.11 alone, as ``python3``."""
    capabilities.require("root", "namespaces", "sshd", "pyenv", "loopback")
    folder = tmp_path_factory.mktemp("sshd")
    path = programs(
        folder / "bin",
        {
            "python3": interpreters()["3.11"],
            "id": system_program("id"),
            "cat": system_program("cat"),
        },
    )
    with sshd(folder / "server", path=path, password=PASSWORD) as running:
        yield running


@pytest.mark.parametrize("version", VERSIONS)
def test_the_agent_runs_where_one_old_python_is_all_there_is(version: str, tmp_path: Path) -> None:
    name = "python" if version == "2.7" else f"python{version}"
    path = programs(tmp_path / "bin", {name: interpreters()[version], "id": system_program("id")})
    image = tmp_path / "disk"
    data = os.urandom(1 << 20)
    image.write_bytes(data)
    with sshd(tmp_path / "server", path=path) as server:
        with start_ssh_agent(server.target) as agent:
            assert agent.python.startswith(f"{version}.")
            assert agent.description == "the agent on root@127.0.0.1"
            assert agent.facts().euid == 0
            disk = agent.open_disk(str(image))
            assert agent.read(disk, 0, len(data)) == data
            assert server.memory() == [], "its program has no name, even while it runs"
            far = agent.remote_pid
            assert runs(far)
        assert agent.exit_status == 0
        wait_until(lambda: not runs(far), "the far agent ends")
        assert server.memory() == []


def test_the_best_python_is_chosen(tmp_path: Path) -> None:
    path = programs(
        tmp_path / "bin",
        {
            # Neither runs: one is broken, one is too old.
            "python3.14": "#!/bin/sh\nexit 127\n",
            "python3.10": "#!/bin/sh\nexit 1\n",
            "python3.8": interpreters()["3.8"],
            "python2.7": interpreters()["2.7"],
            "id": system_program("id"),
        },
    )
    with sshd(tmp_path / "server", path=path) as server, start_ssh_agent(server.target) as agent:
        assert agent.python.startswith("3.8.")


def test_the_python_that_is_named_is_the_one_that_is_used(server: Sshd) -> None:
    with start_ssh_agent(server.target, python=str(interpreters()["3.6"])) as agent:
        assert agent.python.startswith("3.6.")


def test_no_python_is_reported_with_what_was_looked_for(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", {"id": system_program("id")})
    with (
        sshd(tmp_path / "server", path=path) as server,
        pytest.raises(
            UnsupportedError, match=r"looked for python3\.14.*platform-python"
        ) as caught,
    ):
        start_ssh_agent(server.target)
    assert "python=" in str(caught.value)


def test_a_killed_ssh_client_ends_the_far_agent(server: Sshd) -> None:
    with start_ssh_agent(server.target) as agent:
        far = agent.remote_pid
        os.kill(agent.pid, signal.SIGKILL)
        with pytest.raises(AgentLostError, match="signal 9"):
            agent.facts()
        wait_until(lambda: not runs(far), "the far agent ends")
    assert server.memory() == []


def test_a_killed_far_agent_is_reported_and_leaves_nothing(server: Sshd) -> None:
    with start_ssh_agent(server.target) as agent:
        os.kill(agent.remote_pid, signal.SIGKILL)
        with pytest.raises(AgentLostError, match="the agent on"):
            agent.facts()
    assert server.memory() == []


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_noise_of_the_login_shell_before_the_agent_does_no_harm(
    shell: str, tmp_path: Path
) -> None:
    path = programs(
        tmp_path / "bin", {"python3": interpreters()["3.11"], "id": system_program("id")}
    )
    noise = 'echo "Welcome! CVMA cvm-migrate-0123 python"\nprintf "no line end"\necho oops >&2\n'
    with (
        sshd(tmp_path / "server", path=path, login=shell, start_file=noise) as server,
        start_ssh_agent(server.target) as agent,
    ):
        assert agent.facts().euid == 0


def test_noise_for_ever_is_given_up_with_what_to_do(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", {"python3": interpreters()["3.11"]})
    noise = "while :; do echo noise; done\n"
    with (
        sshd(tmp_path / "server", path=path, login="/bin/bash", start_file=noise) as server,
        pytest.raises(ProtocolError, match=r"only noise came.*silent"),
    ):
        start_ssh_agent(server.target)


def test_the_start_script_passes_every_login_shell_unharmed() -> None:
    command = Bootstrap(sudo="auto", python=None, arguments=["--silence", "120"]).command
    # csh reads "!" in quotes, both csh and fish have their own views on backslashes before quotes.
    assert "\n" not in command
    assert "!" not in command
    assert "'\"'\"'" not in command


def test_an_unknown_host_key_is_refused_and_the_remedy_named(server: Sshd, tmp_path: Path) -> None:
    empty = tmp_path / "known_hosts"
    empty.touch()
    with pytest.raises(HostKeyError, match=r"is not known.*fingerprint"):
        start_ssh_agent(attrs.evolve(server.target, known_hosts=empty))
    assert empty.read_text() == ""


def _other_key(server: Sshd, tmp_path: Path) -> Path:
    loopdev.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "another"))
    known = tmp_path / "known_hosts"
    key = (tmp_path / "another.pub").read_text()
    known.write_text(f"[127.0.0.1]:{server.port} {key}")
    return known


def test_a_changed_host_key_is_refused_and_the_remedy_named(server: Sshd, tmp_path: Path) -> None:
    known = _other_key(server, tmp_path)
    with pytest.raises(HostKeyError, match=r"is not the one that is known.*ssh-keygen -R"):
        start_ssh_agent(attrs.evolve(server.target, known_hosts=known))


def test_a_new_host_key_can_be_pinned_once_and_is_then_the_only_one(
    server: Sshd, tmp_path: Path
) -> None:
    pins = tmp_path / "with blank" / "pins"
    pins.parent.mkdir()
    target = attrs.evolve(server.target, known_hosts=None, pin_on_first_use=pins)
    with start_ssh_agent(target) as agent:
        assert len(agent.notes) == 1
        assert "pinned on first use" in agent.notes[0]
    assert f"[127.0.0.1]:{server.port} " in pins.read_text()
    with start_ssh_agent(target) as agent:
        assert agent.notes == ()
    shutil.copy(_other_key(server, tmp_path), pins)
    with pytest.raises(HostKeyError, match="is not the one that is known"):
        start_ssh_agent(target)


def _with_password(server: Sshd, password: str) -> SshTarget:
    return attrs.evolve(server.target, identity=None, password=password)


def test_a_password_opens_the_door_and_shows_nowhere(server: Sshd) -> None:
    with start_ssh_agent(_with_password(server, PASSWORD)) as agent:
        assert agent.facts().euid == 0
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                for name in ("cmdline", "environ"):
                    try:
                        content = (process / name).read_bytes()
                    except OSError:
                        continue
                    assert PASSWORD.encode() not in content
    assert "Accepted password" in server.log
    assert PASSWORD not in server.log
    assert PASSWORD not in repr(_with_password(server, PASSWORD))


def test_a_wrong_password_is_a_permission_error_that_does_not_show_it(server: Sshd) -> None:
    with pytest.raises(PermissionDeniedError, match="refuses the login") as caught:
        start_ssh_agent(_with_password(server, "Wrong-Password-1"))
    assert "Wrong-Password-1" not in str(caught.value)


def _jump_config(server: Sshd, folder: Path, *lines: str) -> Path:
    """A configuration in which the same machine is known by another name, as OpenSSH refuses loops."""
    known = (server.folder / "known_hosts").read_text()
    (folder / "known").write_text(known + known.replace("[127.0.0.1]", "[localhost]"))
    config = folder / "config"
    config.write_text(
        "\n  ".join(
            [
                "Host *",
                f"UserKnownHostsFile {folder}/known",
                "StrictHostKeyChecking yes",
                "AddressFamily inet",
                *lines,
            ]
        )
        + "\n"
    )
    return config


def test_a_password_is_not_given_to_a_jump_host(server: Sshd, tmp_path: Path) -> None:
    # It would take it, being the same machine; but it is not the one that the password is for.
    target = attrs.evolve(
        _with_password(server, PASSWORD),
        config=_jump_config(server, tmp_path, "IdentityFile none"),
        jump=f"root@localhost:{server.port}",
    )
    before = len(server.log)
    with pytest.raises(PermissionDeniedError):
        start_ssh_agent(target)
    assert "Accepted" not in server.log[before:]


def test_a_password_passes_a_jump_host_that_takes_a_key(server: Sshd, tmp_path: Path) -> None:
    target = attrs.evolve(
        _with_password(server, PASSWORD),
        config=_jump_config(server, tmp_path, f"IdentityFile {server.folder}/user_key"),
        jump=f"root@localhost:{server.port}",
    )
    with start_ssh_agent(target) as agent:
        assert agent.facts().euid == 0


def test_a_login_without_a_key_that_fits_is_a_permission_error(
    server: Sshd, tmp_path: Path
) -> None:
    loopdev.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "another"))
    target = attrs.evolve(server.target, identity=tmp_path / "another")
    with pytest.raises(PermissionDeniedError, match="refuses the login"):
        start_ssh_agent(target)


def test_a_machine_where_nothing_listens_cannot_be_reached(server: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ConnectionLostError, match=r"cannot be reached by SSH.*refused"):
        start_ssh_agent(attrs.evolve(server.target, port=port))


def test_a_name_that_does_not_exist_cannot_be_reached() -> None:
    with pytest.raises(ConnectionLostError, match=r"nowhere\.invalid"):
        start_ssh_agent(SshTarget("root@nowhere.invalid"))


@pytest.mark.parametrize("destination", ["", "-oProxyCommand=true", "root@host extra", "a\0b"])
def test_a_destination_that_could_be_an_option_is_refused(destination: str) -> None:
    with pytest.raises(InvalidRequestError, match="no SSH destination"):
        SshTarget(destination)


SUDO = """\
#!/bin/sh
[ "$1" = -n ] || exit 9
shift
exec "$@"
"""
REFUSING_SUDO = """\
#!/bin/sh
echo "sudo: a password is required" >&2
exit 1
"""
NOT_ROOT = """\
#!/bin/sh
echo 1000
"""


def test_a_login_of_another_user_becomes_root_by_sudo(tmp_path: Path) -> None:
    path = programs(
        tmp_path / "bin", {"python3": interpreters()["3.11"], "id": NOT_ROOT, "sudo": SUDO}
    )
    with sshd(tmp_path / "server", path=path) as server, start_ssh_agent(server.target) as agent:
        assert agent.facts().euid == 0


def test_a_sudo_that_wants_a_password_is_a_permission_error(tmp_path: Path) -> None:
    path = programs(
        tmp_path / "bin",
        {"python3": interpreters()["3.11"], "id": NOT_ROOT, "sudo": REFUSING_SUDO},
    )
    with sshd(tmp_path / "server", path=path) as server:
        with pytest.raises(PermissionDeniedError, match=r"a password is required.*NOPASSWD"):
            start_ssh_agent(server.target)
        with start_ssh_agent(server.target, sudo=False) as agent:
            assert agent.facts().system == "Linux"


class Echo:
    """A server on a loopback port that sends back what it gets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                while data := connection.recv(1 << 16):
                    if data == b"end":
                        return
                    connection.sendall(data)

    def close(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(b"end")
        self._thread.join(30)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    running = Echo()
    yield running
    running.close()


def _read(connection: socket.socket) -> bytes:
    """Read; a reset is an end like any other."""
    try:
        return connection.recv(1 << 16)
    except ConnectionError:
        return b""


def _exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        received = b""
        while len(received) < len(data):
            part = _read(connection)
            if not part:
                break
            received += part
        return received


def test_a_port_over_there_is_reached_through_ssh(server: Sshd, echo: Echo) -> None:
    data = os.urandom(1 << 19)
    with SshForward(_with_password(server, PASSWORD), echo.port) as forward:
        assert _exchange(forward.port, data) == data
        assert _exchange(forward.port, data) == data
        wait_until(lambda: not forward.clients, "the clients end with their connections")
        forward.check()


def test_a_killed_client_cuts_its_connection_and_the_next_gets_a_new_one(
    server: Sshd, echo: Echo
) -> None:
    with SshForward(server.target, echo.port) as forward:
        with socket.create_connection(("127.0.0.1", forward.port), timeout=60) as connection:
            connection.sendall(b"hello")
            assert connection.recv(5) == b"hello"
            (client,) = forward.clients
            os.kill(client, signal.SIGKILL)
            assert _read(connection) == b""
        assert _exchange(forward.port, b"again") == b"again"


def test_a_forward_that_cannot_log_in_says_so(server: Sshd, tmp_path: Path) -> None:
    known = _other_key(server, tmp_path)
    target = attrs.evolve(server.target, known_hosts=known)
    with SshForward(target, 1) as forward:
        assert _exchange(forward.port, b"hello") == b""
        wait_until(lambda: not forward.clients, "the client ends")
        with pytest.raises(HostKeyError):
            forward.check()


def test_a_forward_to_a_closed_port_says_so(server: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with SshForward(server.target, port) as forward:
        assert _exchange(forward.port, b"hello") == b""
        wait_until(lambda: not forward.clients, "the client ends")
        with pytest.raises(ConnectionLostError):
            forward.check()


def test_closing_a_forward_ends_its_clients(server: Sshd, echo: Echo) -> None:
    with (
        SshForward(server.target, echo.port) as forward,
        socket.create_connection(("127.0.0.1", forward.port), timeout=60) as connection,
    ):
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
        (client,) = forward.clients
        forward.close()
        forward.close()
        assert not runs(client)
