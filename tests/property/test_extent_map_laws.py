"""ExtentMap obeys the laws of sets: each operation is compared with Python's own sets of small numbers."""

from __future__ import annotations

import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvm_migrate.errors import InvalidRequestError, ProtocolError
from cvm_migrate.model import Extent, ExtentMap

SIZE = 64

pairs = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(0, 12)).map(
        lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
    ),
    max_size=12,
)
maps = pairs.map(ExtentMap)


def bytes_of(extents: ExtentMap) -> set[int]:
    return {position for extent in extents for position in range(extent.offset, extent.end)}


def assert_canonical(extents: ExtentMap) -> None:
    """Ascending, not empty, neither overlapping nor touching."""
    end = -1
    for extent in extents:
        assert extent.length > 0
        assert extent.offset > end
        end = extent.end


@given(pairs)
def test_it_holds_the_bytes_it_was_given(given_pairs: list[tuple[int, int]]) -> None:
    expected = {p for offset, length in given_pairs for p in range(offset, offset + length)}

    made = ExtentMap(given_pairs)

    assert bytes_of(made) == expected
    assert made == ExtentMap(reversed(given_pairs))
    assert made.total == len(expected)
    assert made.end == max(expected, default=-1) + 1
    assert bool(made) is bool(expected)
    assert len(made) == len(list(made))
    assert {position for position in range(SIZE + 2) if position in made} == expected
    assert_canonical(made)


@given(maps, maps)
def test_union_intersection_and_difference_are_those_of_sets(
    one: ExtentMap, other: ExtentMap
) -> None:
    left, right = bytes_of(one), bytes_of(other)

    for made, expected in (
        (one | other, left | right),
        (one & other, left & right),
        (one - other, left - right),
    ):
        assert bytes_of(made) == expected
        assert_canonical(made)


@given(maps, maps)
def test_equality_and_hash_are_those_of_the_sets(one: ExtentMap, other: ExtentMap) -> None:
    assert (one == other) is (bytes_of(one) == bytes_of(other))
    assert hash(one) == hash(ExtentMap(sorted(one, reverse=True)))


@given(maps)
def test_the_wire_form_comes_back_as_it_was(extents: ExtentMap) -> None:
    wire = extents.to_wire()

    assert ExtentMap.from_wire(wire) == extents
    assert wire == b"".join(struct.pack(">QQ", e.offset, e.length) for e in extents)


@given(st.lists(maps, max_size=4))
def test_several_pieces_of_wire_form_are_their_union(pieces: list[ExtentMap]) -> None:
    expected: set[int] = set()
    for piece in pieces:
        expected |= bytes_of(piece)

    assert bytes_of(ExtentMap.from_wire(*(piece.to_wire() for piece in pieces))) == expected


@given(st.binary(max_size=100))
def test_any_bytes_are_ranges_or_a_documented_error(wire: bytes) -> None:
    try:
        made = ExtentMap.from_wire(wire)
    except ProtocolError:
        return
    assert_canonical(made)
    assert made.end <= 1 << 63


@given(maps, st.integers(1, 20), st.integers(0, SIZE + 5))
def test_aligning_gives_the_whole_blocks_that_are_touched(
    extents: ExtentMap, block: int, size: int
) -> None:
    expected = {
        position
        for touched in bytes_of(extents)
        for position in range(touched // block * block, touched // block * block + block)
        if position < size
    }

    made = extents.align(block, size)

    assert bytes_of(made) == expected
    assert_canonical(made)


@given(maps, st.integers(0, SIZE), st.integers(0, SIZE))
def test_clipping_is_the_intersection_with_one_range(
    extents: ExtentMap, offset: int, length: int
) -> None:
    assert bytes_of(extents.clip(offset, length)) == bytes_of(extents) & set(
        range(offset, offset + length)
    )


@given(maps, st.integers(1, 20), st.integers(1, 5))
def test_batches_are_a_partition_within_their_bounds(
    extents: ExtentMap, limit: int, most_extents: int
) -> None:
    batches = list(extents.batches(limit, most_extents=most_extents))

    assert [position for batch in batches for position in sorted(bytes_of(batch))] == sorted(
        bytes_of(extents)
    )
    for batch in batches:
        assert 0 < batch.total <= limit
        assert len(batch) <= most_extents
        assert_canonical(batch)


@given(maps, st.integers(1, 20))
def test_batches_bounded_by_bytes_alone_are_as_few_as_can_be(
    extents: ExtentMap, limit: int
) -> None:
    batches = list(extents.batches(limit))

    assert len(batches) == -(-extents.total // limit)


@given(maps)
def test_it_survives_pickling(extents: ExtentMap) -> None:
    assert pickle.loads(pickle.dumps(extents)) == extents  # noqa: S301 - our own bytes


@given(st.integers(0, SIZE))
def test_the_whole_of_a_disk_is_one_range_or_none(size: int) -> None:
    assert list(ExtentMap.whole(size)) == ([Extent(0, size)] if size else [])


@pytest.mark.parametrize("pair", [(-1, 2), (0, -1), (1 << 63, 1), ((1 << 63) - 1, 2)])
def test_what_is_no_range_of_a_disk_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ExtentMap([pair])

    assert (caught.value.offset, caught.value.length) == pair


def test_the_largest_possible_disk_is_a_range() -> None:
    assert ExtentMap.whole((1 << 63) - 1).total == (1 << 63) - 1
    assert ExtentMap([(0, 1 << 63)]).end == 1 << 63


def test_a_batch_that_holds_nothing_is_refused_at_once() -> None:
    """Refused by the call and not by its first use, which may be far away."""
    with pytest.raises(InvalidRequestError):
        ExtentMap().batches(0)
