"""How another machine is reached: OpenSSH's own client, so that its configuration, keys and jump hosts work."""

from __future__ import annotations

import math
import os
import re
import subprocess
from pathlib import Path
from typing import Final, Literal

import attrs

from cvm_migrate.errors import (
    AgentLostError,
    ConnectionLostError,
    CvmMigrateError,
    HostKeyError,
    InvalidRequestError,
    PermissionDeniedError,
    UnsupportedError,
)
from cvm_migrate.transport._askpass import PasswordHelper
from cvm_migrate.transport._bootstrap import Bootstrap, Sudo
from cvm_migrate.transport._child import Child
from cvm_migrate.transport._environment import inherited
from cvm_migrate.transport._session import AgentSession

_CONNECT_TIMEOUT: Final = 30
_PATIENCE: Final = 90.0
_ALIVE: Final = 15
# What OpenSSH's client says (openssh-portable: sshconnect.c, sshconnect2.c, readconf.c; 7.4 to 10.0).
_CHANGED: Final = re.compile(r"REMOTE HOST IDENTIFICATION HAS CHANGED|differs from the key")
_UNKNOWN: Final = re.compile(r"Host key verification failed|host key is known for")
_DENIED: Final = re.compile(
    r"Permission denied \(|Too many authentication failures|no mutual|No supported authentication methods"
)
_TOO_OLD: Final = re.compile(r"Unable to negotiate|no matching .* found")
_UNREACHABLE: Final = re.compile(
    r"Connection (?:refused|timed out|reset|closed)|[Nn]o route to host|unreachable"
    r"|Could not resolve hostname|Operation timed out|timed out during banner|kex_exchange_identification"
    r"|not responding|Broken pipe|stdio forwarding failed|open failed"
)


def _check_destination(_: object, __: object, value: str) -> None:
    if not value or value.startswith("-") or re.search(r"[\s\0]", value):
        raise InvalidRequestError(
            f"{value!r} is no SSH destination",
            remedy="Write it as user@host, or as a name of your ssh config",
        )


@attrs.frozen
class SshTarget:
    """A machine that is reached by SSH.

    What is ``None`` is left to the user's own configuration of OpenSSH.

    Attributes:
        destination: ``user@host``, or a name of the user's configuration.
        port: Its port.
        config: Another configuration file than the user's.
        identity: A file with a private key.
        jump: A machine on the way: ``user@host:port``, or several with commas.
        password: For a login without keys, as in rescue mode. It is given to the SSH client alone, through
            memory, and not to one that leads to a jump host.
        known_hosts: Another file of known host keys than the user's.
        pin_on_first_use: A file of its own for a machine whose host key no one can know yet: the first key that
            it shows is written there, and any other is refused from then on. Without it the key must be known.
    """

    destination: str = attrs.field(validator=_check_destination)
    port: int | None = attrs.field(default=None, kw_only=True)
    config: Path | None = attrs.field(default=None, kw_only=True)
    identity: Path | None = attrs.field(default=None, kw_only=True)
    jump: str | None = attrs.field(default=None, kw_only=True)
    password: str | None = attrs.field(default=None, kw_only=True, repr=False)
    known_hosts: Path | None = attrs.field(default=None, kw_only=True)
    pin_on_first_use: Path | None = attrs.field(default=None, kw_only=True)

    def client(self, *options: str, silence: float) -> list[str]:
        """Return the client's program and arguments up to and with the destination.

        Args:
            options: More of its arguments.
            silence: Seconds without a sign from the other end after which it ends.
        """
        settings = {
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": str(_CONNECT_TIMEOUT),
            "ServerAliveInterval": str(_ALIVE),
            "ServerAliveCountMax": str(max(3, math.ceil(silence / _ALIVE))),
            # A master made here would outlive this client and hold its pipes; an existing one may be used.
            "ControlMaster": "no",
            "LogLevel": "INFO",
            "RequestTTY": "no",
            "RemoteCommand": "none",
            "PermitLocalCommand": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
        }
        if self.known_hosts is not None:
            settings["UserKnownHostsFile"] = _quoted(self.known_hosts)
        if self.pin_on_first_use is not None:
            settings |= {
                "StrictHostKeyChecking": "accept-new",
                "UserKnownHostsFile": _quoted(self.pin_on_first_use),
                "GlobalKnownHostsFile": "/dev/null",
                "UpdateHostKeys": "no",
                "HashKnownHosts": "no",
                # A connection that is open already was checked against other keys.
                "ControlPath": "none",
            }
        if self.password is not None:
            settings |= {
                "BatchMode": "no",
                "NumberOfPasswordPrompts": "1",
                "PreferredAuthentications": "publickey,password,keyboard-interactive"
                if self.identity is not None
                else "password,keyboard-interactive",
                "ControlPath": "none",
            }
        command = ["ssh", "-T"]
        if self.config is not None:
            command += ["-F", os.fspath(self.config)]
        if self.port is not None:
            command += ["-p", str(self.port)]
        if self.identity is not None:
            command += ["-i", os.fspath(self.identity)]
        if self.jump is not None:
            command += ["-J", self.jump]
        for name, value in settings.items():
            command += ["-o", f"{name}={value}"]
        return [*command, *options, "--", self.destination]

    def host_name(self) -> str:
        """Return the name or address that the user's configuration of OpenSSH has for it."""
        written = self.destination.rpartition("@")[2]
        try:
            done = subprocess.run(
                self.client("-G", silence=0),
                check=False,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                env=inherited(),
                text=True,
                errors="replace",
                timeout=_CONNECT_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired):
            # What is wrong with the client is told when the agent is started.
            return written
        found = re.search(r"^hostname (\S+)$", done.stdout, re.MULTILINE)
        return written if found is None else found[1]


