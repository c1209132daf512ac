"""A CVM as the target of a migration: put into waiting for migration, reached over SSH there, brought back."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import shutil
import socket
import tempfile
import weakref
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qsl

import attrs

from cvm_migrate.cloud import (
    MY_PUBLIC_IP,
    AbortReport,
    CvmInstance,
    DiskSnapshot,
    InstanceHealth,
    RescueAccess,
    RescueTarget,
    TargetWish,
    check_fit,
)
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import (
    CancelledError,
    ConnectionLostError,
    CvmMigrateError,
    InvalidRequestError,
    StepOrderError,
)
from cvm_migrate.interfaces import Agent
from cvm_migrate.migration._arrange import arrange, devices_of
from cvm_migrate.migration._endpoints import Endpoint
from cvm_migrate.migration._routes import LOOPBACK, DirectRoute, Route
from cvm_migrate.migration._samples import is_same, sampled, take
from cvm_migrate.model import Finding, HostFacts, Severity
from cvm_migrate.transport import SshTarget, start_ssh_agent

# What is noted of the disks before the first write.
_SAMPLE: Final = "cvm.sample"

_ANY: Final = "0.0.0.0"  # noqa: S104 - mutual TLS decides who gets in

# The rescue system's SSH server answers some time after the state says that it is there. In seconds.
_SSH_PATIENCE: Final = 180.0

_TEXT: Final = re.compile(
    r"cvm:(?P<region>[^/?]+)/(?P<id>ins-[^/?,]+)(?P<disks>/[^?]*)?(?:\?(?P<query>.*))?"
)
_YES: Final[Mapping[str, bool]] = {"yes": True, "no": False}


class CvmTarget:
    """A CVM as the target of a migration.

    Args:
        instance: Which.
        disks: As the rescue system names them, in the order of the source's; ``None``: those of the instance in the
            API's order, as many as the source's, recognised there by serial number or size.
        python: The interpreter for the agent there; ``None``: the best one there.
        data_port: Where it listens for the data.
        data_host: Address under which the source finds it; ``None``: the one SSH uses.
        source: Address the data comes from, for the rule in the security group; ``None``: where the source is
            reached, or this machine's own address as the API sees it. ``""`` makes no rule.
        snapshots: Make a snapshot of each disk before the first write.
        drop_snapshots: Delete these once :meth:`finish` has found the instance running and well, instead of keeping
            them until they delete themselves.
        take_over: Use it although it waits for migration already, because of someone else.
        ledger: Name for an entry in the Migration Service Platform; ``None`` for none.
        config: Another configuration file for OpenSSH than the user's.
        jump: A machine on the way to the rescue system's SSH.
    """

    def __init__(
        self,
        instance: CvmInstance,
        *,
        disks: Sequence[str] | None = None,
        python: str | None = None,
        data_port: int = 443,
        data_host: str | None = None,
        source: str | None = None,
        snapshots: bool = True,
        drop_snapshots: bool = False,
        take_over: bool = False,
        ledger: str | None = None,
        config: Path | None = None,
        jump: str | None = None,
    ) -> None:
        if disks is not None:
            _refuse_paths(disks)
        if not 0 < data_port < 65_536:
            raise InvalidRequestError(f"not a port: {data_port}", remedy="Give 1 to 65535")
        self.instance = instance
        self._disks = None if disks is None else tuple(disks)
        self._named = disks is not None
        self._python = python
        self._data_host = data_host
        self._data_port = data_port
        self._source = source
        self.drop_snapshots = drop_snapshots
        self._ledger = ledger
        self._config = config
        self._jump = jump
        self._wish = TargetWish(
            data_port=data_port,
            source=source or None,
            snapshots=snapshots,
            open_port=source != "",
            take_over=take_over,
        )
        self._cancel: CancelToken | None = None
        self._notes: MutableMapping[str, str] = {}
        self._target: RescueTarget | None = None
        self._begun: MutableMapping[str, str] = {}
        self._access: RescueAccess | None = None
        self._folder: Path | None = None
        self._entries = 0
        self.health: InstanceHealth | None = None
        self.aborted: AbortReport | None = None
        self.left: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        """Name it as the command line does."""
        return f"CvmTarget({self.description!r})"

    def expect(self, source: Endpoint, *, cancel: CancelToken | None = None) -> None:
        """Learn what is known of the source before anything begins.

        Args:
            source: Where the data comes from.
            cancel: Ends waits for the cloud.
        """
        self._cancel = cancel
        if self._disks is None:
            letters = [chr(ord("a") + number) for number in range(len(source.disks))]
            self._disks = tuple(f"/dev/vd{letter}" for letter in letters)
        if self._source is None:
            self._wish = attrs.evolve(self._wish, source=_address(source))

    def remember(self, notes: MutableMapping[str, str]) -> None:
        """Learn what is noted already, so that :meth:`check` knows whether it waits because of this migration."""
        self._notes = notes

    # What it is

    @property
    def description(self) -> str:
        """``cvm:``, region, instance and disks."""
        return f"{self.instance.description}{','.join(self._disks or ())}"

    @property
    def disks(self) -> tuple[str, ...]:
        """Paths of the disks as the rescue system names them."""
        return ("/dev/vda",) if self._disks is None else self._disks

    @property
    def creates(self) -> bool:
        """Whether a disk that does not exist is made: no."""
        return False

    @property
    def reachable(self) -> bool:
        """Whether an agent can be started before it begins: no."""
        return False

    @property
    def local(self) -> bool:
        """Whether it is the caller's own machine: no."""
        return False

    @property
    def ssh(self) -> SshTarget | None:
        """How its rescue system is reached; ``None`` until it waits for migration."""
        access = self._access
        # Asked by isinstance() as well, which must not fail.
        return None if access is None else self._login(access)

    def _login(self, access: RescueAccess) -> SshTarget:
        return SshTarget(
            f"{access.user}@{access.host}",
            port=access.port,
            password=access.password,
            config=self._config,
            jump=self._jump,
            pin_on_first_use=self._pins(),
        )

    @property
    def data_port(self) -> int:
        """Where it listens."""
        return self._data_port

    @property
    def opens_port(self) -> bool:
        """Whether a rule for the data port is made when it begins."""
        return self._wish.open_port and self._wish.source is not None

    def data_address(self) -> str | None:
        """Return the address under which the source is going to find it, as far as that is known by now.

        Raises:
            CancelledError: The caller called the step off.
            CvmMigrateError: The cloud refuses to tell.
        """
        if self._data_host is not None:
            return self._data_host
        if self._access is not None:
            return self._access.host
        return self.instance.host_of(self.instance.describe(cancel=self._cancel))

    def bind_address(self, *, same_host: bool) -> str:
        """Return where it listens: everywhere, unless it is simulated on the source's machine."""
        return LOOPBACK if same_host and self._data_host is None else _ANY

    def route(self, port: int, *, same_host: bool) -> Route | None:
        """Return the direct way for the source's data to *port*."""
        if self._data_host is not None:
            return DirectRoute(self._data_host, port)
        return DirectRoute(LOOPBACK if same_host else self._waiting().host, port)

    # What is done to it

    def check(self, role: Literal["source", "target"]) -> Sequence[Finding]:
        """Return what the API tells about it; changes nothing."""
        _refuse_source(role)
        return self._rescue(self._notes).check()

    def half_way(self, notes: MutableMapping[str, str]) -> str | None:
        """Return in which state the instance may be because of this migration; ``None`` where nothing is left to do."""
        return self._rescue(notes).half_way

    def check_source(self, sizes: Sequence[int], facts: HostFacts) -> Sequence[Finding]:
        """Return what speaks against this source on this instance; it is remembered until the target begins.

        Args:
            sizes: Of the source's disks, in bytes.
            facts: What the source's agent found.
        """
        firmware: Literal["bios", "uefi"] = "uefi" if facts.firmware == "uefi" else "bios"
        self._wish = attrs.evolve(
            self._wish, disk_sizes=tuple(sizes), machine=facts.machine, firmware=firmware
        )
        return check_fit(self.instance.describe(cancel=self._cancel), self._wish)

    def begin(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Make snapshots, open the data port, put it into waiting for migration."""
        _refuse_source(role)
        self._target = self._rescue(notes)
        self._begun = notes
        access = self._target.before_prepare(cancel=self._cancel)
        if access != self._access:
            self._entries += 1
        self._access = access

    def open_agent(self) -> Agent:
        """Start an agent in the rescue system."""
        if self._target is None:
            raise self._too_early()
        agent = self._start_agent(self._waiting())
        try:
            if not self._named:
                self._disks = self._arranged(agent, len(self.disks))
            if not self._target.written:
                self._begun[_SAMPLE] = take(agent, self.disks)
        except BaseException:
            agent.close()
            raise
        # Whoever has an agent there may write.
        self._target.writing()
        return agent

    def _arranged(self, agent: Agent, count: int) -> tuple[str, ...]:
        """Find the instance's first *count* disks among those of its rescue system, before anything is written."""
        disks = self.instance.describe(cancel=self._cancel).disks
        return arrange(disks[:count], devices_of(agent.facts()))

    def _start_agent(self, access: RescueAccess) -> Agent:
        policy = self.instance.policy
        deadline = Deadline(_SSH_PATIENCE, clock=policy.clock)
        while True:
            try:
                return start_ssh_agent(self._login(access), python=self._python)
            except ConnectionLostError:
                if deadline.passed:
                    raise
                self.instance.pause("waiting for the rescue system's SSH", deadline, self._cancel)

    def finish(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Start the instance from what was copied; its health is in :attr:`health`, what remains in :attr:`left`.

        Raises:
            CancelledError: It was called off; the message says how the instance was left. Can be repeated.
            CvmMigrateError: What the cloud refuses; can be repeated.
        """
        _refuse_source(role)
        target = self._rescue(notes)
        self.health = target.after_cutover(cancel=self._cancel)
        self._forget()
        self.left = self._settle_snapshots(target, self.health)

    def abort(self, role: Literal["source", "target"], notes: MutableMapping[str, str]) -> None:
        """Put it back into the state it was in; what was done is in :attr:`aborted`, what remains in :attr:`left`.

        Raises:
            CancelledError: It was called off; the message says how the instance was left. Can be repeated.
            CvmMigrateError: What the cloud refuses; can be repeated.
        """
        _refuse_source(role)
        sample = notes.get(_SAMPLE)
        prove = None if sample is None else functools.partial(self._is_back, sample)
        self.aborted = self._rescue(notes).on_abort(prove=prove, cancel=self._cancel)
        self._forget()
        if self.aborted.restored:
            # What comes next has a sample of its own.
            notes.pop(_SAMPLE, None)
        self.left = _remaining(self.aborted.snapshots, "the migration was given up")

    # Inside

    def _is_back(self, sample: str, access: RescueAccess) -> bool:
        self._entries += 1
        agent = self._start_agent(access)
        try:
            paths = sampled(sample)
            # The names may be others than when it was taken.
            now = paths if self._named else self._arranged(agent, len(paths))
            return is_same(agent, sample, now)
        finally:
            agent.close()

    def _settle_snapshots(
        self, target: RescueTarget, health: InstanceHealth
    ) -> tuple[Finding, ...]:
        """Delete the snapshots, if that is wanted and all is well; return what is to be told of those that remain."""
        if not self.drop_snapshots:
            return _remaining(target.snapshots, "drop_snapshots was not asked for")
        if not health.healthy:
            return _remaining(target.snapshots, " ".join(health.problems), asked=True)
        try:
            target.discard_snapshots(cancel=self._cancel)
        except CancelledError as error:
            error.message = f"{self.instance.instance_id} runs the copy, but deleting its snapshots was called off"
            error.remedy = "Call finish() again: it deletes the rest"
            raise
        except CvmMigrateError as error:
            # The server works already: no migration fails for what is left over.
            return _remaining(target.snapshots, error.message, asked=True)
        return ()

    def _rescue(self, notes: MutableMapping[str, str]) -> RescueTarget:
        return RescueTarget(self.instance, notes, wish=self._wish, ledger=self._ledger)

    def _waiting(self) -> RescueAccess:
        if self._access is None:
            raise self._too_early()
        return self._access

    def _too_early(self) -> StepOrderError:
        return StepOrderError(
            f"{self.instance.instance_id} is not waiting for migration", remedy="Call prepare()"
        )

    def _forget(self) -> None:
        self._target = None
        self._access = None

    def _pins(self) -> Path:
        """Return a file for the host key of this rescue system: each one has a key of its own."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="cvm-migrate-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / f"known-hosts-{self._entries}"


def parse_cvm(text: str, *, config: Path | None = None) -> CvmTarget:
    """Read ``cvm:REGION/INSTANCE``, with disks and settings: ``cvm:ap-guangzhou/ins-0/dev/vda?snapshots=no``.

    Settings are ``endpoint``, ``data_port``, ``data_host``, ``source``, ``snapshots``, ``drop_snapshots``,
    ``take_over``, ``ledger`` and ``jump``; those that are yes or no are written so.

    Args:
        text: The text.
        config: Another configuration file for OpenSSH than the user's.

    Raises:
        InvalidRequestError: It is none.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise InvalidRequestError(
            f"{text!r} is no CVM",
            remedy="Write cvm:REGION/INSTANCE, such as cvm:ap-guangzhou/ins-0a1b2c3d",
        )
    settings = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
    endpoint = settings.pop("endpoint", None)
    instance = CvmInstance(match["id"], region=match["region"], endpoint=endpoint)
    port = settings.pop("data_port", "443")
    if not port.isdigit():
        raise InvalidRequestError(f"not a port: {port}", remedy="Give 1 to 65535")
    made = CvmTarget(
        instance,
        disks=match["disks"].split(",") if match["disks"] else None,
        data_port=int(port),
        data_host=settings.pop("data_host", None),
        source=settings.pop("source", None),
        snapshots=_yes_or_no(settings, "snapshots", default=True),
        drop_snapshots=_yes_or_no(settings, "drop_snapshots", default=False),
        take_over=_yes_or_no(settings, "take_over", default=False),
        ledger=settings.pop("ledger", None),
        config=config,
        jump=settings.pop("jump", None),
    )
    if settings:
        raise InvalidRequestError(
            f"{text!r} has unknown settings: {', '.join(settings)}",
            remedy="Use endpoint, data_port, data_host, source, snapshots, drop_snapshots, take_over, ledger or"
            " jump",
        )
    return made


def _remaining(
    snapshots: Sequence[DiskSnapshot], reason: str, *, asked: bool = False
) -> tuple[Finding, ...]:
    """Return what the caller should know of snapshots that are kept, and paid for."""
    if not snapshots:
        return ()
    names = ", ".join(f"{one.snapshot_id} of {one.disk_id}" for one in snapshots)
    ends = sorted({one.until for one in snapshots if one.until})
    until = f"they delete themselves on {' and '.join(ends)}" if ends else "they may stay for ever"
    return (
        Finding(
            Severity.WARNING if asked else Severity.INFO,
            f"snapshots remain of what was on the target before: {names}",
            f"{until}; {reason}",
            "Delete them in the console once they are not wanted any more",
        ),
    )


def _yes_or_no(settings: dict[str, str], name: str, *, default: bool) -> bool:
    text = settings.pop(name, None)
    if text is None:
        return default
    if text not in _YES:
        raise InvalidRequestError(f"{name}={text} is neither yes nor no", remedy="Write yes or no")
    return _YES[text]


def _refuse_source(role: Literal["source", "target"]) -> None:
    if role == "source":
        raise InvalidRequestError(
            "a CVM in waiting for migration cannot be a source",
            remedy="Name a running one as ssh://root@host/dev/vda",
        )


def _refuse_paths(disks: Sequence[str]) -> None:
    for path in disks:
        if not path.startswith("/"):
            raise InvalidRequestError(
                f"{path!r} is no absolute path", remedy="Write it from / on", device=path
            )
    if not disks or len(set(disks)) != len(disks):
        raise InvalidRequestError(
            f"not a list of disks: {', '.join(disks)}", remedy="Name each once"
        )


def _address(source: Endpoint) -> str | None:
    """Return the address that a source's data comes from, as far as is known here."""
    if source.ssh is None:
        return MY_PUBLIC_IP
    name = source.ssh.host_name()
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(name))
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    return str(found[0][4][0])
