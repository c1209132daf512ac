"""Laws of chunking, comparison and hot blocks."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvm_migrate.delta import HotBlocks, ZeroDigests, chunk_count, chunks, compare, digest_of
from cvm_migrate.errors import InvalidRequestError, ProtocolError, UnsupportedError
from cvm_migrate.model import ExtentMap

maps = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 12)), max_size=10).map(ExtentMap)


def bytes_of(extents: ExtentMap) -> set[int]:
    return {position for extent in extents for position in range(extent.offset, extent.end)}


@given(maps, st.integers(1, 20), st.integers(0, 90))
def test_chunks_cover_the_disk_s_part_exactly_once(
    ranges: ExtentMap, chunk: int, size: int
) -> None:
    """Aligned, ascending, none twice, no longer than a chunk, and only those that are touched."""
    wanted = {position for position in bytes_of(ranges) if position < size}

    cut = list(chunks(ranges, chunk, size))

    covered = [position for piece in cut for position in range(piece.offset, piece.end)]
    assert covered == sorted(set(covered))
    assert wanted <= set(covered)
    for piece in cut:
        assert piece.offset % chunk == 0
        assert piece.length == min(chunk, size - piece.offset) > 0
        assert not wanted.isdisjoint(range(piece.offset, piece.end))


@given(st.integers(1, 20), st.integers(0, 200))
def test_the_whole_disk_has_as_many_chunks_as_are_counted(chunk: int, size: int) -> None:
    cut = list(chunks(ExtentMap.whole(size), chunk, size))

    assert len(cut) == chunk_count(chunk, size)
    assert sum(piece.length for piece in cut) == size


@pytest.mark.parametrize(("chunk", "size"), [(0, 10), (-1, 10), (4, -1)])
def test_a_layout_that_cannot_be_is_refused(chunk: int, size: int) -> None:
    with pytest.raises(InvalidRequestError):
        list(chunks(ExtentMap(), chunk, size))
    with pytest.raises(InvalidRequestError):
        compare([], [], chunk=chunk, size=size)


@given(st.binary(max_size=200), st.sampled_from(["xxh3-128", "sha256"]))
def test_zeroes_are_known_by_their_digest(data: bytes, algorithm: str) -> None:
    """It agrees with looking at the bytes, whatever the length."""
    zeroes = ZeroDigests(algorithm)

    assert zeroes.is_zero(digest_of(data, algorithm), len(data)) is (not any(data))
    assert zeroes.is_zero(digest_of(bytes(len(data)), algorithm), len(data))


def test_a_chunk_that_is_zero_but_for_its_last_byte_is_not_zero() -> None:
    for algorithm in ("xxh3-128", "sha256"):
        data = bytes((1 << 20) - 1) + b"\x01"

        assert not ZeroDigests(algorithm).is_zero(digest_of(data, algorithm), len(data))


def test_sha256_is_what_the_standard_library_says() -> None:
    assert digest_of(b"abc", "sha256") == hashlib.sha256(b"abc").digest()


def test_an_unknown_digest_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="md4"):
        ZeroDigests("md4")


CHUNK = 4


@st.composite
def disks(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two disks of one size, of which some bytes differ."""
    one = draw(st.binary(max_size=70))
    other = bytearray(one)
    for position in draw(st.lists(st.integers(0, 69), max_size=8)):
        if position < len(other):
            other[position] ^= draw(st.integers(0, 255))
    return one, bytes(other)


def stream(data: bytes, wanted: ExtentMap, cuts: st.DataObject) -> list[tuple[int, list[bytes]]]:
    """The digests of a disk as an agent gives them, cut into batches in any way."""
    batches: list[tuple[int, list[bytes]]] = []
    for piece in chunks(wanted, CHUNK, len(data)):
        digest = digest_of(data[piece.offset : piece.end], "xxh3-128")
        follows = bool(batches) and (batches[-1][0] + len(batches[-1][1]) * CHUNK == piece.offset)
        if follows and cuts.draw(st.booleans()):
            batches[-1][1].append(digest)
        else:
            batches.append((piece.offset, [digest]))
            if cuts.draw(st.booleans()):
                batches.append((piece.offset + CHUNK, []))
    return batches


@given(disks(), maps, st.data())
def test_comparison_finds_exactly_the_chunks_that_differ(
    pair: tuple[bytes, bytes], ranges: ExtentMap, data: st.DataObject
) -> None:
    """However the two streams are cut into batches."""
    one, other = pair
    wanted = ranges.align(CHUNK, len(one))
    expected = ExtentMap(
        piece
        for piece in chunks(wanted, CHUNK, len(one))
        if one[piece.offset : piece.end] != other[piece.offset : piece.end]
    )

    found = compare(
        iter(stream(one, wanted, data)),
        iter(stream(other, wanted, data)),
        chunk=CHUNK,
        size=len(one),
    )

    assert found == expected


@given(disks(), st.data())
def test_sending_what_differs_makes_the_copy_identical(
    pair: tuple[bytes, bytes], data: st.DataObject
) -> None:
    source, target = pair[0], bytearray(pair[1])
    whole = ExtentMap.whole(len(source))

    delta = compare(
        stream(source, whole, data),
        stream(bytes(target), whole, data),
        chunk=CHUNK,
        size=len(source),
    )
    for extent in delta:
        target[extent.offset : extent.end] = source[extent.offset : extent.end]

    assert bytes(target) == source


