"""Room for one chunk: aligned for the disk, with space for the frame's header right before it.

So a frame goes to TLS, and comes from it, in one piece and without a copy.
"""

from __future__ import absolute_import

import ctypes
import sys

from cvm_migrate.agent import blockio
from cvm_migrate.agent.pump import frames

assert sys.platform != "win32", "pumps run on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Where the chunk begins.
DATA = blockio.ALIGNMENT
_START = DATA - frames.HEADER.size
_ZERO_STEP = 256 << 10
_ZEROES = bytearray(_ZERO_STEP)


class Slot(object):
    """A buffer and a view of it that can be written to."""

    def __init__(self, size):
        # type: (int) -> None
        self.size = size
        self.buffer = blockio.Buffer(DATA + size)
        if sys.version_info[0] >= 3:
            self.view = self.buffer.view()  # type: Any
        else:
            # A mapping has no memoryview there, but memory has.
            memory = (ctypes.c_char * self.buffer.size).from_address(self.buffer.address)
            self.view = memoryview(memory)  # pyright: ignore[reportArgumentType]

    def chunk(self, length):
        # type: (int) -> Any
        """Return the first *length* bytes of the chunk, as a view."""
        return self.view[DATA : DATA + length]

    def frame(self, header, length):
        # type: (bytes, int) -> Any
        """Put a header before the chunk and return both, as a view."""
        self.buffer.put(header, _START)
        return self.view[_START : DATA + length]


def is_zero(view):
    # type: (Any) -> bool
    """Whether a chunk is all zeroes."""
    for at in range(0, len(view), _ZERO_STEP):
        part = view[at : at + _ZERO_STEP]
        # A bytearray compares with a view where both lie; a view compares byte by byte, and bytes with none.
        if (_ZEROES if len(part) == _ZERO_STEP else _ZEROES[: len(part)]) != part:
            return False
    return True