def _quoted(path: Path) -> str:
    # These options take lists separated by blanks; OpenSSH reads quotation marks.
    return f'"{path}"'


def start_ssh_agent(
    target: SshTarget,
    *,
    sudo: Literal["auto"] | bool = "auto",
    python: str | None = None,
    silence: float = 120.0,
) -> AgentSession:
    """Start an agent on another machine, which needs a shell and a Python and nothing else.

    One connection carries everything. The agent's program is in memory there (``/dev/shm`` or ``/run``; ``/tmp``
    where neither takes it), in a file that has no name, so that nothing is left behind whatever happens.

    Args:
        target: The machine.
        sudo: Whether to become root by ``sudo`` without a password; ``auto``: if the login is another user's.
        python: The interpreter to use there; ``None``: the best that is found.
        silence: Seconds after which either end takes the other for lost.

    Raises:
        HostKeyError: The host key is unknown or has changed.
        PermissionDeniedError: The login or ``sudo`` is refused.
        ConnectionLostError: The machine cannot be reached.
        UnsupportedError: There is no Python that will do.
        AgentLostError: The agent ended before its greeting.
    """
    description = f"the agent on {target.destination}"
    mode: Sudo = "auto" if sudo == "auto" else "always" if sudo else "never"
    bootstrap = Bootstrap(sudo=mode, python=python, arguments=["--silence", str(silence)])
    pinned = _lines(target.pin_on_first_use)
    with PasswordHelper(target.password) as helper:
        child = _client(target, helper, [bootstrap.command], silence=silence)
        try:
            received = bootstrap.perform(child, description=description, patience=_PATIENCE)
        except AgentLostError as error:
            child.end(patience=1.0)
            raise explain(target, child.errors, error) from error
        except BaseException:
            child.end(patience=1.0)
            raise
    notes = [
        f"the host key of {target.destination} was pinned on first use: {line}"
        for line in _lines(target.pin_on_first_use)
        if line not in pinned
    ]
    return AgentSession(
        child,
        description=description,
        silence=silence,
        patience=_PATIENCE,
        received=received,
        secrets=[] if target.password is None else [target.password],
        notes=notes,
        far=True,
    )


def _client(
    target: SshTarget, helper: PasswordHelper, words: list[str], *, silence: float
) -> Child:
    try:
        return Child(
            [*target.client(silence=silence), *words],
            environment=inherited(**helper.environment),
        )
    except OSError as error:
        raise AgentLostError(
            f"OpenSSH's client could not be started: {error}", remedy="Install it (openssh-client)"
        ) from error


def _lines(path: Path | None) -> list[str]:
    if path is None or not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def explain(target: SshTarget, words: str, error: CvmMigrateError) -> CvmMigrateError:
    """Return what the client's last words mean; *error* with these words where nothing better is known."""
    if target.password:
        words = words.replace(target.password, "***")
    said = " / ".join(line.strip() for line in words.splitlines() if line.strip("@ \t\r"))[-1500:]
    where = target.destination
    if _CHANGED.search(words):
        return HostKeyError(
            f"the host key of {where} is not the one that is known: {said}",
            remedy="Find out why before going on. If the machine was made anew, take its old key out with "
            "ssh-keygen -R and check the new one",
            device=where,
        )
    if _UNKNOWN.search(words):
        return HostKeyError(
            f"the host key of {where} is not known: {said}",
            remedy="Log in once with ssh and compare the fingerprint with the machine's own "
            "(ssh-keygen -lf on its console), or add the key to known_hosts",
            device=where,
        )
    if _DENIED.search(words):
        return PermissionDeniedError(
            f"{where} refuses the login: {said}",
            remedy="Check the user, the key or the password; ssh -v shows what is tried",
            device=where,
        )
    if _TOO_OLD.search(words):
        return UnsupportedError(
            f"{where} speaks only an SSH that this client holds for too weak: {said}",
            remedy="Allow it for this one machine in your ssh config, such as HostKeyAlgorithms +ssh-rsa and "
            "KexAlgorithms +diffie-hellman-group14-sha1",
            device=where,
        )
    if _UNREACHABLE.search(words):
        return ConnectionLostError(
            f"{where} cannot be reached by SSH: {said}",
            remedy="Check the address, the port, the security group or firewall, and that sshd runs there",
            device=where,
        )
    return AgentLostError(f"{error.message}; it said: {said}" if said else error.message)
