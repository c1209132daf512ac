"""The tracer process of the tracefs rung: it owns the instance, reads the rings and keeps the maps.

It is started with exec, as its parent has threads. One message with what to track comes first, then a request at
a time; an end of file ends it. However it ends, it removes its instance, except by SIGKILL: then others do.
"""

from __future__ import absolute_import

import errno
import os
import signal
import struct
import sys
import time

assert sys.platform != "win32", "tracefs is Linux's"  # noqa: S101 - tells type checkers

from cvm_migrate.agent import children  # noqa: E402
from cvm_migrate.agent.tracking import Device, marks, system  # noqa: E402
from cvm_migrate.agent.tracking.instance import Instance, numbers_for, remove_left_overs  # noqa: E402
from cvm_migrate.agent.tracking.ring import UnknownFormat, missed, records  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Set, Text, Tuple

_IDLE_SECONDS = 0.02
# Pages of one ring that are read before requests are looked at again.
_PAGES_A_TURN = 64
_RANGE = struct.Struct(">QQ")
_LENGTH = struct.Struct(">I")
_PAIRS_A_PIECE = 4096


class _Map(object):
    """Marks of one device: bytes, in this process's memory."""

    def __init__(self, device, block):
        # type: (Device, int) -> None
        self.size = device.size
        self.block = block
        self.events = 0
        self.doubts = []  # type: List[Text]
        self._written_pages = marks.pages_for(device.size, block, marks.BYTES)
        self._discard = block * marks.DISCARD_FACTOR
        self._discarded_pages = marks.pages_for(device.size, self._discard, marks.BYTES)
        self._written = bytearray(self._written_pages * marks.PAGE)
        self._discarded = bytearray(self._discarded_pages * marks.PAGE)

    def doubt(self, reason):
        # type: (Text) -> None
        if reason not in self.doubts:
            self.doubts.append(reason)

    def mark(self, sector, count, discarded):
        # type: (int, int, bool) -> None
        start = sector << 9
        end = start + (count << 9)
        if end > self.size:
            self.doubt("a request lay beyond the end that the device had when tracking began")
            end = min(end, self.size)
            if start >= end:
                return
        block = self._discard if discarded else self.block
        memory = self._discarded if discarded else self._written
        first = start // block
        count = (end - 1) // block - first + 1
        if count == 1:
            memory[first] = 1
        else:
            memory[first : first + count] = b"\1" * count

    def take(self, clear):
        # type: (bool) -> Tuple[marks.Snapshot, marks.Snapshot]
        written = marks.take(self._written, 0, self._written_pages, self.block, marks.BYTES, clear)
        discarded = marks.take(
            self._discarded, 0, self._discarded_pages, self._discard, marks.BYTES, clear
        )
        return written, discarded


