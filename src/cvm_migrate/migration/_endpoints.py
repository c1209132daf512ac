"""Where disks are: on this machine, in image files, on a host reached over SSH.

Anything that answers as :class:`Endpoint` does can be a source or a target; the cloud layer brings more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Literal, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

import attrs

from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.interfaces import Agent
from cvm_migrate.model import Finding
from cvm_migrate.transport import start_local_agent, start_ssh_agent


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
    def data_host(self) -> str | None:
        """Where the source's agent finds this target; ``None`` if that is not known."""
        ...

    @property
    def data_port(self) -> int | None:
        """Where it listens as a target; ``None``: as the options say."""
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


def _some_absolute(instance: Host, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if not value:
        raise InvalidRequestError(
            f"{type(instance).__name__} names no disk",
            remedy=f"Give at least one, such as {attribute.name}=['/dev/sdb']",
        )
    for path in value:
        if not path.startswith("/"):
            raise InvalidRequestError(
                f"{path!r} is no absolute path", remedy="Write it from / on", device=path
            )
    if len(set(value)) != len(value):
        raise InvalidRequestError(f"a disk is named twice: {', '.join(value)}")


@attrs.frozen(kw_only=True)
class Host:
    """What endpoints that need no preparation have in common.

    Attributes:
        disks: Paths of whole disks there.
        python: The interpreter for the agent; ``None``: the best one there.
        data_host: Where the other host's agent finds this one, if it is the target.
        data_port: Where it listens as a target; ``None``: as the options say.
    """

    disks: tuple[str, ...] = attrs.field(converter=_paths, validator=_some_absolute)
    python: str | None = None
    data_port: int | None = None

    @property
    def creates(self) -> bool:
        """Whether a disk that does not exist is made: only image files are."""
        return False

    @property
    def reachable(self) -> bool:
        """Whether an agent can be started at once: yes."""
        return True

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


@attrs.frozen(kw_only=True)
class LocalHost(Host):
    """The caller's own machine.

    Attributes:
        disks: Paths of whole disks, such as ``["/dev/sdb"]``.
        python: The interpreter for the agent; ``None``: the one that runs this.
        sudo: Start the agent with ``sudo -n``, for callers who are not root.
        data_host: Address under which the source's agent finds this machine, if that is another machine.
    """

    sudo: bool = False
    data_host: str | None = "127.0.0.1"

    @property
    def description(self) -> str:
        """``local:`` and the paths."""
        return f"local:{','.join(self.disks)}"

    @property
    def local(self) -> bool:
        """Whether it is the caller's own machine: yes."""
        return True

    def open_agent(self) -> Agent:
        """Start an agent as a child process."""
        return start_local_agent(python=self.python, sudo=self.sudo)


@attrs.frozen
class ImageFile(Host):
    """Raw image files on the caller's own machine, one a disk.

    As a source they are read; as a target they are made, or grown, to the source's sizes. They need no root.

    Attributes:
        disks: One path, or one for each disk.
        python: The interpreter for the agent; ``None``: the one that runs this.
        data_host: Address under which the source's agent finds this machine, if that is another machine.
    """

    disks: tuple[str, ...] = attrs.field(
        converter=_paths, validator=_some_absolute, alias="path", kw_only=False
    )
    data_host: str | None = attrs.field(default="127.0.0.1", kw_only=True)

    @property
    def creates(self) -> bool:
        """Whether a disk that does not exist is made: yes."""
        return True

    @property
    def description(self) -> str:
        """``image:`` and the paths."""
        return f"image:{','.join(self.disks)}"

    @property
    def local(self) -> bool:
        """Whether it is the caller's own machine: yes."""
        return True

    def open_agent(self) -> Agent:
        """Start an agent as a child process."""
        return start_local_agent(python=self.python)


@attrs.frozen
class SshHost(Host):
    """A host reached with OpenSSH's client, so that the caller's own configuration, keys and jump hosts count.

    Attributes:
        address: As ``ssh`` takes it: ``root@host``, or a name of the caller's configuration.
        disks: Paths of whole disks there.
        port: Of its SSH server; ``None``: as the configuration says.
        options: More options for ``ssh``.
        python: The interpreter for the agent; ``None``: the best one there.
        sudo: Start the agent with ``sudo -n``, for users who are not root.
        data_host: Address under which the source's agent finds this host as a target; ``None``: the host's name
            in *address*.
    """

    address: str = attrs.field(kw_only=False)
    port: int | None = attrs.field(default=None, kw_only=True)
    options: tuple[str, ...] = attrs.field(default=(), converter=tuple, kw_only=True)
    sudo: bool = attrs.field(default=False, kw_only=True)
    data_address: str | None = attrs.field(default=None, kw_only=True, alias="data_host")

    @property
    def data_host(self) -> str | None:
        """Where the source's agent finds this host."""
        return self.data_address or self.address.rpartition("@")[2]

    @property
    def description(self) -> str:
        """``ssh://``, the address and the paths."""
        port = "" if self.port is None else f":{self.port}"
        return f"ssh://{self.address}{port}{','.join(self.disks)}"

    @property
    def local(self) -> bool:
        """Whether it is the caller's own machine: no, as far as is known."""
        return False

    def open_agent(self) -> Agent:
        """Start an agent there."""
        return start_ssh_agent(
            self.address,
            port=self.port,
            options=self.options,
            python=self.python,
            sudo=self.sudo,
        )


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


def _parse_ssh(text: str) -> SshHost:
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidRequestError(f"{text!r}: {error}") from error
    if not parts.hostname or not parts.path.strip("/") or parts.password is not None:
        raise InvalidRequestError(
            f"{text!r} is no host with a disk",
            remedy="Write ssh://user@host[:port]/dev/sda, without a password: ssh asks for it, or uses keys",
        )
    if parts.hostname.startswith("-"):
        raise InvalidRequestError(f"{parts.hostname!r} is no host name: ssh would read it as an option")
    user = "" if parts.username is None else f"{unquote(parts.username)}@"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return SshHost(f"{user}{host}", disks=parts.path.split(","), port=port)
