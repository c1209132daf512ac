"""A tracing instance of ours: made, read and removed by one process, and what dead ones left.

Making and removing are serialized on the whole machine: two processes that removed instances at the same time have
crashed a 6.18 kernel. See ``docs/explanation/change-tracking.md``.
"""

from __future__ import absolute_import

import errno
import fcntl
import os
import re
import sys
import time

from cvm_migrate.agent import clock
from cvm_migrate.agent.tracking import ring, system
from cvm_migrate.agent.tracking.base import BIO_QUEUE, TRACEPOINTS

assert sys.platform != "win32", "tracefs is Linux's"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional, Sequence, Set

    from cvm_migrate.agent.tracking import Device

_NAME = re.compile(r"cvm_migrate_(\d+)_(\d+)_\d+\Z")
_LOCK_SECONDS = 30.0
_REMOVE_SECONDS = 10.0
# All rings together, and the least and the most of one.
_RINGS_KB = 65536
_LEAST_KB, _MOST_KB = 512, 4096
_LOSSES = ("overrun", "commit overrun", "dropped events")


class _Lock(object):
    """The machine's one lock for making and removing instances."""

    def __init__(self, instances):
        # type: (str) -> None
        self._fd = os.open(instances, os.O_RDONLY)
        end = clock.monotonic() + _LOCK_SECONDS
        try:
            while not self._taken(end):
                time.sleep(0.01)
        except BaseException:
            os.close(self._fd)
            raise

    def _taken(self, end):
        # type: (float) -> bool
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except EnvironmentError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                raise
            if clock.monotonic() > end:
                raise OSError(errno.EBUSY, "another process makes or removes instances")
            return False
        return True

    def __enter__(self):
        # type: () -> None
        return None

    def __exit__(self, *exc_info):
        # type: (object) -> None
        os.close(self._fd)


def left_overs(instances):
    # type: (str) -> List[str]
    """Return names of instances whose makers are dead."""
    found = []  # type: List[str]
    for name in os.listdir(instances):
        match = _NAME.match(name)
        if match and system.start_time(int(match.group(1))) != int(match.group(2)):
            found.append(name)
    return sorted(found)


def remove_left_overs(tracefs):
    # type: (system.Tracefs) -> None
    """Remove what dead tracers left. One that somebody still reads is left: the kernel refuses (EBUSY)."""
    instances = tracefs.path + "/instances"
    with _Lock(instances):
        for name in left_overs(instances):
            try:
                os.rmdir("%s/%s" % (instances, name))
            except EnvironmentError as error:
                if error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise


class Instance(object):
    """A tracing instance with the three block events on.

    Args:
        tracefs: Where.
        numbers: Kernel numbers (``major << 20 | minor``) of disks and partitions.
        buffer_kb: Of each CPU's ring; None: by the number of CPUs.
    """

    def __init__(self, tracefs, numbers, buffer_kb=None):
        # type: (system.Tracefs, Iterable[int], Optional[int]) -> None
        self._instances = tracefs.path + "/instances"
        pid = os.getpid()
        self.name = "cvm_migrate_%d_%d_0" % (pid, system.start_time(pid) or 0)
        self._path = "%s/%s" % (self._instances, self.name)
        self._fds = {}  # type: Dict[int, int]
        with open(tracefs.path + "/events/header_page") as file:
            layout = ring.page_layout(file.read())
        self.formats = {}  # type: Dict[int, ring.EventFormat]
        for event in TRACEPOINTS:
            with open("%s/events/block/%s/format" % (tracefs.path, event)) as file:
                form = ring.EventFormat(file.read())
            self.formats[form.id] = form
            if event == BIO_QUEUE:
                self.queue_id = form.id
        with _Lock(self._instances):
            os.mkdir(self._path)
        try:
            cpus = system.possible_cpus(self._path + "/per_cpu")
            kb = buffer_kb or min(_MOST_KB, max(_LEAST_KB, _RINGS_KB // len(cpus)))
            self._write("buffer_size_kb", str(kb))
            # Since Linux 6.8 a page of the ring can be larger than a page of memory.
            sub = self._path + "/buffer_subbuf_size_kb"
            size = layout.size
            if os.path.exists(sub):
                with open(sub) as file:
                    size = int(file.read()) * 1024
            self.layout = ring.PageLayout(size, layout.commit, layout.data)
            self.ring_pages = kb * 1024 // size + 2
            self.set_numbers(numbers)
            for cpu in cpus:
                path = "%s/per_cpu/cpu%d/trace_pipe_raw" % (self._path, cpu)
                self._fds[cpu] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            for event in TRACEPOINTS:
                self._write("events/block/%s/enable" % event, "1")
        except BaseException:
            self.remove()
            raise

    def _write(self, name, text):
        # type: (str, str) -> None
        fd = os.open("%s/%s" % (self._path, name), os.O_WRONLY)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)

    def set_numbers(self, numbers):
        # type: (Iterable[int]) -> None
        """Record only events of these devices; reads, and what is queued but no discard, are left out if possible."""
        ours = " || ".join("dev == %d" % number for number in sorted(numbers))
        for event in TRACEPOINTS:
            narrow = 'rwbs ~ "D*"' if event == BIO_QUEUE else '!(rwbs ~ "R*")'
            name = "events/block/%s/filter" % event
            try:
                self._write(name, "(%s) && %s" % (ours, narrow))
            except EnvironmentError as error:
                # Kernels before 3.20 know no negation.
                if error.errno != errno.EINVAL:
                    raise
                self._write(name, ours)

    @property
    def cpus(self):
        # type: () -> List[int]
        """CPUs that have a ring."""
        return sorted(self._fds)

    def read(self, cpu):
        # type: (int) -> bytes
        """Return the next page of a ring, which need not be full; nothing if the ring is empty."""
        try:
            return os.read(self._fds[cpu], self.layout.size)
        except EnvironmentError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return b""
            raise

    def losses(self, cpu):
        # type: (int) -> int
        """Return how many events a ring has lost since it was made."""
        with open("%s/per_cpu/cpu%d/stats" % (self._path, cpu)) as file:
            lines = [line.partition(":") for line in file]
        return sum(int(value) for name, _, value in lines if name.strip() in _LOSSES)

    def remove(self):
        # type: () -> None
        """Take the instance away; everything of it that is open is closed first."""
        for event in TRACEPOINTS:
            self._write("events/block/%s/enable" % event, "0")
        while self._fds:
            os.close(self._fds.popitem()[1])
        end = clock.monotonic() + _REMOVE_SECONDS
        while True:
            try:
                with _Lock(self._instances):
                    os.rmdir(self._path)
                return
            except EnvironmentError as error:
                # Somebody looks into it, such as a person with a shell.
                if error.errno != errno.EBUSY or clock.monotonic() > end:
                    raise
            time.sleep(0.05)


def numbers_for(devices):
    # type: (Sequence[Device]) -> Dict[int, Set[int]]
    """Return, for each device's index, the kernel numbers of the disk and its partitions."""
    found = {}  # type: Dict[int, Set[int]]
    for index, device in enumerate(devices):
        pairs = system.numbers_of(device.major, device.minor)
        found[index] = {major << 20 | minor for major, minor in pairs}
    return found
