"""What can be known before anything is touched, as findings. Nothing is written anywhere."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Final

from cvm_migrate.disk import (
    Place,
    Usage,
    check_target,
    missing_remedy,
    mounts_on,
    refuse_partition,
    swaps_on,
    unfreezable,
    used_on,
)
from cvm_migrate.errors import CvmMigrateError, NotFoundError
from cvm_migrate.interfaces import Agent
from cvm_migrate.migration._cvm import CvmTarget
from cvm_migrate.migration._ends import End, place_before_opening
from cvm_migrate.migration._job import Job
from cvm_migrate.migration._likeness import unlike
from cvm_migrate.migration._map import partition_map
from cvm_migrate.migration._path import PathCheck
from cvm_migrate.migration._results import CheckReport
from cvm_migrate.model import ExtentMap, Finding, HostFacts, OpenDisk, Severity
from cvm_migrate.units import MiB, format_seconds, format_size

# Programs whose own files are only consistent when they are told to pause, or after their own recovery.
_DATABASES: Final = re.compile(
    r"mysqld|mariadbd|postgres|mongod|redis-server|oracle|ora_pmon|db2|sqlservr|influxd|clickhouse|cassandra|etcd"
    r"|elasticsearch|opensearch|kafka|rabbitmq|beam\.smp"
)
# An agent's own bound, buffers of all streams included.
_MEMORY: Final = 256 * MiB
# Certificates are good for a day before they were made.
_SKEW_BAD: Final = 86_000.0
_SKEW: Final = 300.0
_SAMPLE: Final = 64 * MiB
# Partition tables, and the first superblocks of all usual file systems: the last is that of btrfs, at 64 KiB.
_BEGINNING: Final = 128 << 10


class Checker:
    """One look at both ends.

    Args:
        job: The migration.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._findings: list[Finding] = []
        self._opened: list[OpenDisk] = []
        self._rate: float | None = None

    def check(self) -> CheckReport:
        """Look, and return what was found."""
        job = self._job
        for role, endpoint in (("source", job.source), ("target", job.target)):
            self._findings += endpoint.check("source" if role == "source" else "target")
        job.ends.drop_lost()
        if isinstance(job.target, CvmTarget) and not job.checkpoint.lasting:
            self._add(
                Severity.WARNING,
                "This migration has no state directory",
                "if this process ended while the instance waits for migration, no other could go on, or put its disks"
                " back",
                "Give it one: state=, or --state",
            )
        source = self._facts(job.ends.source)
        target = self._facts(job.ends.target)
        if source is not None:
            self._look_at_source(source)
        if target is not None:
            self._look_at_target(source, target)
        path_rate = self._look_at_path(source, target)
        known = len(self._opened) == len(job.source.disks)
        size = sum(disk.size for disk in self._opened) if known else None
        usage = self._look_at_usage(source) if known and source is not None else None
        sending = size if usage is None or usage.used is None else usage.to_send
        options = job.options
        # Both go on at the same time.
        times = [
            seconds
            for seconds in (
                _seconds(size, options.read_limit, self._rate),
                _seconds(sending, options.bandwidth, path_rate),
            )
            if seconds is not None
        ]
        order = list(Severity)
        return CheckReport(
            findings=tuple(sorted(self._findings, key=lambda f: order.index(f.severity))),
            source=job.source.description,
            target=job.target.description,
            size=size,
            estimated_bytes=size,
            estimated_seconds=max(times, default=None),
            estimated_at_least=bool(times) and options.bandwidth is None and path_rate is None,
            used_bytes=None if usage is None else usage.used,
            used_at_least=usage is not None and usage.used is not None and usage.unknown > 0,
        )

    def _add(self, severity: Severity, title: str, evidence: str = "", remedy: str = "") -> None:
        self._findings.append(Finding(severity, title, evidence, remedy))

    def _refused(self, error: CvmMigrateError) -> None:
        self._add(Severity.BLOCKER, error.message, remedy=error.remedy or "")

    def _refused_disk(self, error: CvmMigrateError, end: End, path: str) -> None:
        if isinstance(error, NotFoundError) and end.facts is not None:
            error.remedy = error.remedy or missing_remedy(end.facts, path)
        self._refused(error)

    def _facts(self, end: End) -> HostFacts | None:
        """Start an agent and ask it; a failure is a finding."""
        if not end.endpoint.reachable and end.agent is None:
            return None
        asked = time.time()
        try:
            agent, _ = end.start()
            asked = time.time()
            facts = end.look()
        except CvmMigrateError as error:
            self._job.ends.suspect()
            self._refused(error)
            return None
        self._look_at_host(end, agent, facts, (asked + time.time()) / 2)
        return facts

    def _look_at_host(self, end: End, agent: Agent, facts: HostFacts, asked: float) -> None:
        where = f"the {end.role}, {facts.hostname}"
        self._add(
            Severity.INFO,
            f"{where}, runs {facts.system} {facts.kernel} on {facts.machine} with Python {facts.python}",
            evidence=f"{agent.description}; tools there: {', '.join(sorted(facts.tools)) or 'none that is looked for'}",
        )
        if facts.euid != 0 and not end.endpoint.creates:
            self._add(
                Severity.WARNING,
                f"{agent.description} is not root: it can neither track changes nor freeze file systems",
                f"user id {facts.euid}",
                "Run it as root, or with sudo=True",
            )
        if facts.memory_available < _MEMORY:
            self._add(
                Severity.WARNING,
                f"{where}, has little memory left",
                f"{format_size(facts.memory_available)} available, {format_size(_MEMORY)} wanted",
                "Stop what is not needed there, or use fewer streams",
            )
        skew = abs(facts.time - asked)
        if skew > _SKEW:
            self._add(
                Severity.BLOCKER if skew > _SKEW_BAD else Severity.WARNING,
                f"the clock of {where}, is {format_seconds(skew)} off this machine's",
                "certificates of a migration are good from a day before it on",
                "Set it",
            )

    def _look_at_source(self, facts: HostFacts) -> None:
        end = self._job.ends.source
        agent = end.start()[0]
        opened = end.disks or self._open_for_reading(agent, end.endpoint.disks)
        self._opened = list(opened)
        target = self._job.target
        if isinstance(target, CvmTarget):
            try:
                self._findings += target.check_source([disk.size for disk in opened], facts)
            except CvmMigrateError as error:
                self._refused(error)
        for disk in opened:
            try:
                refuse_partition(facts, disk)
            except CvmMigrateError as error:
                self._refused(error)
        numbers = [disk.identity.removeprefix("block:") for disk in opened if disk.kind == "block"]
        self._findings += [
            found for found in (partition_map(facts, disk) for disk in opened) if found is not None
        ]
        if numbers:
            self._look_at_trackers(facts)
            self._look_at_mounts(facts, numbers)
        databases = sorted({name for name in facts.services if _DATABASES.search(name)})
        if databases and numbers:
            self._add(
                Severity.WARNING,
                f"services that keep their own consistency run on the source: {', '.join(databases)}",
                remedy="Flush or pause them in on_quiesced; without it the copy is as after a power failure, which they"
                " recover from when they start",
            )
        if opened:
            self._rate = self._measure(agent, opened[0])
        if not end.disks:
            for disk in opened:
                agent.close_disk(disk)

    def _look_at_usage(self, facts: HostFacts) -> Usage | None:
        """Return what is in use on the source's disks; ``None`` where they are not the host's block devices."""
        if not all(disk.kind == "block" for disk in self._opened):
            return None
        try:
            return used_on(facts, [disk.identity.removeprefix("block:") for disk in self._opened])
        except NotFoundError:
            # The facts do not list it; that it cannot be a source is said elsewhere.
            return None

    def _open_for_reading(self, agent: Agent, paths: tuple[str, ...]) -> list[OpenDisk]:
        opened: list[OpenDisk] = []
        for path in paths:
            try:
                opened.append(agent.open_disk(path, mode="read"))
            except CvmMigrateError as error:
                self._refused_disk(error, self._job.ends.source, path)
        return opened

    def _measure(self, agent: Agent, disk: OpenDisk) -> float | None:
        """Read a little, as fast as it goes."""
        sample = ExtentMap([(0, min(_SAMPLE, disk.size))])
        started = time.monotonic()
        try:
            for _ in agent.digest(disk, sample, chunk=MiB, algorithm=agent.digests[0]):
                pass
        except CvmMigrateError as error:
            self._refused(error)
            return None
        seconds = time.monotonic() - started
        return sample.total / seconds if seconds > 0 else None

    def _look_at_trackers(self, facts: HostFacts) -> None:
        wanted = self._job.options.rungs
        rungs = facts.tracking.rungs
        usable = [name for name in wanted if name in rungs and rungs[name] is None]
        reasons = "; ".join(
            f"{name}: {rungs.get(name, 'not known to the agent')}"
            for name in wanted
            if name not in usable
        )
        if usable:
            self._add(Severity.INFO, f"changes can be tracked by {usable[0]}", reasons)
        else:
            self._add(
                Severity.WARNING,
                "no tracker can be used: every pass, the one while frozen too, compares digests of everything",
                reasons or "none was allowed",
                "Mend what is named, or allow a long downtime",
            )

    def _look_at_mounts(self, facts: HostFacts, numbers: list[str]) -> None:
        try:
            mounts = mounts_on(facts, numbers)
            swaps = swaps_on(facts, numbers)
        except CvmMigrateError as error:
            self._refused(error)
            return
        for mount in mounts:
            reason = unfreezable(mount.fs_type)
            if reason is not None:
                self._add(
                    Severity.WARNING,
                    f"{mount.mount_point} ({mount.fs_type}) cannot be frozen; its disk will be compared as a whole"
                    " while the others are frozen",
                    reason,
                    "Unmount it before the cutover, or stop what writes there in on_quiesced",
                )
        if mounts and not facts.can_freeze:
            self._add(
                Severity.WARNING,
                "file systems cannot be frozen there",
                remedy="Run the agent as root on Linux 2.6.29 or later",
            )
        if mounts:
            names = ", ".join(mount.mount_point for mount in mounts)
            self._add(Severity.INFO, f"a cutover freezes {names}")
        else:
            self._add(
                Severity.INFO,
                "no file system on the source's disks is mounted: nothing will be frozen",
                remedy="If a program writes to a disk itself, stop it in on_quiesced",
            )
        if swaps:
            self._add(
                Severity.INFO,
                f"swap space lies on the source's disks: {', '.join(swaps)}",
                "it is copied as it is, and may go on changing while file systems are frozen",
                "Switch it off in on_quiesced (swapoff) if cutover() complains",
            )

    def _look_at_path(self, source: HostFacts | None, target: HostFacts | None) -> float | None:
        """Try the way of the data; return the bytes per second that it carries, as far as that can be known."""
        path = PathCheck(self._job, self._add)
        if source is None:
            return None
        if target is not None:
            return path.try_ways()
        if isinstance(self._job.target, CvmTarget):
            path.try_port(self._job.target)
        return None

    def _look_at_target(self, source: HostFacts | None, target: HostFacts) -> None:
        job = self._job
        if source is not None and not job.target.creates:
            self._findings += unlike(source, target)
        if len(job.source.disks) != len(job.target.disks):
            self._add(
                Severity.BLOCKER,
                f"{len(job.source.disks)} disks cannot go to {len(job.target.disks)}",
                remedy="Name as many disks of the target as of the source, in the same order",
            )
            return
        if job.ends.target.disks:
            return
        for number, path in enumerate(job.target.disks):
            disk = self._opened[number] if len(self._opened) == len(job.target.disks) else None
            self._look_at_disk(source, target, path, disk)

    def _look_at_disk(
        self, source: HostFacts | None, target: HostFacts, path: str, from_disk: OpenDisk | None
    ) -> None:
        agent = self._job.ends.target.start()[0]
        place = place_before_opening(self._job.target, target, path)
        try:
            disk = agent.open_disk(path, mode="read")
            try:
                place = Place.of(target, disk)
                self._look_at_content(agent, disk)
            finally:
                agent.close_disk(disk)
        except CvmMigrateError as error:
            if not self._job.target.creates:
                self._refused_disk(error, self._job.ends.target, path)
        origin = None
        if source is not None and from_disk is not None:
            origin = Place.of(source, from_disk)
        self._findings += check_target(place, origin)
        if self._job.target.creates and self._job.target.local and from_disk is not None:
            self._look_at_room(Path(path), from_disk)

    def _look_at_content(self, agent: Agent, disk: OpenDisk) -> None:
        """Tell that something lies on a disk of the target; of an instance's, its own findings do."""
        if isinstance(self._job.target, CvmTarget) or disk.size < _BEGINNING:
            return
        if any(agent.read(disk, 0, _BEGINNING)):
            self._add(
                Severity.WARNING,
                f"the target's {disk.path} is not empty: all that is on it will be overwritten",
                f"its first {format_size(_BEGINNING)} are not all zeroes",
                "Make sure that it is the right one",
            )

    def _look_at_room(self, path: Path, disk: OpenDisk) -> None:
        folder = path.parent
        if not folder.is_dir():
            self._add(
                Severity.BLOCKER, f"there is no folder {folder} for {path.name}", remedy="Make it"
            )
            return
        free = shutil.disk_usage(folder).free
        # Not every system knows how much of a sparse file is there.
        held = getattr(path.stat(), "st_blocks", 0) * 512 if path.exists() else 0
        if free + held < disk.size:
            self._add(
                Severity.WARNING,
                f"{folder} may have too little room for an image of {disk.path}",
                f"{format_size(free)} free, {format_size(disk.size)} wanted; zeroes take no room",
                "Make room there, or choose another folder",
            )


def _seconds(count: int | None, *rates: float | None) -> float | None:
    """Return how long so many bytes take at the lowest of *rates*; ``None`` where nothing is known."""
    known = [rate for rate in rates if rate is not None]
    return count / min(known) if count is not None and known else None
