"""The verbs ``freeze``, ``thaw`` and ``frozen``: file systems stand still for a while, and never for longer.

While they do, this process writes no file and starts nothing; what it needs was opened before. Whatever happens to
it, the watchdog thaws (see :mod:`cvm_migrate.agent.watchdog`); whatever happens to the watchdog, this process thaws.
"""

from __future__ import absolute_import

import errno
import os
import sys
import threading
import time

from cvm_migrate.agent import children, clock, freezer, mounts, names, watchdog
from cvm_migrate.agent.verbs import AgentError, from_os_error, number, texts

assert sys.platform != "win32", "the agent runs on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Text, Tuple

    from cvm_migrate.agent.verbs import Context, Header, Reply, Verb

MAX_LIMIT = 3600.0
# A busy machine with an old Python: starting the watchdog may take its time, nothing is frozen yet.
_START_SECONDS = 60.0
_END_SECONDS = 5.0


class _Freeze(object):
    """One freeze, from before its first ioctl to after its thaw."""

    def __init__(self, command, mount_points, limit):
        # type: (List[str], List[Text], float) -> None
        self.limit = limit
        self.begin = None  # type: Optional[float]
        self.unlocked = None  # type: Optional[Text]
        #: When someone other than `thaw` thawed, and why.
        self.lost_at = None  # type: Optional[float]
        self.lost_reason = None  # type: Optional[Text]
        self._in_progress = True
        self._given_up = False
        self._over = False
        self._end = 0.0
        self._lock = threading.Lock()
        self._thawing = threading.Lock()
        self._frozen = []  # type: List[int]
        self._fds = []  # type: List[int]
        self._mounts = mount_points
        try:
            for mount_point in mount_points:
                try:
                    self._fds.append(freezer.open_mount(mount_point))
                except EnvironmentError as error:
                    raise from_os_error("open", error, mount_point, doing="opening")
            self._watchdog = self._start_watchdog(command)
        except Exception:
            self._close()
            raise

    def _start_watchdog(self, command):
        # type: (List[str]) -> Any
        process = children.start(command + ["--watchdog"])
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            children.send(process.stdin.fileno(), {"mounts": self._mounts, "limit": self.limit})
            ready = children.can_read(process.stdout.fileno(), _START_SECONDS)
            said = os.read(process.stdout.fileno(), 1) if ready else b""
        except EnvironmentError as error:
            said = b""
            sys.stderr.write("cvm_migrate agent: watchdog: %s\n" % (error,))
        if said != watchdog.READY:
            process.kill()
            process.wait()
            raise AgentError("unsupported", "the watchdog does not start, so nothing is frozen")
        thread = threading.Thread(target=self._listen, args=(process.stdout.fileno(),))
        thread.daemon = True
        thread.start()
        return process

    def _listen(self, fd):
        # type: (int) -> None
        """Learn that the watchdog thaws, or that it is gone: then nothing may stay frozen."""
        while True:
            try:
                said = os.read(fd, 1)
            except EnvironmentError as error:
                if error.errno == errno.EINTR:
                    continue
                said = b""
            with self._lock:
                if self._over:
                    return
                if said == watchdog.THAWING:
                    self._lose("the limit of %g s has passed" % self.limit)
                    continue
                self._lose("the watchdog has ended")
                frozen = list(self._frozen)
            freezer.thaw_all(frozen)
            return

    def _lose(self, reason):
        # type: (Text) -> None
        if self.lost_at is None:
            self.lost_at = clock.monotonic()
            self.lost_reason = reason

    def _tell(self, what):
        # type: (bytes) -> None
        try:
            children.write(self._watchdog.stdin.fileno(), what)
        except EnvironmentError:
            # It is gone; _listen finds out and thaws.
            with self._lock:
                self._lose("the watchdog has ended")

    def freeze(self, reply):
        # type: (Reply) -> Tuple[List[Text], List[Header]]
        """Freeze one after the other; return the mount points that are, and why the others are not.

        Raises:
            AgentError: ``freeze``: the limit passed meanwhile; ``cancelled``. Nothing is frozen then.
        """
        frozen = []  # type: List[Text]
        refused = []  # type: List[Header]
        self.unlocked = freezer.lock_memory()
        self.begin = clock.monotonic()
        self._tell(watchdog.FREEZING)
        for index, mount_point in enumerate(self._mounts):
            fd = self._fds[index]
            with self._lock:
                if self._given_up or self.lost_at is not None:
                    break
            if reply.cancelled:
                break
            try:
                freezer.freeze(fd)
            except EnvironmentError as error:
                refused.append(
                    {
                        "mount": mount_point,
                        "errno": error.errno,
                        "reason": os.strerror(error.errno or 0),
                    }
                )
                continue
            frozen.append(mount_point)
            with self._lock:
                self._frozen.append(fd)
        with self._lock:
            self._in_progress = False
            lost = self.lost_reason
            ended = self._given_up
        self._tell(watchdog.DONE)
        if lost is not None or ended or reply.cancelled:
            self.thaw()
            reply.check()
            raise AgentError("freeze", "nothing is frozen: %s" % (lost or "the agent is ending"))
        return frozen, refused

    def thaw(self):
        # type: () -> Tuple[float, bool]
        """Thaw, the last one first; return for how long it was frozen, and whether someone else thawed first.

        Raises:
            AgentError: ``freeze``: the system refuses; the watchdog goes on trying.
        """
        with self._thawing:
            refusal = None if self._over else self._thaw()
            if refusal is not None:
                raise from_os_error("freeze", refusal, doing="thawing")
            end = self._end if self.lost_at is None else self.lost_at
            held = 0.0 if self.begin is None else max(end - self.begin, 0.0)
            return held, self.lost_at is not None

    def _thaw(self):
        # type: () -> Optional[EnvironmentError]
        refusal = None  # type: Optional[EnvironmentError]
        with self._lock:
            fds = list(self._frozen)
        for fd in reversed(fds):
            try:
                if not freezer.thaw(fd):
                    with self._lock:
                        self._lose("someone else thawed")
            except EnvironmentError as error:
                refusal = error
        self._end = clock.monotonic()
        with self._lock:
            self._over = True
            self._frozen = []
        if refusal is None:
            self._tell(watchdog.QUIT)
        self._end_watchdog()
        freezer.unlock_memory()
        self._close()
        return refusal

    def _end_watchdog(self):
        # type: () -> None
        self._watchdog.stdin.close()
        end = clock.monotonic() + _END_SECONDS
        while self._watchdog.poll() is None and clock.monotonic() < end:
            time.sleep(0.005)

    def _close(self):
        # type: () -> None
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def give_up(self):
        # type: () -> None
        """Thaw as the agent ends. Where a freeze is still under way, the watchdog thaws it after our end."""
        with self._lock:
            self._given_up = True
            in_progress = self._in_progress
            frozen = list(self._frozen)
            over = self._over
        if over:
            return
        if in_progress:
            freezer.thaw_all(frozen)
        else:
            self.thaw()

    def remaining(self):
        # type: () -> float
        """Return the seconds until the watchdog thaws; 0 when it has."""
        if self.lost_at is not None or self.begin is None:
            return 0.0
        return max(self.begin + self.limit - clock.monotonic(), 0.0)


