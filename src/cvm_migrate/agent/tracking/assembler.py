"""A small assembler for eBPF: one method for each instruction used here, and labels.

Instruction set: Documentation/bpf/standardization/instruction-set.rst of the kernel. Registers are numbers; 10 is
the frame pointer. Sizes are bytes.
"""

from __future__ import absolute_import

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Tuple

_INSTRUCTION = struct.Struct("=BBhi")

# Instruction classes.
_LD, _LDX, _ST, _STX, _JMP, _ALU64 = 0x00, 0x01, 0x02, 0x03, 0x05, 0x07
_SIZE = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_MEM = 0x60
_ATOMIC = 0xC0
_REGISTER = 0x08
_ALU = {"+": 0x00, "-": 0x10, "|": 0x40, "&": 0x50, "<<": 0x60, ">>": 0x70, "=": 0xB0}
_JUMP = {"==": 0x10, ">": 0x20, ">=": 0x30, "!=": 0x50, "<": 0xA0}
_JUMP_ALWAYS, _CALL, _EXIT = 0x00, 0x80, 0x90
_ATOMIC_ADD, _ATOMIC_OR = 0x00, 0x40
# What the source register of a 64-bit load says about its number.
_MAP_FD, _MAP_VALUE = 1, 2

FRAME = 10


class Assembler(object):
    """Collects instructions; :meth:`code` gives them as the kernel wants them."""

    def __init__(self):
        # type: () -> None
        self._code = []  # type: List[Tuple[int, int, int, int, int]]
        self._labels = {}  # type: Dict[str, int]
        self._jumps = []  # type: List[Tuple[int, str]]

    def __len__(self):
        # type: () -> int
        return len(self._code)

    def _add(self, opcode, destination=0, source=0, offset=0, immediate=0):
        # type: (int, int, int, int, int) -> None
        self._code.append((opcode, destination, source, offset, immediate))

    def label(self, name):
        # type: (str) -> None
        """Name the place of the next instruction."""
        self._labels[name] = len(self._code)

    def load(self, size, destination, base, offset=0):
        # type: (int, int, int, int) -> None
        """Do ``destination = memory[base + offset]``."""
        self._add(_LDX | _MEM | _SIZE[size], destination, base, offset)

    def store(self, size, base, offset, source):
        # type: (int, int, int, int) -> None
        """Do ``memory[base + offset] = source``."""
        self._add(_STX | _MEM | _SIZE[size], base, source, offset)

    def store_number(self, size, base, offset, number):
        # type: (int, int, int, int) -> None
        """Do ``memory[base + offset] = number``."""
        self._add(_ST | _MEM | _SIZE[size], base, 0, offset, number)

    def set(self, destination, operator, source):
        # type: (int, str, int) -> None
        """Do ``destination operator= source``, in 64 bits, unsigned."""
        self._add(_ALU64 | _REGISTER | _ALU[operator], destination, source)

    def set_number(self, destination, operator, number):
        # type: (int, str, int) -> None
        """Do ``destination operator= number``; the number is sign-extended from 32 bits."""
        self._add(_ALU64 | _ALU[operator], destination, 0, 0, number)

    def jump(self, label):
        # type: (str) -> None
        """Go to a label."""
        self._jumps.append((len(self._code), label))
        self._add(_JMP | _JUMP_ALWAYS)

    def jump_if(self, left, operator, right, label):
        # type: (int, str, int, str) -> None
        """Go to a label if two registers compare so, unsigned."""
        self._jumps.append((len(self._code), label))
        self._add(_JMP | _REGISTER | _JUMP[operator], left, right)

    def jump_if_number(self, left, operator, number, label):
        # type: (int, str, int, str) -> None
        """Go to a label if a register and a number compare so, unsigned."""
        self._jumps.append((len(self._code), label))
        self._add(_JMP | _JUMP[operator], left, 0, 0, number)

    def map(self, destination, fd):
        # type: (int, int) -> None
        """Set the destination to the map with that descriptor."""
        self._add(_LD | _SIZE[8], destination, _MAP_FD, 0, fd)
        self._add(0)

    def map_value(self, destination, fd, offset):
        # type: (int, int, int) -> None
        """Set the destination to the address of a byte in the first value of an array."""
        self._add(_LD | _SIZE[8], destination, _MAP_VALUE, 0, fd)
        self._add(0, 0, 0, 0, offset)

    def call(self, helper):
        # type: (int) -> None
        """Call a helper of the kernel; registers 0 to 5 are lost, 0 has the answer."""
        self._add(_JMP | _CALL, 0, 0, 0, helper)

    def atomic_add(self, base, offset, source):
        # type: (int, int, int) -> None
        """Do ``memory[base + offset] += source``, 64 bits at once."""
        self._add(_STX | _ATOMIC | _SIZE[8], base, source, offset, _ATOMIC_ADD)

    def atomic_or(self, base, offset, source):
        # type: (int, int, int) -> None
        """Do ``memory[base + offset] |= source``, 64 bits at once (Linux 5.12)."""
        self._add(_STX | _ATOMIC | _SIZE[8], base, source, offset, _ATOMIC_OR)

    def exit(self):
        # type: () -> None
        """Return register 0."""
        self._add(_JMP | _EXIT)

    def code(self):
        # type: () -> bytes
        """Return the instructions with every jump resolved (on little-endian machines)."""
        code = list(self._code)
        for at, label in self._jumps:
            opcode, destination, source, _, immediate = code[at]
            code[at] = (opcode, destination, source, self._labels[label] - at - 1, immediate)
        return b"".join(
            _INSTRUCTION.pack(opcode, destination | source << 4, offset, immediate)
            for opcode, destination, source, offset, immediate in code
        )
