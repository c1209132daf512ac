"""What a receiver remembers, against a byte-by-byte model."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from cvm_migrate.agent.pump.pieces import Pieces, RangeSet

_SPACE = 64

_writes = st.lists(
    st.tuples(
        st.integers(0, _SPACE - 1),
        st.integers(1, 16),
        st.booleans(),
    ),
    max_size=24,
)


def _digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


@given(_writes)
def test_a_piece_is_valid_exactly_where_nothing_newer_lies(
    writes: list[tuple[int, int, bool]],
) -> None:
    known = Pieces(16)
    newest: list[int | None] = [None] * (_SPACE + 16)
    for number, (offset, length, zero) in enumerate(writes):
        known.end(known.begin(offset, length), None if zero else _digest(number), written=True)
        newest[offset : offset + length] = [number] * length

    unproven: list[tuple[int, int]] = []
    valid = list(known.take().valid(unproven))

    covered: set[int] = set()
    for offset, length, digest in valid:
        where = range(offset, offset + length)
        assert covered.isdisjoint(where)
        covered.update(where)
        writers = {newest[position] for position in where}
        if digest is None:
            assert all(writer is not None and writes[writer][2] for writer in writers)
        else:
            number = int.from_bytes(digest, "big")
            assert (offset, length) == writes[number][:2]
            assert writers == {number}
    rest = {position for begin, end in unproven for position in range(begin, end)}
    written = {position for position, writer in enumerate(newest) if writer is not None}
    assert covered | rest == written
    assert covered.isdisjoint(rest)
    assert [piece[0] for piece in valid] == sorted(piece[0] for piece in valid)
    # Zeroes can always be proven, and so can whole chunks.
    assert all(not writes[newest[position] or 0][2] for position in rest)


def test_zeroes_that_touch_are_one_piece() -> None:
    known = Pieces(16)
    for offset in (0, 2, 1, 3, 10):
        known.end(known.begin(offset, 1), None, written=True)

    # 2 cannot be joined with 0 before 1 has come.
    assert len(known) == 3
    valid = list(known.take().valid([]))
    assert sum(length for _, length, _ in valid) == 5


def test_what_was_not_written_is_not_remembered() -> None:
    known = Pieces(16)
    known.end(known.begin(0, 4096), _digest(1), written=False)

    assert len(known) == 0


def test_what_is_being_written_counts_as_newer() -> None:
    known = Pieces(16)
    token = known.begin(100, 50)

    assert list(known.newer()) == [(100, 150)]
    known.end(token, _digest(1), written=True)
    assert list(known.newer()) == [(100, 150)]
    known.take()
    assert list(known.newer()) == []


def test_what_could_not_be_read_is_put_back_before_the_rest() -> None:
    known = Pieces(16)
    known.end(known.begin(0, 1), _digest(1), written=True)
    log = known.take()
    known.end(known.begin(0, 1), _digest(2), written=True)
    known.put_back(log)

    assert list(known.take().valid([])) == [(0, 1, _digest(2))]


def test_a_piece_takes_28_bytes() -> None:
    known = Pieces(16)
    for offset in range(1000):
        known.end(known.begin(offset, 1), _digest(offset), written=True)

    assert len(known.take().data) == 28_000


def _written(known: Pieces, *lengths: int) -> None:
    """Pieces one behind the other, each with its number as its digest."""
    offset = 0
    for number, length in enumerate(lengths):
        known.end(known.begin(offset, length), _digest(number), written=True)
        offset += length


def _due(known: Pieces) -> bool:
    # A function, as type checkers take a property for unchanged.
    return known.due


def test_a_batch_is_due_from_so_many_bytes_on() -> None:
    known = Pieces(16, behind=100)
    _written(known, 60, 39)
    assert not _due(known)

    known.end(known.begin(99, 1), None, written=True)
    assert _due(known)


def test_zeroes_that_became_one_piece_count_with_all_their_bytes() -> None:
    known = Pieces(16, behind=100)
    for offset in range(0, 100, 10):
        assert not _due(known)
        known.end(known.begin(offset, 10), None, written=True)

    assert len(known) == 1
    assert _due(known)


def test_what_is_being_written_or_was_not_written_is_not_due() -> None:
    known = Pieces(16, behind=100)
    token = known.begin(0, 100)
    assert not _due(known)

    known.end(token, _digest(1), written=False)
    assert not _due(known)


def test_a_batch_is_due_when_there_are_nearly_as_many_pieces_as_may_be() -> None:
    known = Pieces(16, limit=8)
    # A quarter of them is read at once, and is the distance that is kept.
    _written(known, 1, 1, 1, 1, 1)
    assert not _due(known)

    known.end(known.begin(5, 1), _digest(5), written=True)
    assert _due(known)


def test_a_batch_is_the_oldest_pieces_and_somewhat_more_than_asked_for() -> None:
    known = Pieces(16, behind=100)
    _written(known, 60, 60, 60, 60)

    batch = known.take(everything=False)

    assert list(batch.valid([])) == [(0, 60, _digest(0)), (60, 60, _digest(1))]
    assert batch.total() == 120
    assert _due(known)
    assert list(known.take(everything=False).ranges()) == [(120, 240)]
    assert not _due(known)
    assert len(known) == 0


def test_a_batch_has_at_most_a_quarter_of_the_limit() -> None:
    known = Pieces(16, limit=8)
    _written(known, 1, 1, 1, 1, 1, 1)

    assert list(known.take(everything=False).ranges()) == [(0, 2)]
    assert not _due(known)
    assert list(known.take().ranges()) == [(2, 6)]


def test_a_batch_that_could_not_be_read_is_due_again_and_is_the_oldest() -> None:
    known = Pieces(16, behind=100)
    _written(known, 60, 60, 30)
    batch = known.take(everything=False)
    assert not _due(known)

    known.put_back(batch)

    assert _due(known)
    assert len(known) == 3
    assert list(known.take(everything=False).valid([])) == [
        (0, 60, _digest(0)),
        (60, 60, _digest(1)),
    ]
    assert not _due(known)


_steps = st.lists(
    st.tuples(
        st.sampled_from(["data", "zero", "failed", "batch", "all", "batch, put back"]),
        st.integers(0, _SPACE - 1),
        st.integers(1, 16),
    ),
    max_size=40,
)


@given(_steps, st.integers(1, 200))
def test_it_is_due_exactly_when_so_many_bytes_wait_whatever_happened(
    steps: list[tuple[str, int, int]], behind: int
) -> None:
    """Pieces are taken in the order in which they came, none twice; the count of bytes is theirs."""
    known = Pieces(16, behind=behind)
    waiting: list[int] = []
    for what, offset, length in steps:
        if what in {"data", "zero", "failed"}:
            digest = _digest(1) if what == "data" else None
            known.end(known.begin(offset, length), digest, written=what != "failed")
            if what != "failed":
                waiting.append(length)
        else:
            log = known.take(everything=what == "all")
            taken = log.total()
            # The oldest: zeroes that touch are one piece, so bytes are compared and not pieces.
            assert taken == sum(waiting) or (what != "all" and taken >= behind)
            if what == "batch, put back":
                known.put_back(log)
            else:
                waiting = [sum(waiting) - taken] if sum(waiting) > taken else []
        assert _due(known) == (sum(waiting) >= behind)
    assert known.take().total() == sum(waiting)


_sets = st.lists(st.tuples(st.integers(0, _SPACE), st.integers(1, 9))).map(
    lambda pairs: [(begin, begin + length) for begin, length in sorted(pairs)]
)


def _positions(pairs: Iterable[tuple[int, int]]) -> set[int]:
    return {position for begin, end in pairs for position in range(begin, end)}


@given(_sets, _sets)
def test_sets_of_ranges_are_sets_of_positions(
    one: list[tuple[int, int]], two: list[tuple[int, int]]
) -> None:
    left, right = RangeSet(one), RangeSet(two)

    assert _positions(left) == _positions(one)
    assert left.total == len(_positions(one))
    assert _positions(left.union(right)) == _positions(one) | _positions(two)
    assert _positions(left.minus(right)) == _positions(one) - _positions(two)
    for begin in range(_SPACE):
        assert left.touches(begin, begin + 3) == bool(
            _positions(one) & set(range(begin, begin + 3))
        )


@given(_sets, st.integers(1, 4))
def test_a_coarse_set_covers_the_fine_one(one: list[tuple[int, int]], most: int) -> None:
    fine = RangeSet(one)
    coarse = fine.coarse(most)

    assert len(coarse) <= most
    assert _positions(fine) <= _positions(coarse)
