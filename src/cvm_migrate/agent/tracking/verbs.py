"""The verbs that track what is written to open disks."""

from __future__ import absolute_import

import sys
import threading

assert sys.platform != "win32", "trackers are Linux's"  # noqa: S101 - tells type checkers

from cvm_migrate.agent import tracking  # noqa: E402
from cvm_migrate.agent.verbs import AgentError, integer, optional_integer, pack_ranges, texts  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Text, Tuple

    from cvm_migrate.agent.blockio import OpenHandle
    from cvm_migrate.agent.tracking.base import Tracker
    from cvm_migrate.agent.verbs import Context, Header, Reply

# 512 KiB of a PART's blob.
_RANGES_A_PART = 32768


class _Session(object):
    """What one agent tracks until it ends, and which handle is which of its devices."""

    def __init__(self, context):
        # type: (Context) -> None
        context.at_end(self.stop)
        self.lock = threading.RLock()
        self.tracker = None  # type: Optional[Tracker]
        self.indexes = {}  # type: Dict[int, int]

    def stop(self):
        # type: () -> None
        with self.lock:
            tracker, self.tracker = self.tracker, None
            self.indexes = {}
            if tracker is not None:
                tracker.close()

    def find(self, args):
        # type: (Header) -> Tuple[Tracker, int]
        handle = integer(args, "handle", 0)
        if self.tracker is None or handle not in self.indexes:
            raise AgentError("bad-request", "handle %d is not tracked" % handle)
        return self.tracker, self.indexes[handle]


def _device(handle, number):
    # type: (OpenHandle, int) -> tracking.Device
    kind, _, numbers = handle.identity.partition(":")
    if kind != "block":
        raise AgentError("bad-request", "handle %d is no block device" % number)
    major, _, minor = numbers.partition(":")
    return tracking.Device(handle.path, handle.size, int(major), int(minor))


def _handles(args):
    # type: (Header) -> List[Any]
    if not isinstance(args.get("handles"), list):
        raise AgentError("bad-request", "handles must be a list")
    value = args["handles"]  # type: List[Any]
    return value


def _track_start(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob, reply
    handles = _handles(args)
    rungs = texts(args, "rungs")
    block = optional_integer(args, "block", 1)
    devices = [_device(context.handle({"handle": number}), number) for number in handles]
    session = context.kept(_Session)
    with session.lock:
        if session.tracker is not None:
            raise AgentError(
                "bad-request", "tracking has been started before", remedy="track_stop"
            )
        try:
            tracker, refused = tracking.start(devices, rungs, block)
        except ValueError as error:
            raise AgentError("bad-request", str(error))
        session.tracker = tracker
        session.indexes = {number: index for index, number in enumerate(handles)}
        return {
            "rung": tracker.rung if tracker else None,
            "refused": refused,
            "block": tracker.block if tracker else None,
        }, b""


def _track_collect(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob
    session = context.kept(_Session)
    with session.lock:
        tracker, index = session.find(args)
        written, discarded, certain, reason, events = tracker.collect(index)
        try:
            _send(reply, "written", written)
            _send(reply, "discarded", discarded)
        except BaseException:
            # The marks are cleared, and nobody has them.
            tracker.doubt(index, "the ranges of an earlier collection did not arrive")
            raise
        return {"certain": certain, "reason": reason, "events": events}, b""


def _send(reply, what, ranges):
    # type: (Reply, Text, Iterable[Tuple[int, int]]) -> None
    part = []  # type: List[Tuple[int, int]]
    for each in ranges:
        part.append(each)
        if len(part) == _RANGES_A_PART:
            reply.check()
            reply.part({"what": what}, pack_ranges(part))
            part = []
    if part:
        reply.check()
        reply.part({"what": what}, pack_ranges(part))


def _track_peek(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob, reply
    session = context.kept(_Session)
    with session.lock:
        tracker, index = session.find(args)
        dirty, certain, reason, events = tracker.peek(index)
        return {"dirty_bytes": dirty, "certain": certain, "reason": reason, "events": events}, b""


def _track_stop(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del args, blob, reply
    context.kept(_Session).stop()
    return {}, b""


VERBS = {
    "track_start": _track_start,
    "track_collect": _track_collect,
    "track_peek": _track_peek,
    "track_stop": _track_stop,
}
