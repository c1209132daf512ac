"""Both agents, the disks they have open, the data path between them and the tracker; mended piece by piece.

After an error it is not always known what still works. :meth:`Ends.mend` asks, keeps what answers (a tracker
that went on counting above all), and makes the rest anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Final, Literal

import attrs

from cvm_migrate.deadline import CancelToken
from cvm_migrate.disk import (
    Place,
    check_target,
    missing_remedy,
    refuse_partition,
    refuse_unsafe,
    uneven,
)
from cvm_migrate.errors import (
    CancelledError,
    ConnectionLostError,
    CvmMigrateError,
    InvalidRequestError,
    NotFoundError,
    UnsafeTargetError,
)
from cvm_migrate.events import Connected, Event, TrackerChosen
from cvm_migrate.interfaces import Agent
from cvm_migrate.migration._compare import Side, common_algorithm
from cvm_migrate.migration._endpoints import Endpoint
from cvm_migrate.migration._likeness import unlike
from cvm_migrate.migration._meter import LinkedToken
from cvm_migrate.migration._options import Options
from cvm_migrate.migration._routes import LOOPBACK, Route, SshRoute
from cvm_migrate.model import HostFacts, Listening, OpenDisk, TrackingStart
from cvm_migrate.transport import AgentSession, Identities, mint_identities

# How long the target's port is tried, where data could go through SSH instead.
_DIRECT_PATIENCE: Final = 10.0
# How long an agent that lost its caller may still hold its disks: its silence, its end, and some more.
_STALE_PATIENCE: Final = 150.0
_STALE_LOOK: Final = 2.0


@attrs.frozen
class Lingering:
    """An agent that nobody could tell to end: what it is called, and when it ends by itself, in seconds since 1970."""

    description: str
    silence: float
    until: float


@attrs.define
class End:
    """One host: its endpoint, what is open there now, and agents that may still run there."""

    endpoint: Endpoint
    role: Literal["source", "target"]
    agent: Agent | None = None
    facts: HostFacts | None = None
    disks: list[OpenDisk] = attrs.field(factory=list[OpenDisk])
    lingering: list[Lingering] = attrs.field(factory=list[Lingering])

    def start(self) -> tuple[Agent, HostFacts]:
        """Start its agent, if none runs, and ask what it finds."""
        if self.agent is None:
            self.agent = self.endpoint.open_agent()
        if self.facts is None:
            self.facts = self.agent.facts()
        return self.agent, self.facts

    def look(self) -> HostFacts:
        """Ask again what there is: mounts come and go."""
        agent, _ = self.start()
        self.facts = agent.facts()
        return self.facts

    def is_alive(self) -> bool:
        """Whether its agent answers."""
        if self.agent is None:
            return False
        try:
            self.agent.frozen()
        except CvmMigrateError:
            return False
        return True

    def drop(self) -> None:
        """End the agent, which releases everything it holds."""
        agent, self.agent, self.facts, self.disks = self.agent, None, None, []
        if agent is None:
            return
        agent.close()
        if isinstance(agent, AgentSession) and agent.may_linger:
            until = time.time() + agent.silence
            self.lingering.append(Lingering(agent.description, agent.silence, until))

    def still_lingering(self) -> list[Lingering]:
        """Return the agents that may run there yet, for the last time."""
        found, self.lingering = self.lingering, []
        return [agent for agent in found if agent.until > time.time()]


class Ends:
    """Source and target together.

    Args:
        source: Where the disks are read.
        target: Where they are written.
        options: Of the migration.
        emit: Takes events.
        warn: Takes what the caller should know: what it is, the evidence, the remedy.
        cancel: Ends waits.
    """

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        *,
        options: Options,
        emit: Callable[[Event], None],
        warn: Callable[[str, str, str], object],
        cancel: CancelToken,
    ) -> None:
        self.source = End(source, "source")
        self.target = End(target, "target")
        self.tracking: TrackingStart | None = None
        # It knows nothing of what was written before it began; whoever makes up for that takes it back. It stays set
        # when something fails in between.
        self.tracker_is_new = False
        # Bytes per second, on the network and from the source's disks; they can change at any moment.
        self.limits = (options.bandwidth, options.read_limit)
        self._options = options
        self._emit = emit
        self._warn = warn
        self._cancel = cancel
        self._pumps: tuple[int, int] | None = None
        self._route: Route | None = None
        self._suspect = False
        self._connected_before = False
        # The direct way has been gone: when it is cut, it is waited for.
        self._direct_worked = False
        # A target's agent that was lost may still run over there.
        self._stale_until = 0.0

    @property
    def source_agent(self) -> Agent:
        """The source's agent, which must run."""
        return _running(self.source)

    @property
    def target_agent(self) -> Agent:
        """The target's agent, which must run."""
        return _running(self.target)

    @property
    def sender(self) -> int:
        """Number of the source's pump."""
        return self._both_pumps()[0]

    @property
    def receiver(self) -> int:
        """Number of the target's pump."""
        return self._both_pumps()[1]

    def _both_pumps(self) -> tuple[int, int]:
        if self._pumps is None:
            raise InvalidRequestError(
                "source and target are not connected", remedy="Call prepare()"
            )
        return self._pumps

    def side(self, role: Literal["source", "target"], disk: int) -> Side:
        """Return one end of a disk, to compare it."""
        end = self.source if role == "source" else self.target
        return Side(_running(end), end.disks[disk])

    @property
    def algorithm(self) -> str:
        """The digest that both agents compute."""
        return common_algorithm(self.source_agent, self.target_agent)

    @property
    def same_host(self) -> bool:
        """Whether both agents run on the same machine, so that identities of disks can be compared."""
        one, other = self.source.facts, self.target.facts
        return one is not None and other is not None and one.boot_id == other.boot_id

    @property
    def is_open(self) -> bool:
        """Whether everything is there, as far as is known."""
        return self._pumps is not None and not self._suspect

    def suspect(self) -> None:
        """Something failed: nothing counts as working until :meth:`mend` has asked."""
        self._suspect = True

    def drop_lost(self) -> None:
        """Let go of agents that do not answer any more, where something failed."""
        for end in (self.source, self.target):
            if self._suspect and not end.is_alive():
                self._drop(end)

    def start_agents(self) -> tuple[HostFacts, HostFacts]:
        """Start both agents, where they don't run, and return what they find."""
        self.drop_lost()
        return self.source.start()[1], self.target.start()[1]

    def mend(self, *, recognise: Callable[[End], None]) -> None:
        """Make everything work: agents, disks, tracker, data path.

        Args:
            recognise: Called for each end whose disks were opened, before anything is written; refuses others than
                those the migration began with.

        Raises:
            CvmMigrateError: What an agent refuses.
        """
        self.start_agents()
        for end, open_disks in (
            (self.source, self._open_source),
            (self.target, self._open_target),
        ):
            if end.disks:
                continue
            open_disks()
            try:
                recognise(end)
            except BaseException:
                self._close_disks(end)
                raise
        if self.tracking is None:
            self._start_tracking()
        if self._suspect or self._pumps is None:
            self._connect()
        self._suspect = False

    def _open_source(self) -> None:
        agent = self.source_agent
        opened: list[OpenDisk] = []
        for path in self.source.endpoint.disks:
            with _telling_what_is_there(self.source, path):
                opened.append(agent.open_disk(path, mode="read"))
        try:
            for disk in opened:
                refuse_partition(self.source.look(), disk)
        except InvalidRequestError:
            for disk in opened:
                agent.close_disk(disk)
            raise
        self.source.disks = opened

    def _open_target(self) -> None:
        """Open the target's disks for writing, after everything that speaks against it has been looked for."""
        agent = self.target_agent
        endpoint = self.target.endpoint
        sources = self.source.disks
        here, there = self.source.look(), self.target.look()
        if len(sources) != len(endpoint.disks):
            raise InvalidRequestError(
                f"{len(sources)} disks cannot go to {len(endpoint.disks)}",
                remedy="Name as many disks of the target as of the source, in the same order",
            )
        # Image files are started by nobody.
        likeness = () if endpoint.creates else unlike(here, there)
        refuse_unsafe(likeness, endpoint.description)
        for finding in likeness:
            self._warn(finding.title, finding.evidence, finding.remedy)
        for source, path in zip(sources, endpoint.disks, strict=True):
            before = place_before_opening(endpoint, there, path)
            refuse_unsafe(check_target(before, Place.of(here, source)), path)
        opened: list[OpenDisk] = []
        try:
            for source, path in zip(sources, endpoint.disks, strict=True):
                create = source.size if endpoint.creates else None
                disk = self._open_for_writing(agent, path, create)
                opened.append(disk)
                # Once more with what it really is: names can be links.
                refuse_unsafe(check_target(Place.of(there, disk), Place.of(here, source)), path)
                self._refuse_size(source, disk)
            self._refuse_twice(opened)
        except BaseException:
            with contextlib.suppress(CvmMigrateError):
                for disk in opened:
                    agent.close_disk(disk)
            raise
        self.target.disks = opened

    @staticmethod
    def _close_disks(end: End) -> None:
        disks, end.disks = end.disks, []
        with contextlib.suppress(CvmMigrateError):
            for disk in disks:
                _running(end).close_disk(disk)

    def _open_for_writing(self, agent: Agent, path: str, create: int | None) -> OpenDisk:
        """Open one disk; an agent that has lost its caller is given the time to let go of it."""
        while True:
            try:
                with _telling_what_is_there(self.target, path):
                    return agent.open_disk(path, mode="write", create_size=create)
            except UnsafeTargetError as error:
                if error.errno != errno.EBUSY or time.monotonic() > self._stale_until:
                    raise
            self._cancel.wait(_STALE_LOOK)
            self._cancel.check()

    @staticmethod
    def _refuse_size(source: OpenDisk, target: OpenDisk) -> None:
        if target.size < source.size:
            raise UnsafeTargetError(
                f"{target.path} has {target.size} bytes, {source.path} has {source.size}: it does not fit",
                remedy="Use a target that is at least as large",
                device=target.path,
            )
        odd = uneven(source.path, source.size, target.path, target.logical_block_size)
        refuse_unsafe([] if odd is None else [odd], target.path)

    def _refuse_twice(self, opened: list[OpenDisk]) -> None:
        """Each disk has one role, whatever names it was given."""
        seen = {disk.identity for disk in self.source.disks} if self.same_host else set[str]()
        for disk in opened:
            if disk.identity in seen:
                raise UnsafeTargetError(
                    f"{disk.path} is named twice, or is a disk of the source",
                    remedy="Name another disk as the target",
                    device=disk.path,
                )
            seen.add(disk.identity)

    def _start_tracking(self) -> None:
        if all(disk.kind == "file" for disk in self.source.disks):
            reason = "an image file is not tracked: nobody should write to it"
            tracking = TrackingStart(
                rung=None, refused=dict.fromkeys(self._options.rungs, reason), block=0
            )
        elif not self._options.rungs:
            tracking = TrackingStart(rung=None, refused={}, block=0)
        else:
            tracking = self.source_agent.start_tracking(
                self.source.disks, rungs=self._options.rungs, block=self._options.block
            )
        self.tracking = tracking
        self.tracker_is_new = True
        self._emit(TrackerChosen(tracking.rung, dict(tracking.refused), tracking.block))

    def restart_tracking(self) -> None:
        """Put a new tracker in the place of one that cannot vouch for itself any more."""
        self.tracking = None
        self.source_agent.stop_tracking()
        self._start_tracking()

    def listen(self, disks: Mapping[int, OpenDisk], identities: Identities) -> Listening:
        """Start a receiving pump where the data is to arrive.

        Raises:
            CvmMigrateError: It cannot listen there.
        """
        options = self._options
        endpoint = self.target.endpoint
        return self.target_agent.receive(
            disks,
            bind=LOOPBACK
            if options.route == "ssh"
            else endpoint.bind_address(same_host=self.same_host),
            port=int(options.data_port) if endpoint.data_port is None else endpoint.data_port,
            tls=identities.target,
            session=identities.session,
            streams=int(options.streams),
        )

    def direct_route(self, port: int) -> Route | None:
        """Return the direct way to the target's *port*; ``None``: none is known, or it is not to be taken."""
        if self._options.route == "ssh":
            return None
        return self.target.endpoint.route(port, same_host=self.same_host)

    @property
    def ssh_leads(self) -> bool:
        """Whether data may go through SSH, and an end is reached by it."""
        ends = self.source.endpoint, self.target.endpoint
        return self._options.route != "direct" and any(end.ssh is not None for end in ends)

    @property
    def route(self) -> Route | None:
        """The way on which the pumps are connected."""
        return self._route

    def _connect(self) -> None:
        self._disconnect()
        identities = mint_identities()
        streams = int(self._options.streams)
        listening = self.listen(dict(enumerate(self.target.disks)), identities)
        try:
            sender, how = self._reach(listening.port, identities)
        except BaseException:
            self._close_route()
            with contextlib.suppress(CvmMigrateError):
                self.target_agent.disconnect(listening.pump)
            raise
        self._pumps = (sender, listening.pump)
        self._emit(
            Connected(
                self.source_agent.description,
                self.target_agent.description,
                streams,
                again=self._connected_before,
                route=how,
            )
        )
        self._connected_before = True

    def _reach(self, port: int, identities: Identities) -> tuple[int, str]:
        """Connect the source's pump to the target's *port*; return its number and the way.

        Raises:
            InvalidRequestError: There is no such way.
            ConnectionLostError: Nothing comes through.
        """
        options = self._options
        source, target = self.source.endpoint, self.target.endpoint
        disks = dict(enumerate(self.source.disks))
        reason = "no address is known under which the source finds the target"
        direct = self.direct_route(port)
        ssh = self.ssh_leads
        if direct is not None:
            self._route = direct
            waits = not ssh or self._direct_worked
            try:
                within = None if waits else _DIRECT_PATIENCE
                pump = self.dial(direct, identities, disks, within=within)
            except ConnectionLostError as error:
                if waits:
                    raise
                reason = error.message
            else:
                self._direct_worked = True
                return pump, "direct"
        elif not ssh and options.route != "ssh":
            raise InvalidRequestError(
                f"it is not known under which address {source.description} finds {target.description}",
                remedy="Give the target data_host=, an address of it that the source can reach",
            )
        self._close_route()
        self._route = route = SshRoute(port, source=source.ssh, target=target.ssh)
        if options.route == "auto":
            detour = source.ssh is not None and target.ssh is not None
            self._warn(
                "data goes through SSH"
                + (" by way of this machine, which carries all of it" if detour else ""),
                reason,
                "Let the source reach the target's data port (data_host=, data_port=, a firewall's rule), or choose it"
                " with route='ssh'",
            )
        try:
            return self.dial(route, identities, disks, within=None), "ssh"
        except ConnectionLostError:
            route.check()
            raise

    def dial(
        self,
        route: Route,
        identities: Identities,
        disks: Mapping[int, OpenDisk],
        *,
        within: float | None,
    ) -> int:
        """Connect the source's pump; *within* is for the first time only, and later cuts may last longer.

        Raises:
            ConnectionLostError: Nobody answers.
        """
        late = CancelToken()
        timer = threading.Timer(within or 0.0, late.cancel)
        timer.daemon = True
        if within is not None and within < self._options.patience:
            timer.start()
        try:
            return self.source_agent.connect(
                disks,
                host=route.host,
                port=route.port,
                tls=identities.source,
                session=identities.session,
                streams=int(self._options.streams),
                algorithm=self.algorithm,
                patience=self._options.patience,
                cancel=LinkedToken(self._cancel, late),
            )
        except CancelledError as error:
            if self._cancel.cancelled:
                raise
            raise ConnectionLostError(
                f"{self.source_agent.description} gets no answer from {route.host} port {route.port}"
                f" within {within:g} s"
            ) from error
        finally:
            timer.cancel()

    def _disconnect(self) -> None:
        pumps, self._pumps = self._pumps, None
        for end, pump in zip((self.source, self.target), pumps or (), strict=False):
            if end.agent is not None:
                # It may have ended already: that is why it is made anew.
                with contextlib.suppress(CvmMigrateError):
                    end.agent.disconnect(pump)
        self._close_route()

    def _close_route(self) -> None:
        route, self._route = self._route, None
        if route is not None:
            route.close()

    def set_limits(self, bandwidth: int | None, read_limit: int | None) -> None:
        """Change how fast data may flow, now and in what follows; from any thread."""
        self.limits = bandwidth, read_limit
        agent, pumps = self.source.agent, self._pumps
        if agent is not None and pumps is not None:
            # An agent that is lost is the business of the step that runs, and its successor is told.
            with contextlib.suppress(CvmMigrateError):
                agent.pace(pumps[0], bandwidth=bandwidth, read_limit=read_limit)

    def expect_stale(self) -> None:
        """Say that an agent of an earlier process may still run on the target, where it is another machine."""
        if not self.target.endpoint.local:
            self._stale_until = time.monotonic() + _STALE_PATIENCE

    def _drop(self, end: End) -> None:
        end.drop()
        if end is self.target:
            self.expect_stale()
        if end is self.source:
            self.tracking = None

    def close(self) -> None:
        """End both agents, which release everything; can be called more than once."""
        self._pumps = None
        self.tracking = None
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_route)
            stack.callback(self.target.drop)
            stack.callback(self.source.drop)


@contextlib.contextmanager
def _telling_what_is_there(end: End, path: str) -> Generator[None]:
    """Have the error about a missing disk name those that are there."""
    try:
        yield
    except NotFoundError as error:
        if end.facts is not None:
            error.remedy = error.remedy or missing_remedy(end.facts, path)
        raise


def place_before_opening(endpoint: Endpoint, facts: HostFacts, path: str) -> Place:
    """Return the place of a target that may not be there yet: an image file's folder can be a link."""
    made_here = endpoint.creates and endpoint.local
    return Place(facts, os.path.realpath(path) if made_here else path)


def _running(end: End) -> Agent:
    if end.agent is None:
        raise InvalidRequestError(
            f"no agent runs on {end.endpoint.description}", remedy="Call prepare()"
        )
    return end.agent
