"""Laws of the control frames: splits do not matter, and any bytes end in frames or in WireError."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cvm_migrate.agent import wire

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), 1 << 64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
HEADERS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(st.text(max_size=8), JSON, max_size=4)


@st.composite
def frames(draw: st.DrawFn) -> wire.Frame:
    kind = draw(st.sampled_from(sorted(wire.KINDS)))
    without = kind in (wire.HELLO, wire.HEARTBEAT)
    number = 0 if without else draw(st.integers(1, wire.MAX_ID))
    return wire.Frame(kind, number, draw(HEADERS), draw(st.binary(max_size=200)))


def encoded(*some: wire.Frame) -> bytes:
    return b"".join(wire.encode(f.kind, f.id, f.header, f.blob) for f in some)


@given(st.lists(frames(), max_size=5), st.lists(st.integers(0, 4000), max_size=20))
def test_any_split_gives_the_same_frames(some: list[wire.Frame], cuts: list[int]) -> None:
    data = encoded(*some)
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    decoder = wire.Decoder()
    found = [
        frame for low, high in itertools.pairwise(at) for frame in decoder.feed(data[low:high])
    ]
    assert found == some
    assert decoder.pending == 0


@given(frames())
def test_no_frame_is_seen_before_its_last_byte(frame: wire.Frame) -> None:
    data = encoded(frame)
    decoder = wire.Decoder()
    for index in range(len(data) - 1):
        assert decoder.feed(data[index : index + 1]) == []
    assert decoder.feed(data[-1:]) == [frame]


@given(st.binary(max_size=300))
def test_random_bytes_end_in_frames_or_in_wireerror(data: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        for frame in wire.Decoder().feed(data):
            assert encoded(frame)


@given(frames(), st.data())
def test_a_flipped_byte_ends_in_frames_or_in_wireerror(
    frame: wire.Frame, data: st.DataObject
) -> None:
    good = bytearray(encoded(frame))
    index = data.draw(st.integers(0, len(good) - 1))
    good[index] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(wire.WireError):
        for found in wire.Decoder().feed(bytes(good)):
            assert found.kind in wire.KINDS


@given(pieces=st.lists(st.binary(max_size=64), max_size=30), begin=st.booleans())
def test_a_decoder_holds_no_more_than_one_frame(pieces: list[bytes], *, begin: bool) -> None:
    decoder = wire.Decoder()
    most = wire.PREFIX.size + wire.MAX_HEADER + wire.MAX_BLOB
    with contextlib.suppress(wire.WireError):
        if begin:
            decoder.feed(b"CVMA\x01\x02\x00\x00\x00\x00\x00\x01\x00\x10\x00\x00\x00\x80\x00\x00")
        for piece in pieces:
            decoder.feed(piece)
            assert decoder.pending <= min(most, sum(map(len, pieces)) + wire.PREFIX.size)
