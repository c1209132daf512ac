"""How long lists of ranges are cut for requests."""

from __future__ import annotations

import pytest

from cvm_migrate.errors import ProtocolError
from cvm_migrate.model import ExtentMap
from cvm_migrate.transport._batches import (
    DIGESTS,
    RANGES,
    digest_batches,
    pieces,
    range_batches,
)
from cvm_migrate.transport._session import Fields

CHUNK = 1 << 16


def test_a_list_of_ranges_is_cut_so_that_each_blob_fits_a_frame() -> None:
    ranges = ExtentMap((i * 8192, 4096) for i in range(RANGES + 1))
    batches = list(range_batches(ranges))
    assert [len(batch) for batch in batches] == [RANGES, 1]
    assert max(len(batch.to_wire()) for batch in batches) <= 8 << 20


def test_digests_are_asked_for_in_batches_that_begin_on_chunks_and_cover_everything_once() -> None:
    # The first ends inside a chunk: what follows must still begin on one.
    ranges = ExtentMap([(0, 3 * CHUNK + 512), (5 * CHUNK, 3 * DIGESTS * CHUNK + 4096)])
    batches = list(digest_batches(ranges, CHUNK))
    assert len(batches) >= 4
    together = ExtentMap()
    for batch in batches:
        assert all(extent.offset % CHUNK == 0 for extent in batch)
        assert sum(-(-extent.length // CHUNK) for extent in batch) <= DIGESTS
        assert not together & batch
        together |= batch
    assert together == ranges


def test_no_ranges_need_no_request_for_digests() -> None:
    assert list(digest_batches(ExtentMap(), CHUNK)) == []


def test_a_long_read_is_cut_into_what_one_request_may_carry() -> None:
    cut = list(pieces(512, (8 << 20) + 100))
    assert [length for _, length in cut] == [4 << 20, 4 << 20, 100]
    assert [offset for offset, _ in cut] == [512, 512 + (4 << 20), 512 + (8 << 20)]


def test_an_empty_read_is_still_asked_for_so_that_the_agent_can_refuse_it() -> None:
    assert list(pieces(512, 0)) == [(512, 0)]


@pytest.mark.parametrize("value", [None, -1, True, "7", 1.5, [1]], ids=repr)
def test_a_field_that_is_no_number_is_a_protocol_error(value: object) -> None:
    with pytest.raises(ProtocolError, match="handle"):
        Fields({"handle": value}, "the answer").number("handle")


def test_a_field_that_is_missing_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="lacks 'handle'"):
        Fields({}, "the answer").number("handle")
