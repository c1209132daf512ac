"""The three eBPF programs that mark what was written, for one device each.

Each reads the device, the operation and the range from the arguments of its tracepoint, leaves at once when they are
not its business, and marks every block that the range touches. Registers while marking: 6 is the first sector, 9
the last, 8 the word or byte that is marked now, 7 counts them.
"""

from __future__ import absolute_import

from cvm_migrate.agent.tracking import btf, marks
from cvm_migrate.agent.tracking.assembler import FRAME, Assembler
from cvm_migrate.agent.tracking.base import BIO_QUEUE, RQ_COMPLETE, TRACEPOINTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Tuple

# The control page, in bytes: first page of the generation in use for writes and for discards, requests
# that could not be marked, and a counter of events for each copy of the programs.
WRITTEN_GENERATION = 0
DISCARDED_GENERATION = 8
UNMARKED = 16
EVENTS = 24

# linux/blk_types.h: the operation is the low byte; odd ones change data.
_OPERATION = 0xFF
_DISCARD, _SECURE_ERASE = 3, 5
_LOOKUP = 1

# Bounds of the loops, for the verifier: 128 words of 64 bits; bytes; one mark of 64 MiB for each
# that the largest request (4 GiB, as its length has 32 bits) can touch.
_MOST_WORDS = 128
_MOST_BYTES = 512
_MOST_COARSE = 66
COARSE_BLOCK = 64 << 20

_STRUCTS = ("request", "request_queue", "gendisk", "bio", "block_device")
WANTED = [(btf.STRUCT, name) for name in _STRUCTS] + [
    (btf.TYPEDEF, "btf_trace_" + name) for name in TRACEPOINTS
]


class Plane(object):
    """One map inside the array.

    Attributes:
        page: Where it begins.
        shift: A mark of it stands for 2 to the power of this sectors of 512 bytes.
        form: ``bits`` or ``bytes``.
    """

    def __init__(self, page, block, form):
        # type: (int, int, str) -> None
        self.page = page
        self.shift = block.bit_length() - 1 - 9
        self.form = form


class Target(object):
    """What a program watches and marks.

    Attributes:
        major: Of the disk.
        minor: Of the disk.
        pages: Descriptor of the array.
        control: Descriptor of the control page.
        written: Its fine and its coarse map.
        discarded: The same for discards.
    """

    def __init__(self, major, minor, pages, control, written, discarded):
        # type: (int, int, int, int, Tuple[Plane, Plane], Tuple[Plane, Plane]) -> None
        self.major = major
        self.minor = minor
        self.pages = pages
        self.control = control
        self.written = written
        self.discarded = discarded


class Layout(object):
    """Offsets in the kernel's structures, and the arguments of its tracepoints."""

    def __init__(self, types):
        # type: (btf.Types) -> None
        offset = types.offset
        self.major = offset("gendisk", "major")
        self.first_minor = offset("gendisk", "first_minor")
        self.request_flags = offset("request", "cmd_flags")
        self.request_sector = offset("request", "__sector")
        self.bio_flags = offset("bio", "bi_opf")
        self.bio_sector = offset("bio", "bi_iter.bi_sector")
        self.bio_size = offset("bio", "bi_iter.bi_size")
        # From a request or bio to its whole disk; also a bio for a partition has its sectors counted from there.
        if types.has("request", "rq_disk"):  # until Linux 5.16
            self.request_disk = [offset("request", "rq_disk")]
        else:
            self.request_disk = [offset("request", "q"), offset("request_queue", "disk")]
        if types.has("bio", "bi_bdev"):  # since Linux 5.12
            self.bio_disk = [offset("bio", "bi_bdev"), offset("block_device", "bd_disk")]
        else:
            self.bio_disk = [offset("bio", "bi_disk")]
        self.arguments = {}  # type: Dict[str, Tuple[int, int]]
        for tracepoint in TRACEPOINTS:
            kind = "request" if tracepoint == RQ_COMPLETE else "bio"
            wanted = types.find(btf.STRUCT, kind)
            parameters = types.parameters(tracepoint)
            places = [n for n, number in enumerate(parameters) if types.target(number) == wanted]
            if not places:
                raise btf.UnknownType("tracepoint %s has no %s" % (tracepoint, kind))
            self.arguments[tracepoint] = (places[0], len(parameters) - 1)


def build(layout, tracepoint, target, copy):
    # type: (Layout, str, Target, int) -> bytes
    """Return the code of one program.

    Args:
        layout: Of the running kernel.
        tracepoint: One of :data:`TRACEPOINTS`.
        target: What to mark.
        copy: Which of the copies it is, from 0: each counts for itself.
    """
    asm = Assembler()
    first, last = layout.arguments[tracepoint]
    is_request = tracepoint == RQ_COMPLETE
    asm.load(8, 6, 1, first * 8)
    # Reads leave here, before anything else is touched.
    asm.load(4, 8, 6, layout.request_flags if is_request else layout.bio_flags)
    asm.set_number(8, "&", _OPERATION)
    asm.set(2, "=", 8)
    asm.set_number(2, "&", 1)
    asm.jump_if_number(2, "==", 0, "out")
    asm.set(2, "=", 6)
    for offset in layout.request_disk if is_request else layout.bio_disk:
        asm.load(8, 2, 2, offset)
    asm.load(4, 3, 2, layout.major)
    asm.jump_if_number(3, "!=", target.major, "out")
    asm.load(4, 3, 2, layout.first_minor)
    asm.jump_if_number(3, "!=", target.minor, "out")
    if is_request:
        # The last argument is the number of bytes that are complete, an unsigned int.
        asm.load(8, 9, 1, last * 8)
        asm.set_number(9, "<<", 32)
        asm.set_number(9, ">>", 32)
        asm.load(8, 6, 6, layout.request_sector)
    else:
        asm.load(4, 9, 6, layout.bio_size)
        asm.load(8, 6, 6, layout.bio_sector)
    asm.set_number(9, ">>", 9)
    asm.jump_if_number(9, "==", 0, "out")
    asm.set(9, "+", 6)
    asm.set_number(9, "+", -1)
    if tracepoint != BIO_QUEUE:
        asm.map_value(1, target.control, EVENTS + 8 * copy)
        asm.set_number(2, "=", 1)
        asm.atomic_add(1, 0, 2)
    asm.jump_if_number(8, "==", _DISCARD, "discard")
    asm.jump_if_number(8, "==", _SECURE_ERASE, "discard")
    _mark(asm, target, "w", target.written, WRITTEN_GENERATION)
    asm.label("discard")
    _mark(asm, target, "d", target.discarded, DISCARDED_GENERATION)
    asm.label("unmarked")
    asm.map_value(1, target.control, UNMARKED)
    asm.set_number(2, "=", 1)
    asm.atomic_add(1, 0, 2)
    asm.label("out")
    asm.set_number(0, "=", 0)
    asm.exit()
    return asm.code()


