"""Raw pages of the kernel's trace ring, and block events in them.

Layout: include/linux/ring_buffer.h and kernel/trace/ring_buffer.c of the kernel; offsets come from the ``format``
files and from ``events/header_page``, as they differ between kernels. Little-endian only.
"""

from __future__ import absolute_import

import re
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterator, Tuple

_FIELD = re.compile(r"field:[^;]*?(\w+)(?:\[\w*\])?;\s*offset:(\d+);\s*size:(\d+);")
_WORD = struct.Struct("<I")
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
# RB_MISSED_EVENTS and RB_MISSED_STORED, in the upper bits of a page's length.
_MISSED = 1 << 31 | 1 << 30
_LENGTH = (1 << 27) - 1


class PageLayout(object):
    """Bytes of a page, where its length is, and where its events begin."""

    def __init__(self, size, commit, data):
        # type: (int, int, int) -> None
        self.size = size
        self.commit = commit
        self.data = data


class BlockEvent(object):
    """What a block event says: the kernel's number of the device, first sector, sectors, operation."""

    __slots__ = ("count", "dev", "rwbs", "sector")

    def __init__(self, dev, sector, count, rwbs):
        # type: (int, int, int, bytes) -> None
        self.dev = dev
        self.sector = sector
        self.count = count
        self.rwbs = rwbs


class UnknownFormat(Exception):
    """A page or a format file isn't what it is known to be."""


def page_layout(text):
    # type: (str) -> PageLayout
    """Read ``events/header_page``."""
    fields = _fields(text)
    if "commit" not in fields or "data" not in fields:
        raise UnknownFormat("events/header_page has no commit or data")
    data, length = fields["data"]
    return PageLayout(data + length, fields["commit"][0], data)


def _fields(text):
    # type: (str) -> Dict[str, Tuple[int, int]]
    return {name: (int(at), int(size)) for name, at, size in _FIELD.findall(text)}


class EventFormat(object):
    """Where the fields of one kind of block event are, from its ``format`` file."""

    def __init__(self, text):
        # type: (str) -> None
        found = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
        fields = _fields(text)
        wanted = (("dev", 4), ("sector", 8), ("nr_sector", 4))
        if not found or "rwbs" not in fields:
            raise UnknownFormat("a block event's format has no ID or no rwbs")
        for name, size in wanted:
            if fields.get(name, (0, 0))[1] != size:
                raise UnknownFormat("%s of a block event doesn't have %d bytes" % (name, size))
        self.id = int(found.group(1))
        self._dev = fields["dev"][0]
        self._sector = fields["sector"][0]
        self._count = fields["nr_sector"][0]
        self._rwbs, self._rwbs_size = fields["rwbs"]

    def read(self, page, at):
        # type: (bytes, int) -> BlockEvent
        """Return the event whose record begins there."""
        text = page[at + self._rwbs : at + self._rwbs + self._rwbs_size]
        return BlockEvent(
            _WORD.unpack_from(page, at + self._dev)[0],
            struct.unpack_from("<Q", page, at + self._sector)[0],
            _WORD.unpack_from(page, at + self._count)[0],
            text.split(b"\0", 1)[0],
        )


def missed(page, layout):
    # type: (bytes, PageLayout) -> bool
    """Say whether events were lost before those of this page."""
    return bool(_WORD.unpack_from(page, layout.commit)[0] & _MISSED)


def records(page, layout):
    # type: (bytes, PageLayout) -> Iterator[Tuple[int, int]]
    """Yield ``(event id, where its record begins)`` for each event of a page."""
    at = layout.data
    end = at + (_WORD.unpack_from(page, layout.commit)[0] & _LENGTH)
    if end > len(page):
        raise UnknownFormat("a page of the ring claims more bytes than it has")
    while at + 4 <= end:
        header = _WORD.unpack_from(page, at)[0]
        kind = header & 31
        if kind == _PADDING:
            if not header >> 5:
                return
            at += 4 + _WORD.unpack_from(page, at + 4)[0]
        elif kind in (_TIME_EXTEND, _TIME_STAMP):
            at += 8
        elif kind:
            yield _WORD.unpack_from(page, at + 4)[0] & 0xFFFF, at + 4
            at += 4 + 4 * kind
        else:
            yield _WORD.unpack_from(page, at + 8)[0] & 0xFFFF, at + 8
            at += 4 + _WORD.unpack_from(page, at + 4)[0]