class _Tracer(object):
    def __init__(self, tracefs, devices, block, buffer_kb):
        # type: (system.Tracefs, List[Device], int, Optional[int]) -> None
        self._devices = devices
        self._maps = [_Map(device, block) for device in devices]
        self._numbers = numbers_for(devices)  # type: Dict[int, Set[int]]
        self._by_number = self._index()
        self.instance = Instance(tracefs, self._by_number, buffer_kb)
        self._losses = dict.fromkeys(self.instance.cpus, 0)  # type: Dict[int, int]

    def _index(self):
        # type: () -> Dict[int, int]
        return {number: index for index, numbers in self._numbers.items() for number in numbers}

    def read_some(self, most):
        # type: (int) -> bool
        """Read up to so many pages of each ring; say whether there was any."""
        found = False
        for cpu in self.instance.cpus:
            for _ in range(most):
                page = self.instance.read(cpu)
                if not page:
                    break
                found = True
                self._digest(page)
        return found

    def _doubt_all(self, reason):
        # type: (Text) -> None
        for each in self._maps:
            each.doubt(reason)

    def _digest(self, page):
        # type: (bytes) -> None
        layout = self.instance.layout
        if missed(page, layout):
            self._doubt_all("the kernel's trace buffer overflowed: events were lost")
        formats = self.instance.formats
        for event_id, at in records(page, layout):
            form = formats.get(event_id)
            if form is None:
                continue
            event = form.read(page, at)
            index = self._by_number.get(event.dev)
            # A flush has no sectors. What begins with neither R nor D changes data: W, FW, N, and more.
            if index is None or not event.count or event.rwbs[:1] == b"R":
                continue
            discarded = event.rwbs[:1] == b"D"
            if event_id == self.instance.queue_id:
                if discarded:
                    self._maps[index].mark(event.sector, event.count, True)
                continue
            self._maps[index].events += 1
            self._maps[index].mark(event.sector, event.count, discarded)

    def drain(self):
        # type: () -> None
        """Read everything that was recorded before now, and find out whether it is all there was."""
        # An event that interrupted another on its CPU shows when that one has ended.
        if not system.wait_for_tracepoints():
            time.sleep(_IDLE_SECONDS)
        # No ring had more pages than this; what comes while it is read may stay for the next time.
        self.read_some(self.instance.ring_pages)
        for cpu in self.instance.cpus:
            losses = self.instance.losses(cpu)
            if losses != self._losses[cpu]:
                self._doubt_all("the kernel's trace buffer overflowed: events were lost")
                self._losses[cpu] = losses
        self._renew_filters()

    def _renew_filters(self):
        # type: () -> None
        numbers = numbers_for(self._devices)
        if numbers == self._numbers:
            return
        for index, each in numbers.items():
            if each != self._numbers[index]:
                self._maps[index].doubt("partitions came or went")
        self._numbers = numbers
        self._by_number = self._index()
        self.instance.set_numbers(self._by_number)

    def answer(self, index, clear):
        # type: (int, bool) -> None
        self.drain()
        device = self._maps[index]
        written, discarded = device.take(clear)
        size = device.size
        header = {"doubts": device.doubts, "events": device.events}  # type: Dict[str, Any]
        if clear:
            device.doubts = []
            changed = written.ranges(size)
            gone = marks.subtract(discarded.ranges(size), written.ranges(size))
            children.send(1, header)
            _send_ranges(changed)
            _send_ranges(gone)
        else:
            header["dirty"] = marks.total(
                marks.union(written.ranges(size), discarded.ranges(size))
            )
            children.send(1, header)


def _send_ranges(spans):
    # type: (Iterable[Tuple[int, int]]) -> None
    """Write ``(start, end)`` pairs in pieces, each with its length before it; an empty one ends them."""
    parts = []  # type: List[bytes]
    for start, end in spans:
        parts.append(_RANGE.pack(start, end))
        if len(parts) == _PAIRS_A_PIECE:
            children.write(1, _LENGTH.pack(len(parts) * _RANGE.size) + b"".join(parts))
            parts = []
    if parts:
        children.write(1, _LENGTH.pack(len(parts) * _RANGE.size) + b"".join(parts))
    children.write(1, _LENGTH.pack(0))


def _loop(tracer):
    # type: (_Tracer) -> None
    found = False
    while True:
        if children.can_read(0, 0.0 if found else _IDLE_SECONDS):
            try:
                request = children.receive(0)
            except EOFError:
                return
            tracer.answer(request["index"], request["clear"])
        found = tracer.read_some(_PAGES_A_TURN)


def _end(number, frame):
    # type: (int, object) -> None
    del number, frame
    raise SystemExit(0)


def main():
    # type: () -> int
    """Serve one parent until it closes its end."""
    # A Ctrl-C is for the caller, who ends this process by closing its line.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Until there is something to remove, and then again while it is removed.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    order = children.receive(0)
    devices = [Device(*each) for each in order["devices"]]
    tracer = None
    try:
        try:
            tracefs = system.Tracefs()
            remove_left_overs(tracefs)
            tracer = _Tracer(tracefs, devices, order["block"], order["buffer_kb"])
        except (EnvironmentError, UnknownFormat) as error:
            children.send(1, {"refused": system.reason_of(error)})
            return 0
        signal.signal(signal.SIGTERM, _end)
        children.send(1, {"instance": tracer.instance.name})
        _loop(tracer)
    except EnvironmentError as error:
        # The parent is gone, and with it the one who would read the answer.
        if error.errno != errno.EPIPE:
            raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if tracer is not None:
            tracer.instance.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