class _Freezing(object):
    """The one freeze that there can be."""

    def __init__(self, context):
        # type: (Context) -> None
        self._context = context
        self._lock = threading.Lock()
        self._current = None  # type: Optional[_Freeze]
        self._busy = False

    def freeze(self, wanted, limit, reply):
        # type: (List[str], float, Reply) -> Header
        """Freeze what is mounted at the places *wanted*; return the RESULT."""
        order, same = _distinct(wanted)
        with self._lock:
            if self._busy:
                raise AgentError(
                    "bad-request", "a freeze is under way, or was not ended by `thaw`"
                )
            self._busy = True
        try:
            current = _Freeze(self._context.command, order, limit)
        except Exception:
            with self._lock:
                self._busy = False
            raise
        kept = False
        self._context.at_end(current.give_up, first=True)
        with self._lock:
            self._current = current
        try:
            frozen, refused = current.freeze(reply)
            seconds = clock.monotonic() - (current.begin or 0.0)
            kept = bool(frozen)
        finally:
            if not kept:
                self._end(current)
        return {
            "frozen": [mount for mount in wanted if same[mount] in frozen],
            "refused": [
                {"mount": mount, "errno": entry["errno"], "reason": entry["reason"]}
                for entry in refused
                for mount in wanted
                if same[mount] == entry["mount"]
            ],
            "seconds": seconds,
            "unlocked": current.unlocked,
        }

    def thaw(self):
        # type: () -> Header
        """End the freeze; return the RESULT."""
        with self._lock:
            current, self._current = self._current, None
        if current is None:
            return {"held": 0.0, "lost": False}
        held, lost = self._end(current)
        return {"held": held, "lost": lost}

    def _end(self, current):
        # type: (_Freeze) -> Tuple[float, bool]
        try:
            return current.thaw()
        finally:
            self._context.not_at_end(current.give_up)
            with self._lock:
                self._current = None
                self._busy = False

    def frozen(self):
        # type: () -> Header
        """Return for how long it will last."""
        with self._lock:
            current = self._current
        remaining = 0.0 if current is None else current.remaining()
        return {"frozen": remaining > 0, "remaining": remaining}


def _distinct(wanted):
    # type: (List[str]) -> Tuple[List[Text], Dict[str, Text]]
    """Return the mount points to freeze, one of each file system, and which of them stands for each one wanted.

    A directory that is no mount point is refused: its freeze would be that of the file system around it.
    """
    number_of = {}  # type: Dict[Text, str]
    for mount in mounts.mounts():
        # The last one at a place hides the others.
        number_of[mount["mount_point"]] = mount["number"]
    order = []  # type: List[Text]
    same = {}  # type: Dict[str, Text]
    first = {}  # type: Dict[str, Text]
    for mount_point in wanted:
        found = number_of.get(names.to_text(mount_point))
        if found is None:
            raise AgentError(
                "bad-request", "%s is not a mount point" % mount_point, device=mount_point
            )
        if found not in first:
            first[found] = mount_point
            order.append(mount_point)
        same[mount_point] = first[found]
    if not order:
        raise AgentError("bad-request", "no mount point is named")
    return order, same


def _freeze(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob
    wanted = texts(args, "mounts")
    limit = number(args, "limit", 0.1, MAX_LIMIT)
    return context.kept(_Freezing).freeze(wanted, limit, reply), b""


def _thaw(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del args, blob, reply
    return context.kept(_Freezing).thaw(), b""


def _frozen(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del args, blob, reply
    return context.kept(_Freezing).frozen(), b""


VERBS = {
    "freeze": _freeze,
    "thaw": _thaw,
    "frozen": _frozen,
}  # type: Dict[str, Verb]
