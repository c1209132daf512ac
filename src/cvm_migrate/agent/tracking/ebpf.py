"""The eBPF rung: programs in the kernel mark blocks in memory that is mapped here; nothing can overflow."""

from __future__ import absolute_import

import mmap
import os
import struct
import sys
import time

from cvm_migrate.agent import clock
from cvm_migrate.agent.tracking import bpf, btf, marks, programs, system
from cvm_migrate.agent.tracking.base import TRACEPOINTS, Refused, Tracker

assert sys.platform != "win32", "eBPF is Linux's"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Sequence, Text, Tuple

    from cvm_migrate.agent.tracking import Device
    from cvm_migrate.agent.tracking.base import Collected, Peeked

# A task, a soft interrupt and a hard interrupt can be inside one tracepoint on one CPU at the same time, each
# keeping one copy from running again; the third is free.
_COPIES = 3
_BYTES_UP_TO = 128 << 30
# Longer than a write takes on a disk that isn't overloaded. At rest, as when frozen, nothing is waited for.
_SETTLE_SECONDS = 0.05
_COUNTER = struct.Struct("=Q")


def probe():
    # type: () -> Optional[Text]
    """Say why it can't serve here; None if it seems that it can."""
    try:
        _check_machine()
        os.close(bpf.create_array(1))
    except (EnvironmentError, Refused) as error:
        return bpf.reason_of(error)
    return None


def _check_machine():
    # type: () -> None
    if sys.byteorder != "little" or system.bpf_number() is None:
        raise Refused("there are no eBPF programs for this machine (%s)" % os.uname()[4])
    if not os.path.exists(btf.PATH):
        raise Refused("this kernel does not describe its types (no %s)" % btf.PATH)


def _check_barrier():
    # type: () -> None
    if not system.wait_for_tracepoints():
        raise Refused("this kernel cannot wait for running programs (membarrier)")


def start(devices, block, form=None):
    # type: (Sequence[Device], Optional[int], Optional[str]) -> EbpfTracker
    """Start marking.

    Args:
        devices: Whole disks.
        block: Bytes that a mark stands for; None: by size.
        form: ``bits`` or ``bytes``; None: by size, and by what the kernel can.

    Raises:
        Refused: It can't serve here.
    """
    forms = [form] if form else [marks.BITS, marks.BYTES]
    if form is None and sum(device.size for device in devices) <= _BYTES_UP_TO:
        forms.reverse()
    reasons = []  # type: List[Text]
    try:
        _check_machine()
        with open(btf.PATH, "rb") as file:
            types = btf.Types(file.read(), programs.WANTED)
        layout = programs.Layout(types)
    except (EnvironmentError, btf.UnknownType, Refused) as error:
        raise Refused(bpf.reason_of(error))
    for each in forms:
        try:
            if each == marks.BITS:
                _check_barrier()
            size = marks.choose_block([device.size for device in devices], each, block)
            return EbpfTracker(devices, size, each, layout, types)
        except (EnvironmentError, ValueError, Refused, bpf.VerifierError) as error:
            reasons.append("%s: %s" % (each, bpf.reason_of(error)))
    raise Refused("; ".join(reasons))