@given(st.binary(min_size=1, max_size=70), st.data())
def test_a_missing_chunk_is_noticed_wherever_it_is(disk: bytes, data: st.DataObject) -> None:
    """At either end of either stream, or in between: never a silent 'equal'."""
    whole = stream(disk, ExtentMap.whole(len(disk)), data)
    full = [(offset + n * CHUNK, [d]) for offset, batch in whole for n, d in enumerate(batch)]
    short = list(full)
    del short[data.draw(st.integers(0, len(full) - 1))]

    for one, other in ((full, short), (short, full)):
        with pytest.raises(ProtocolError, match="different chunks"):
            compare(one, other, chunk=CHUNK, size=len(disk))


@pytest.mark.parametrize(
    "batches",
    [
        pytest.param([(2, [b"x"])], id="not aligned"),
        pytest.param([(-4, [b"x"])], id="before the start"),
        pytest.param([(8, [b"x", b"y"])], id="past the end"),
        pytest.param([(12, [b"x"])], id="behind the end"),
        pytest.param([(4, [b"x"]), (0, [b"y"])], id="descending"),
        pytest.param([(0, [b"x", b"y"]), (4, [b"y"])], id="twice"),
    ],
)
def test_a_stream_that_is_no_list_of_chunks_is_refused(
    batches: list[tuple[int, list[bytes]]],
) -> None:
    with pytest.raises(ProtocolError):
        compare(batches, batches, chunk=4, size=11)


def test_digests_of_two_kinds_are_not_compared() -> None:
    with pytest.raises(ProtocolError, match="16 and of 32 bytes"):
        compare([(0, [bytes(16)])], [(0, [bytes(32)])], chunk=4, size=4)


def test_comparison_reads_no_further_than_it_must() -> None:
    """Streams are read in step: an endless pair ends at its first fault."""

    def endless(first: int) -> object:
        offset = first
        while True:
            yield offset, [b"x"]
            offset += 4

    with pytest.raises(ProtocolError, match="different chunks"):
        compare(endless(0), endless(4), chunk=4, size=1 << 62)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


@given(st.lists(maps, min_size=1, max_size=12), st.integers(2, 4))
def test_no_dirty_block_is_ever_lost(passes: list[ExtentMap], patience: int) -> None:
    """Everything dirty or deferred is either sent now or deferred, never both, never neither."""
    hot = HotBlocks(passes=patience)
    owed: set[int] = set()

    for dirty in passes:
        owed |= bytes_of(dirty)
        now, deferred = hot.update(dirty)
        assert bytes_of(now) | bytes_of(deferred) == owed
        assert bytes_of(now).isdisjoint(bytes_of(deferred))
        assert deferred == hot.deferred
        owed -= bytes_of(now)

    assert owed <= bytes_of(hot.final(ExtentMap()))


@given(st.lists(maps, min_size=1, max_size=12))
def test_only_blocks_dirty_three_times_running_are_deferred(passes: list[ExtentMap]) -> None:
    hot = HotBlocks()

    for number, dirty in enumerate(passes):
        _, deferred = hot.update(dirty)
        last = [bytes_of(earlier) for earlier in passes[max(0, number - 2) : number + 1]]
        expected = last[0] & last[1] & last[2] if len(last) == 3 else set[int]()
        assert bytes_of(deferred) == expected


@given(st.lists(maps, min_size=1, max_size=8), maps)
def test_a_block_that_cooled_down_is_sent_by_the_next_pass(
    passes: list[ExtentMap], last: ExtentMap
) -> None:
    hot = HotBlocks()
    for dirty in passes:
        hot.update(dirty)
    waiting = bytes_of(hot.deferred)

    now, deferred = hot.update(last)

    assert waiting - bytes_of(last) <= bytes_of(now)
    assert bytes_of(deferred) <= bytes_of(last)


@given(st.lists(maps, min_size=1, max_size=12), st.integers(1, 4))
def test_the_bound_on_what_is_remembered_loses_nothing_either(
    passes: list[ExtentMap], most: int
) -> None:
    hot = HotBlocks(most_extents=most)
    owed: set[int] = set()

    for dirty in passes:
        owed |= bytes_of(dirty)
        now, deferred = hot.update(dirty)
        assert bytes_of(now) | bytes_of(deferred) == owed
        assert len(deferred) <= most
        owed -= bytes_of(now)


def test_after_the_final_sync_nothing_is_deferred() -> None:
    hot = HotBlocks()
    for _ in range(3):
        hot.update(ExtentMap([(0, 8)]))
    assert hot.final(ExtentMap([(16, 4)])) == ExtentMap([(0, 8), (16, 4)])

    hot.sent()

    assert not hot.deferred
    assert hot.update(ExtentMap([(0, 8)])) == (ExtentMap([(0, 8)]), ExtentMap())


def test_hot_after_one_pass_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        HotBlocks(passes=1)
