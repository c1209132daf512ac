"""Where the fields of the kernel's own structures are, from /sys/kernel/btf/vmlinux.

Format: Documentation/bpf/btf.rst of the kernel. Only what the trackers ask for is looked at.
"""

from __future__ import absolute_import

import array
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Sequence, Tuple

PATH = "/sys/kernel/btf/vmlinux"

POINTER = 2
STRUCT = 4
_UNION = 5
TYPEDEF = 8
FUNC_PROTO = 13
_HEADER = struct.Struct("=HBBIIIII")
_MAGIC = 0xEB9F
# Words that follow the three of each type: (fixed, for each of vlen).
_EXTRA = {
    1: (1, 0),  # INT
    2: (0, 0),  # PTR
    3: (3, 0),  # ARRAY
    4: (0, 3),  # STRUCT
    5: (0, 3),  # UNION
    6: (0, 2),  # ENUM
    7: (0, 0),  # FWD
    8: (0, 0),  # TYPEDEF
    9: (0, 0),  # VOLATILE
    10: (0, 0),  # CONST
    11: (0, 0),  # RESTRICT
    12: (0, 0),  # FUNC
    13: (0, 2),  # FUNC_PROTO
    14: (1, 0),  # VAR
    15: (0, 3),  # DATASEC
    16: (0, 0),  # FLOAT
    17: (1, 0),  # DECL_TAG
    18: (0, 0),  # TYPE_TAG
    19: (0, 3),  # ENUM64
}
_QUALIFIERS = frozenset((8, 9, 10, 11, 18))


class UnknownType(Exception):
    """The kernel has no such structure, field or tracepoint, or describes them in a newer format."""


class Types(object):
    """The types of the running kernel.

    Args:
        data: Contents of the file.
        wanted: ``(kind, name)`` of what will be looked up.
    """

    def __init__(self, data, wanted):
        # type: (bytes, Sequence[Tuple[int, str]]) -> None
        magic, _, _, header, type_at, type_length, names_at, names_length = _HEADER.unpack_from(
            data
        )
        if magic != _MAGIC:
            raise UnknownType("%s is not BTF of this byte order" % PATH)
        self._names = data[header + names_at : header + names_at + names_length]
        self._words = array.array("I")  # type: array.array[int]
        types = data[header + type_at : header + type_at + type_length]
        # frombytes is new in Python 3.2, fromstring is gone since 3.9.
        getattr(self._words, "frombytes" if hasattr(self._words, "frombytes") else "fromstring")(
            types
        )
        self._places = array.array("I", [0])  # type: array.array[int]
        self._found = {}  # type: Dict[Tuple[int, str], int]
        self._index(wanted)

    def _index(self, wanted):
        # type: (Sequence[Tuple[int, str]]) -> None
        by_offset = {}  # type: Dict[int, List[Tuple[int, str]]]
        for kind, name in wanted:
            at = self._names.find(b"\0" + name.encode() + b"\0") + 1
            if at:
                by_offset.setdefault(at, []).append((kind, name))
        words = self._words
        places = self._places
        at = 0
        end = len(words)
        while at < end:
            info = words[at + 1]
            kind = info >> 24 & 31
            if kind not in _EXTRA:
                raise UnknownType("BTF has a kind of type, %d, that is newer than this" % kind)
            if words[at] in by_offset:
                for key in by_offset[words[at]]:
                    if key[0] == kind:
                        self._found.setdefault(key, len(places))
            places.append(at)
            fixed, each = _EXTRA[kind]
            at += 3 + fixed + each * (info & 0xFFFF)

    def find(self, kind, name):
        # type: (int, str) -> int
        """Return the number of a type."""
        if (kind, name) not in self._found:
            raise UnknownType("this kernel has no type %s" % name)
        return self._found[kind, name]

    def _kind(self, number):
        # type: (int) -> int
        return self._words[self._places[number] + 1] >> 24 & 31

    def _name(self, offset):
        # type: (int) -> str
        return self._names[offset : self._names.index(b"\0", offset)].decode()

    def plain(self, number):
        # type: (int) -> int
        """Follow typedefs and qualifiers to the type itself."""
        while number and self._kind(number) in _QUALIFIERS:
            number = self._words[self._places[number] + 2]
        return number

    def target(self, number):
        # type: (int) -> int
        """Return the type that a pointer points to; 0 for what is no pointer."""
        number = self.plain(number)
        if not number or self._kind(number) != POINTER:
            return 0
        return self.plain(self._words[self._places[number] + 2])

    def parameters(self, tracepoint):
        # type: (str) -> List[int]
        """Return the types of the arguments that a raw tracepoint has."""
        function = self.target(self.find(TYPEDEF, "btf_trace_" + tracepoint))
        place = self._places[function]
        info = self._words[place + 1]
        if info >> 24 & 31 != FUNC_PROTO:
            raise UnknownType("tracepoint %s is no function" % tracepoint)
        # The first is the private data of who registered.
        return [self._words[place + 3 + 2 * n + 1] for n in range(1, info & 0xFFFF)]

    def offset(self, name, path):
        # type: (str, str) -> int
        """Return where a field, such as ``bi_iter.bi_size``, is in a structure, in bytes.

        Raises:
            UnknownType: There is no such field.
        """
        number = self.find(STRUCT, name)
        bits = 0
        for field in path.split("."):
            found = self._member(number, field)
            if found is None:
                raise UnknownType("struct %s has no field %s" % (name, path))
            bits += found[0]
            number = found[1]
        return bits // 8

    def has(self, name, field):
        # type: (str, str) -> bool
        """Say whether a structure has a field."""
        return self._member(self.find(STRUCT, name), field) is not None

    def _member(self, number, field):
        # type: (int, str) -> Optional[Tuple[int, int]]
        number = self.plain(number)
        if not number or self._kind(number) not in (STRUCT, _UNION):
            return None
        place = self._places[number]
        info = self._words[place + 1]
        for n in range(info & 0xFFFF):
            name, kind, bits = self._words[place + 3 + 3 * n : place + 6 + 3 * n]
            # With the flag in bit 31, the upper byte is the width of a bit field.
            bits = bits & 0xFFFFFF if info >> 31 else bits
            if not name:
                inner = self._member(kind, field)
                if inner is not None:
                    return bits + inner[0], inner[1]
            elif self._name(name) == field:
                return bits, kind
        return None
