"""Dirty maps and pages of the trace ring, without a kernel."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvm_migrate.agent.tracking import marks, ring

BLOCK = 4096
BLOCKS = 3 * 4096

Spans = list[tuple[int, int]]


def spans_of(points: set[int]) -> Spans:
    """The ascending ranges, not touching, that hold just these numbers."""
    spans: Spans = []
    for point in sorted(points):
        if spans and spans[-1][1] == point:
            spans[-1] = (spans[-1][0], point + 1)
        else:
            spans.append((point, point + 1))
    return spans


def points_of(spans: Spans) -> set[int]:
    return {point for start, end in spans for point in range(start, end)}


clusters = st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 300)), max_size=8).map(
    lambda many: {n for start, size in many for n in range(start, min(start + size, BLOCKS))}
)
small = st.sets(st.integers(0, 60))


@given(small, small)
def test_ranges_are_merged_and_subtracted_as_sets(one: set[int], other: set[int]) -> None:
    left, right = spans_of(one), spans_of(other)

    assert list(marks.union(left, right)) == spans_of(one | other)
    assert list(marks.subtract(left, right)) == spans_of(one - other)


@given(dirty=clusters, form=st.sampled_from([marks.BITS, marks.BYTES]), clear=st.booleans())
def test_a_map_gives_just_the_marked_blocks(*, dirty: set[int], form: str, clear: bool) -> None:
    offset = marks.PAGE
    pages = marks.pages_for(BLOCKS * BLOCK, BLOCK, form)
    memory = bytearray(offset + pages * marks.PAGE)
    for number in dirty:
        if form == marks.BITS:
            memory[offset + number // 8] |= 1 << number % 8
        else:
            memory[offset + number] = 1
    kept = bytes(memory)
    snapshot = marks.take(memory, offset, pages, BLOCK, form, clear)
    expected = [(start * BLOCK, end * BLOCK) for start, end in spans_of(dirty)]

    assert list(snapshot.ranges(BLOCKS * BLOCK)) == expected
    assert list(snapshot.ranges(BLOCKS * BLOCK)) == expected
    assert bytes(memory) == (bytes(len(memory)) if clear else kept)


def test_the_last_range_ends_with_the_disk() -> None:
    memory = bytearray(marks.PAGE)
    memory[9] = 1
    snapshot = marks.take(memory, 0, 1, BLOCK, marks.BYTES, clear=True)

    assert list(snapshot.ranges(9 * BLOCK + 512)) == [(9 * BLOCK, 9 * BLOCK + 512)]
    assert marks.total(snapshot.ranges(9 * BLOCK + 512)) == 512


FORMAT = """name: block_rq_complete
ID: 2107
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:dev_t dev;\toffset:8;\tsize:4;\tsigned:0;
\tfield:sector_t sector;\toffset:16;\tsize:8;\tsigned:0;
\tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;
\tfield:char rwbs[10];\toffset:34;\tsize:10;\tsigned:0;
"""
PAGE = ring.PageLayout(4096, 8, 16)


def record(sector: int) -> bytes:
    body = bytearray(48)
    struct.pack_into("<H", body, 0, 2107)
    struct.pack_into("<IxxxxQI", body, 8, 7 << 20, sector, 8)
    body[34:37] = b"WS\0"
    return bytes(body)


def page(*events: bytes, flags: int = 0) -> bytes:
    content = b"".join(events)
    return (struct.pack("<QQ", 1, len(content) | flags) + content).ljust(4096, b"\xaa")


def test_events_are_found_between_padding_and_time_stamps() -> None:
    """Short and long records, a discarded record, a time extend, an absolute time, then the rest of a page."""
    short = struct.pack("<I", 12) + record(1)
    extended = struct.pack("<II", 30, 5)
    absolute = struct.pack("<II", 31, 5)
    discarded = struct.pack("<II", 29 | 1 << 5, 52) + record(2)[:48]
    long = struct.pack("<II", 0, 52) + record(3)
    rest = struct.pack("<I", 29) + bytes(20)
    form = ring.EventFormat(FORMAT)
    data = page(short, extended, absolute, discarded, long, rest)
    found = [form.read(data, at) for number, at in ring.records(data, PAGE) if number == form.id]

    assert [each.sector for each in found] == [1, 3]
    assert [(each.dev, each.count, each.rwbs) for each in found] == [(7 << 20, 8, b"WS")] * 2


@pytest.mark.parametrize("flags", [1 << 31, 1 << 31 | 1 << 30])
def test_a_page_after_a_loss_says_so(flags: int) -> None:
    assert ring.missed(page(flags=flags), PAGE)
    assert list(ring.records(page(flags=flags), PAGE)) == []
    assert not ring.missed(page(), PAGE)


def test_a_page_that_claims_too_much_is_refused() -> None:
    with pytest.raises(ring.UnknownFormat):
        list(ring.records(page(flags=1 << 20), PAGE))


def test_a_format_without_its_fields_is_refused() -> None:
    with pytest.raises(ring.UnknownFormat):
        ring.EventFormat(
            FORMAT.replace("dev_t dev;\toffset:8;\tsize:4", "dev_t dev;\toffset:8;\tsize:8")
        )
    with pytest.raises(ring.UnknownFormat):
        ring.EventFormat("name: x\n")