class _DeviceMap(object):
    """The maps of one device and the programs that mark them."""

    def __init__(self, device, block, form, layout, types):
        # type: (Device, int, str, programs.Layout, btf.Types) -> None
        self._form = form
        self._size = device.size
        self._block = block
        self._fds = []  # type: List[int]
        self._mapped = []  # type: List[mmap.mmap]
        generations = 2 if form == marks.BITS else 1
        self._written_pages = marks.pages_for(device.size, block, form)
        self._discarded_pages = marks.pages_for(device.size, block * marks.DISCARD_FACTOR, form)
        self._coarse_pages = marks.pages_for(device.size, programs.COARSE_BLOCK, marks.BYTES)
        self._discarded_at = self._written_pages * generations
        self._written_coarse_at = self._discarded_at + self._discarded_pages * generations
        self._discarded_coarse_at = self._written_coarse_at + self._coarse_pages
        pages = self._discarded_coarse_at + self._coarse_pages
        try:
            array = bpf.create_array(pages)
            self._fds.append(array)
            control = bpf.create_array(1)
            self._fds.append(control)
            self._memory = mmap.mmap(array, pages * marks.PAGE)
            self._mapped.append(self._memory)
            self._control = mmap.mmap(control, marks.PAGE)
            self._mapped.append(self._control)
            self._put(programs.DISCARDED_GENERATION, self._discarded_at)
            self._attach(self._target(device, array, control), layout, types)
        except BaseException:
            self.close()
            raise

    def _target(self, device, array, control):
        # type: (Device, int, int) -> programs.Target
        coarse = programs.COARSE_BLOCK
        return programs.Target(
            device.major,
            device.minor,
            array,
            control,
            (
                programs.Plane(0, self._block, self._form),
                programs.Plane(self._written_coarse_at, coarse, marks.BYTES),
            ),
            (
                programs.Plane(self._discarded_at, self._block * marks.DISCARD_FACTOR, self._form),
                programs.Plane(self._discarded_coarse_at, coarse, marks.BYTES),
            ),
        )

    def _attach(self, target, layout, types):
        # type: (programs.Target, programs.Layout, btf.Types) -> None
        for tracepoint in TRACEPOINTS:
            number = types.find(btf.TYPEDEF, "btf_trace_" + tracepoint)
            for copy in range(_COPIES):
                program = bpf.load(programs.build(layout, tracepoint, target, copy), number)
                self._fds.append(program)
                self._fds.append(bpf.attach(program))

    def _get(self, place):
        # type: (int) -> int
        return int(_COUNTER.unpack_from(self._control[place : place + 8])[0])

    def _put(self, place, value):
        # type: (int, int) -> None
        self._control[place : place + 8] = _COUNTER.pack(value)

    def events(self):
        # type: () -> int
        return max(self._get(programs.EVENTS + 8 * copy) for copy in range(_COPIES))

    def unmarked(self):
        # type: () -> int
        return self._get(programs.UNMARKED)

    def look(self, clear):
        # type: (bool) -> Tuple[List[marks.Snapshot], List[marks.Snapshot]]
        """Return what was written and what was discarded, each fine and coarse; clear it if asked to."""
        written_at = self._get(programs.WRITTEN_GENERATION)
        discarded_at = self._get(programs.DISCARDED_GENERATION)
        if clear and self._form == marks.BITS:
            # The other generation is all zero. After the wait, nobody marks this one any more.
            self._put(programs.WRITTEN_GENERATION, self._written_pages - written_at)
            self._put(
                programs.DISCARDED_GENERATION,
                2 * self._discarded_at + self._discarded_pages - discarded_at,
            )
            if not system.wait_for_tracepoints():
                raise OSError(0, "membarrier(2) has stopped working")
        written = [
            self._take(written_at, self._written_pages, self._block, self._form, clear),
            self._take(
                self._written_coarse_at,
                self._coarse_pages,
                programs.COARSE_BLOCK,
                marks.BYTES,
                clear,
            ),
        ]
        discarded = [
            self._take(
                discarded_at,
                self._discarded_pages,
                self._block * marks.DISCARD_FACTOR,
                self._form,
                clear,
            ),
            self._take(
                self._discarded_coarse_at,
                self._coarse_pages,
                programs.COARSE_BLOCK,
                marks.BYTES,
                clear,
            ),
        ]
        return written, discarded

    def _take(self, page, pages, block, form, clear):
        # type: (int, int, int, str, bool) -> marks.Snapshot
        return marks.take(self._memory, page * marks.PAGE, pages, block, form, clear)

    def close(self):
        # type: () -> None
        # The last first: a program is taken from its tracepoint before it is let go.
        while self._fds:
            os.close(self._fds.pop())
        while self._mapped:
            self._mapped.pop().close()


class EbpfTracker(Tracker):
    """Marks in the kernel.

    Attributes:
        form: ``bits`` or ``bytes``.
    """

    rung = "ebpf"

    def __init__(self, devices, block, form, layout, types):
        # type: (Sequence[Device], int, str, programs.Layout, btf.Types) -> None
        Tracker.__init__(self, devices, block)
        self.form = form
        self._maps = []  # type: List[_DeviceMap]
        self._unmarked = [0] * len(self.devices)
        try:
            for device in self.devices:
                self._maps.append(_DeviceMap(device, block, form, layout, types))
        except BaseException:
            self.close()
            raise

    def _look(self, index, clear):
        # type: (int, bool) -> Tuple[List[List[marks.Snapshot]], Optional[Text], int]
        device = self._maps[index]
        written, discarded = device.look(clear)
        unmarked = device.unmarked()
        if unmarked > self._unmarked[index]:
            self.doubt(
                index,
                "%d requests lay beyond the end that %s had when tracking began"
                % (unmarked - self._unmarked[index], self.devices[index].path),
            )
        reason = self._doubt_of(index, clear)
        if clear:
            self._unmarked[index] = unmarked
        return [written, discarded], reason, device.events()

    def collect(self, index):
        # type: (int) -> Collected
        """See :meth:`Tracker.collect`."""
        (written, discarded), reason, events = self._look(index, clear=True)
        self._let_writes_end(index)
        size = self.devices[index].size
        changed = marks.union(written[0].ranges(size), written[1].ranges(size))
        again = marks.union(written[0].ranges(size), written[1].ranges(size))
        gone = marks.subtract(
            marks.union(discarded[0].ranges(size), discarded[1].ranges(size)), again
        )
        return marks.lengths(changed), marks.lengths(gone), reason is None, reason, events

    def _let_writes_end(self, index):
        # type: (int) -> None
        """Wait a little for the writes that were under way: what they write is then read with this pass."""
        device = self.devices[index]
        end = clock.monotonic() + _SETTLE_SECONDS
        while clock.monotonic() < end and system.writes_in_flight(device.major, device.minor):
            time.sleep(0.002)

    def peek(self, index):
        # type: (int) -> Peeked
        """See :meth:`Tracker.peek`."""
        (written, discarded), reason, events = self._look(index, clear=False)
        size = self.devices[index].size
        marked = marks.union(
            marks.union(written[0].ranges(size), written[1].ranges(size)),
            marks.union(discarded[0].ranges(size), discarded[1].ranges(size)),
        )
        return marks.total(marked), reason is None, reason, events

    def close(self):
        # type: () -> None
        """See :meth:`Tracker.close`."""
        while self._maps:
            self._maps.pop().close()
