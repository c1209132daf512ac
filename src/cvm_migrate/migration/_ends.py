"""Both agents, the disks they have open, the data path between them and the tracker; mended piece by piece.

After an error it is not always known what still works. :meth:`Ends.mend` asks, keeps what answers (a tracker
that went on counting above all), and makes the rest anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal

import attrs

from cvm_migrate.disk import Place, check_target, refuse_unsafe
from cvm_migrate.errors import (
    CvmMigrateError,
    InvalidRequestError,
    UnsafeTargetError,
    UnsupportedError,
)
from cvm_migrate.events import Connected, Event, TrackerChosen
from cvm_migrate.interfaces import Agent
from cvm_migrate.migration._compare import Side, common_algorithm
from cvm_migrate.migration._endpoints import Endpoint, Route
from cvm_migrate.migration._options import Options
from cvm_migrate.model import HostFacts, OpenDisk, TrackingStart
from cvm_migrate.transport import mint_identities


@attrs.define
class End:
    """One host: its endpoint, and what is open there now."""

    endpoint: Endpoint
    role: Literal["source", "target"]
    agent: Agent | None = None
    facts: HostFacts | None = None
    disks: list[OpenDisk] = attrs.field(factory=list[OpenDisk])

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
        if agent is not None:
            agent.close()


class Ends:
    """Source and target together.

    Args:
        source: Where the disks are read.
        target: Where they are written.
        options: Of the migration.
        emit: Takes events.
    """

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        *,
        options: Options,
        emit: Callable[[Event], None],
    ) -> None:
        self.source = End(source, "source")
        self.target = End(target, "target")
        self.tracking: TrackingStart | None = None
        self._options = options
        self._emit = emit
        self._pumps: tuple[int, int] | None = None
        self._route: Route | None = None
        self._suspect = False
        self._connected_before = False

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

    def start_agents(self) -> tuple[HostFacts, HostFacts]:
        """Start both agents, where they don't run, and return what they find."""
        for end in (self.source, self.target):
            if self._suspect and not end.is_alive():
                self._drop(end)
        return self.source.start()[1], self.target.start()[1]

    def mend(self, *, before_target: Callable[[], None]) -> bool:
        """Make everything work: agents, disks, tracker, data path.

        Args:
            before_target: Called with the source's disks open, before the target's are opened for writing.

        Returns:
            Whether the tracker was started just now: it knows nothing of what was written before.

        Raises:
            CvmMigrateError: What an agent refuses.
        """
        self.start_agents()
        if not self.source.disks:
            self._open_source()
        if not self.target.disks:
            before_target()
            self._open_target()
        started = self.tracking is None
        if started:
            self._start_tracking()
        if self._suspect or self._pumps is None:
            self._connect()
        self._suspect = False
        return started

    def _open_source(self) -> None:
        agent = self.source_agent
        self.source.disks = [
            agent.open_disk(path, mode="read") for path in self.source.endpoint.disks
        ]

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
        for source, path in zip(sources, endpoint.disks, strict=True):
            refuse_unsafe(check_target(Place(there, path), Place.of(here, source)), path)
        opened: list[OpenDisk] = []
        try:
            for source, path in zip(sources, endpoint.disks, strict=True):
                create = source.size if endpoint.creates else None
                disk = agent.open_disk(path, mode="write", create_size=create)
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
    def _refuse_size(source: OpenDisk, target: OpenDisk) -> None:
        if target.size < source.size:
            raise UnsafeTargetError(
                f"{target.path} has {target.size} bytes, {source.path} has {source.size}: it does not fit",
                remedy="Use a target that is at least as large",
                device=target.path,
            )
        if source.size % target.logical_block_size:
            raise UnsupportedError(
                f"{source.path} has {source.size} bytes, no multiple of the {target.logical_block_size} bytes that"
                f" {target.path} is written in",
                remedy="Use a target with logical blocks of 512 bytes",
                device=target.path,
            )

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
        self._emit(TrackerChosen(tracking.rung, dict(tracking.refused), tracking.block))

    def _connect(self) -> None:
        self._disconnect()
        identities = mint_identities()
        options = self._options
        endpoint = self.target.endpoint
        streams = int(options.streams)
        listening = self.target_agent.receive(
            dict(enumerate(self.target.disks)),
            bind=endpoint.bind_address(same_host=self.same_host),
            port=int(options.data_port) if endpoint.data_port is None else endpoint.data_port,
            tls=identities.target,
            session=identities.session,
            streams=streams,
        )
        try:
            route = endpoint.route(
                listening.port, source=self.source.endpoint, same_host=self.same_host
            )
            self._route = route
            sender = self.source_agent.connect(
                dict(enumerate(self.source.disks)),
                host=route.host,
                port=route.port,
                tls=identities.source,
                session=identities.session,
                streams=streams,
                algorithm=self.algorithm,
                patience=options.patience,
            )
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
            )
        )
        self._connected_before = True

    def _disconnect(self) -> None:
        pumps, self._pumps = self._pumps, None
        self._close_route()
        if pumps is None:
            return
        for end, pump in ((self.source, pumps[0]), (self.target, pumps[1])):
            if end.agent is not None:
                # It may have ended already: that is why it is made anew.
                with contextlib.suppress(CvmMigrateError):
                    end.agent.disconnect(pump)

    def _close_route(self) -> None:
        route, self._route = self._route, None
        if route is not None:
            route.close()

    def _drop(self, end: End) -> None:
        end.drop()
        if end is self.source:
            self.tracking = None

    def close(self) -> None:
        """End both agents, which release everything; can be called more than once."""
        self._pumps = None
        self.tracking = None
        self._close_route()
        try:
            self.source.drop()
        finally:
            self.target.drop()


def _running(end: End) -> Agent:
    if end.agent is None:
        raise InvalidRequestError(
            f"no agent runs on {end.endpoint.description}", remedy="Call prepare()"
        )
    return end.agent