def _mark(asm, target, name, planes, generation):
    # type: (Assembler, Target, str, Tuple[Plane, Plane], int) -> None
    """Mark the range, in the fine plane if its loop is long enough, else in the coarse one; then leave."""
    fine, coarse = planes
    in_words = fine.form == marks.BITS
    shift = fine.shift + (6 if in_words else 0)
    asm.set(1, "=", 6)
    asm.set_number(1, ">>", shift)
    asm.set(2, "=", 9)
    asm.set_number(2, ">>", shift)
    asm.set(2, "-", 1)
    asm.jump_if_number(2, ">=", _MOST_WORDS if in_words else _MOST_BYTES, name + "-coarse")
    if in_words:
        _mark_bits(asm, target, name, fine, generation)
    else:
        _mark_bytes(asm, target, name, fine, _MOST_BYTES)
    asm.label(name + "-coarse")
    _mark_bytes(asm, target, name + "c", coarse, _MOST_COARSE)


def _look_up(asm, target, page_shift):
    # type: (Assembler, Target, int) -> None
    """r0 = the page of the array that mark r8 is in; its number is r8 >> page_shift, plus the base at -16."""
    asm.set(1, "=", 8)
    asm.set_number(1, ">>", page_shift)
    asm.load(8, 2, FRAME, -16)
    asm.set(1, "+", 2)
    asm.store(4, FRAME, -4, 1)
    asm.map(1, target.pages)
    asm.set(2, "=", FRAME)
    asm.set_number(2, "+", -4)
    asm.call(_LOOKUP)
    asm.jump_if_number(0, "==", 0, "unmarked")


def _mark_bytes(asm, target, name, plane, most):
    # type: (Assembler, Target, str, Plane, int) -> None
    """Store 1 for every block from sector r6 to r9."""
    asm.store_number(8, FRAME, -16, plane.page)
    asm.set(8, "=", 6)
    asm.set_number(8, ">>", plane.shift)
    asm.set(6, "=", 9)
    asm.set_number(6, ">>", plane.shift)
    asm.set_number(7, "=", 0)
    asm.label(name + "-loop")
    _look_up(asm, target, 12)
    asm.set(1, "=", 8)
    asm.set_number(1, "&", 4095)
    asm.set(0, "+", 1)
    asm.store_number(1, 0, 0, 1)
    asm.set_number(8, "+", 1)
    asm.jump_if(8, ">", 6, "out")
    asm.set_number(7, "+", 1)
    asm.jump_if_number(7, "<", most, name + "-loop")
    asm.jump("unmarked")


def _mark_bits(asm, target, name, plane, generation):
    # type: (Assembler, Target, str, Plane, int) -> None
    """OR the bits of every block from sector r6 to r9 into their words of the generation in use.

    The mask of the current word is at -24: ones from the first block's bit on, then all ones; the last word's loses
    the bits above the last block's.
    """
    asm.map_value(1, target.control, generation)
    asm.load(8, 2, 1)
    asm.store(8, FRAME, -16, 2)
    asm.set_number(6, ">>", plane.shift)
    asm.set_number(9, ">>", plane.shift)
    asm.set(8, "=", 6)
    asm.set_number(8, ">>", 6)
    asm.set_number(6, "&", 63)
    asm.set_number(2, "=", -1)
    asm.set(2, "<<", 6)
    asm.store(8, FRAME, -24, 2)
    asm.set(6, "=", 9)
    asm.set_number(6, ">>", 6)
    asm.set_number(7, "=", 0)
    asm.label(name + "-loop")
    _look_up(asm, target, 9)
    asm.set(1, "=", 8)
    asm.set_number(1, "&", 511)
    asm.set_number(1, "<<", 3)
    asm.set(0, "+", 1)
    asm.load(8, 2, FRAME, -24)
    asm.jump_if(8, ">=", 6, name + "-last")
    asm.atomic_or(0, 0, 2)
    asm.set_number(2, "=", -1)
    asm.store(8, FRAME, -24, 2)
    asm.set_number(8, "+", 1)
    asm.set_number(7, "+", 1)
    asm.jump_if_number(7, "<", _MOST_WORDS, name + "-loop")
    asm.jump("unmarked")
    asm.label(name + "-last")
    asm.set_number(3, "=", 63)
    asm.set_number(9, "&", 63)
    asm.set(3, "-", 9)
    asm.set_number(4, "=", -1)
    asm.set(4, ">>", 3)
    asm.set(2, "&", 4)
    asm.atomic_or(0, 0, 2)
    asm.jump("out")
