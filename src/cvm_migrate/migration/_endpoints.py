"""Where disks are: on this machine, in image files, on a host reached over SSH.

Anything that answers as :class:`Endpoint` does can be a source or a target; the cloud layer brings more.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol, runtime_checkable

import attrs

from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.interfaces import Agent
from cvm_migrate.migration._routes import LOOPBACK, DirectRoute, Route
from cvm_migrate.model import Finding
from cvm_migrate.transport import SshTarget, start_local_agent, start_ssh_agent


def _everywhere(host: str) -> str:
    """Return the address on which whoever knows *host* is listened to: mutual TLS decides who gets in."""
    return "::" if ":" in host else "0.0.0.0"  # noqa: S104


@runtime_checkable
class Endpoint(Protocol):
    """One side of a migration.

    ``begin``, ``finish`` and ``abort`` are for endpoints that have to be put into a state first, such as a cloud
    instance; each may be called more than once, also by a new process, with the same *notes*: names and texts
    that are kept in the state directory.
    """

    @property
    def description(self) -> str:
        """What messages call it, in the form :func:`parse_endpoint` reads where there is one."""
        ...

    @property
    def disks(self) -> tuple[str, ...]:
        """Paths of the disks as the host's agent names them, in the order of the other side's."""
        ...

    @property
    def creates(self) -> bool:
        """Whether a disk that does not exist is made, with the source's size (image files)."""
        ...

    @property
    def reachable(self) -> bool:
        """Whether an agent can be started before ``begin``; if not, ``check`` asks :meth:`check` only."""
        ...

    @property
    def local(self) -> bool:
        """Whether it is the caller's own machine."""
        ...

    @property
    def ssh(self) -> SshTarget | None:
        """How the caller reaches it by SSH; ``None``: it is the caller's own machine."""
        ...

    @property
    def data_port(self) -> int | None:
        """Where it listens as a target; ``None``: as the options say."""
        ...

    def bind_address(self, *, same_host: bool) -> str:
        """Return the address on which it listens as a target; *same_host*: the source is on the same machine."""
        ...

    def route(self, port: int, *, same_host: bool) -> Route | None:
        """Return the direct way for the source's data to *port* of this target; ``None``: none is known."""
        ...

    def check(self, role: Literal["source", "target"]) -> Sequence[Finding]:
        """Return what can be known without an agent; changes nothing."""
        ...

    def begin(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Make it ready for an agent."""
        ...

    def open_agent(self) -> Agent:
        """Start an agent there."""
        ...

    def finish(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Leave it in use: the migration succeeded."""
        ...

    def abort(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Put it back into the state it was in."""
        ...


def _paths(value: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    items = [value] if isinstance(value, str | os.PathLike) else list(value)
    return tuple(os.fspath(item) for item in items)


def _some_absolute(
    instance: Host, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]
) -> None:
    if not value:
        raise InvalidRequestError(
            f"{type(instance).__name__} names no disk",
            remedy=f"Give at least one, such as {attribute.alias}=['/dev/sdb']",
        )
    for path in value:
        if not path.startswith("/"):
            raise InvalidRequestError(
                f"{path!r} is no absolute path", remedy="Write it from / on", device=path
            )
    if len(set(value)) != len(value):
        raise InvalidRequestError(
            f"a disk is named twice: {', '.join(value)}", remedy="Name each once"
        )


@attrs.frozen(kw_only=True)
class Host:
    """What endpoints that need no preparation have in common.

    Attributes:
        paths: Of whole disks there (argument ``disks``).
        python: The interpreter for the agent; ``None``: the best one there.
        data_host: Address under which the source's agent finds this host as a target; ``None``: the name that
            SSH uses, or loopback where both are on one machine.
        data_port: Where it listens as a target; ``None``: as the options say.
    """

    # A property of a protocol cannot be a field with a converter, so the field has a name of its own.
    paths: tuple[str, ...] = attrs.field(converter=_paths, validator=_some_absolute, alias="disks")
    python: str | None = None
    data_host: str | None = None
    data_port: int | None = None

    @property
    def disks(self) -> tuple[str, ...]:
        """Paths of the disks as the host's agent names them."""
        return self.paths

    @property
    def creates(self) -> bool:
        """Whether a disk that does not exist is made: only image files are."""
        return False

    @property
    def reachable(self) -> bool:
        """Whether an agent can be started at once: yes."""
        return True

    def bind_address(self, *, same_host: bool) -> str:
        """Return where it listens as a target: on loopback if that is enough, else everywhere."""
        return (
            LOOPBACK if same_host and self.data_host is None else _everywhere(self.data_host or "")
        )

    def check(self, role: Literal["source", "target"]) -> Sequence[Finding]:
        """Return nothing: agents find out all there is."""
        del role
        return ()

    def begin(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Do nothing: it is ready."""

    def finish(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Do nothing: nothing was changed but the target's disks."""

    def abort(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Do nothing: nothing was changed but the target's disks."""


class _CallersMachine:
    """What the caller's own machine does as a target."""

    data_host: str | None

    @property
    def local(self) -> bool:
        """Whether it is the caller's own machine: yes."""
        return True

    @property
    def ssh(self) -> SshTarget | None:
        """How it is reached by SSH: not at all."""
        return None

    def bind_address(self, *, same_host: bool) -> str:
        """Return where it listens as a target: on loopback, unless the source is told another address."""
        del same_host
        return LOOPBACK if self.data_host is None else _everywhere(self.data_host)

    def route(self, port: int, *, same_host: bool) -> Route | None:
        """Return the direct way for the source's data to *port*; ``None``: this machine's address is not known."""
        if self.data_host is not None:
            return DirectRoute(self.data_host, port)
        return DirectRoute(LOOPBACK, port) if same_host else None


@attrs.frozen(kw_only=True)
class LocalHost(_CallersMachine, Host):
    """The caller's own machine.

    Attributes:
        sudo: Start the agent with ``sudo -n``, for callers who are not root.
    """

    sudo: bool = False

    @property
    def description(self) -> str:
        """``local:`` and the paths."""
        return f"local:{','.join(self.disks)}"

    def open_agent(self) -> Agent:
        """Start an agent as a child process."""
        return start_local_agent(python=self.python or sys.executable, sudo=self.sudo)


@attrs.frozen
class ImageFile(_CallersMachine, Host):
    """Raw image files on the caller's own machine, one a disk.

    As a source they are read; as a target they are made, or grown, to the source's sizes. They need no root.

    Attributes:
        paths: One, or one for each disk (argument ``path``).
    """

    paths: tuple[str, ...] = attrs.field(
        converter=_paths, validator=_some_absolute, alias="path", kw_only=False
    )

    @property
    def creates(self) -> bool:
        """Whether a disk that does not exist is made: yes."""
        return True

    @property
    def description(self) -> str:
        """``image:`` and the paths."""
        return f"image:{','.join(self.disks)}"

    def open_agent(self) -> Agent:
        """Start an agent as a child process."""
        return start_local_agent(python=self.python or sys.executable)


@attrs.frozen
class SshHost(Host):
    """A host reached with OpenSSH's client, so that the caller's own configuration, keys and jump hosts count.

    What is ``None`` is left to that configuration.

    Attributes:
        address: As ``ssh`` takes it: ``root@host``, or a name of the caller's configuration.
        port: Of its SSH server.
        sudo: Whether to become root by ``sudo`` without a password; ``auto``: if the login is another user's.
        config: Another configuration file than the user's.
        identity: A file with a private key.
        jump: A machine on the way.
        password: For a login without keys; given to the SSH client alone, through memory.
        known_hosts: Another file of known host keys than the user's.
        pin_on_first_use: A file for the host key of a machine that no one can know yet.
    """

    address: str = attrs.field(kw_only=False)
    port: int | None = attrs.field(default=None, kw_only=True)
    sudo: Literal["auto"] | bool = attrs.field(default="auto", kw_only=True)
    config: Path | None = attrs.field(default=None, kw_only=True)
    identity: Path | None = attrs.field(default=None, kw_only=True)
    jump: str | None = attrs.field(default=None, kw_only=True)
    password: str | None = attrs.field(default=None, kw_only=True, repr=False)
    known_hosts: Path | None = attrs.field(default=None, kw_only=True)
    pin_on_first_use: Path | None = attrs.field(default=None, kw_only=True)

    @property
    def ssh(self) -> SshTarget:
        """How it is reached.

        Raises:
            InvalidRequestError: The address is none.
        """
        return SshTarget(
            self.address,
            port=self.port,
            config=self.config,
            identity=self.identity,
            jump=self.jump,
            password=self.password,
            known_hosts=self.known_hosts,
            pin_on_first_use=self.pin_on_first_use,
        )

    @property
    def description(self) -> str:
        """``ssh://``, the address and the paths."""
        port = "" if self.port is None else f":{self.port}"
        return f"ssh://{self.address}{port}{','.join(self.disks)}"

    @property
    def local(self) -> bool:
        """Whether it is the caller's own machine: no, as far as is known."""
        return False

    def bind_address(self, *, same_host: bool) -> str:
        """Return where it listens as a target: on loopback if that is enough, else everywhere."""
        if self.data_host is None and same_host:
            return LOOPBACK
        return _everywhere(self.data_host or self.ssh.host_name())

    def route(self, port: int, *, same_host: bool) -> Route | None:
        """Return the direct way for the source's data to *port*."""
        if self.data_host is not None:
            return DirectRoute(self.data_host, port)
        return DirectRoute(LOOPBACK if same_host else self.ssh.host_name(), port)

    def open_agent(self) -> Agent:
        """Start an agent there."""
        return start_ssh_agent(self.ssh, sudo=self.sudo, python=self.python)


def parse_endpoint(
    text: str, *, more: Mapping[str, Callable[[str], Endpoint]] | None = None
) -> Endpoint:
    """Read an endpoint as the command line writes it.

    Args:
        text: ``local:/dev/sdb``, ``image:/path/file.img`` or ``ssh://user@host[:port]/dev/sda``; several disks are
            separated by commas.
        more: Functions for further schemes, which get the whole text.

    Raises:
        InvalidRequestError: It is none of these.
    """
    scheme, colon, rest = text.partition(":")
    if not colon:
        raise InvalidRequestError(
            f"{text!r} names no kind of place",
            remedy=f"Write local:{text}, image:{text} or ssh://user@host{text}"
            if text.startswith("/")
            else "Write local:/dev/sdb, image:/path/file.img or ssh://user@host/dev/sda",
        )
    if more is not None and scheme in more:
        return more[scheme](text)
    if scheme == "local":
        return LocalHost(disks=rest.split(","))
    if scheme == "image":
        return ImageFile(rest.split(","))
    if scheme == "ssh":
        return _parse_ssh(text)
    known = ", ".join(["local", "image", "ssh", *sorted(more or ())])
    raise InvalidRequestError(
        f"{text!r} begins with an unknown kind of place, {scheme!r}",
        remedy=f"Use one of {known}",
    )


_SSH: Final = re.compile(
    r"ssh://(?:(?P<user>[^@/]+)@)?(?P<host>\[[0-9a-fA-F:.%]+\]|[^@/:\[\]]+)(?::(?P<port>\d{1,5}))?(?P<disks>/.+)"
)


def _parse_ssh(text: str) -> SshHost:
    match = _SSH.fullmatch(text)
    user = "" if match is None or match["user"] is None else match["user"]
    if match is None or ":" in user:
        raise InvalidRequestError(
            f"{text!r} is no host with a disk",
            remedy="Write ssh://user@host[:port]/dev/sda, without a password: ssh asks for it, or uses keys",
        )
    # OpenSSH takes an IPv6 address without brackets.
    address = f"{user}@" if user else ""
    address += match["host"].strip("[]")
    port = None if match["port"] is None else int(match["port"])
    endpoint = SshHost(address, disks=match["disks"].split(","), port=port)
    # A host that ssh would read as an option is refused now, not when it is used.
    _ = endpoint.ssh
    return endpoint
