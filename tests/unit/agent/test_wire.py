"""The control frames: what is refused, and how early."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from cvm_migrate.agent import wire

REQUEST = wire.encode(wire.REQUEST, 7, {"verb": "read", "args": {"offset": 1 << 62}}, b"\0\xff")


def prefix(
    *,
    magic: bytes = b"CVMA",
    version: int = 1,
    kind: int = wire.REQUEST,
    reserved: int = 0,
    number: int = 7,
    header: int = 2,
    blob: int = 0,
) -> bytes:
    return struct.pack(">4sBBHIII", magic, version, kind, reserved, number, header, blob)


def test_a_frame_is_laid_out_as_the_page_says() -> None:
    data = wire.encode(wire.RESULT, 0x01020304, {"a": 1}, b"blob")
    assert data[:20] == bytes.fromhex("43564d41 01 04 0000 01020304 00000007 00000004")
    assert data[20:] == b'{"a":1}blob'


def test_a_frame_comes_out_as_it_went_in() -> None:
    (frame,) = wire.Decoder().feed(REQUEST)
    assert frame == wire.Frame(
        wire.REQUEST, 7, {"verb": "read", "args": {"offset": 1 << 62}}, b"\0\xff"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (prefix(magic=b"HTTP") + b"{}", "begins with"),
        (prefix(version=2) + b"{}", "version 2"),
        (prefix(kind=0) + b"{}", "kind 0"),
        (prefix(kind=8) + b"{}", "kind 8"),
        (prefix(reserved=1) + b"{}", "reserved"),
        (prefix(number=0) + b"{}", "request number 0"),
        (prefix(kind=wire.HEARTBEAT, number=1) + b"{}", "request number 1"),
        (prefix(header=wire.MAX_HEADER + 1), "header of"),
        (prefix(blob=wire.MAX_BLOB + 1), "carries"),
        (prefix(header=0), "not JSON"),
        (prefix() + b"[]", "no JSON object"),
        (prefix() + b"\xff\xff", "not JSON"),
        (prefix(header=9) + b'{"a":NaN}', "NaN"),
        (prefix(header=106) + b'{"a":' + b"1" * 100 + b"}", "100 digits"),
        (prefix(header=100_006) + b'{"a":' + b"[" * 100_000 + b"}", "nested"),
    ],
)
def test_what_is_no_frame_is_refused_and_named(data: bytes, words: str) -> None:
    decoder = wire.Decoder()
    with pytest.raises(wire.WireError, match=words):
        decoder.feed(data)
    with pytest.raises(wire.WireError, match=words):
        decoder.feed(REQUEST)
    assert decoder.pending == 0


def test_a_wrong_beginning_is_refused_before_the_frame_is_complete() -> None:
    with pytest.raises(wire.WireError, match="begins with"):
        wire.Decoder().feed(b"S")
    with pytest.raises(wire.WireError, match="version 9"):
        wire.Decoder().feed(b"CVMA\x09")


def test_frames_before_a_fault_are_not_lost() -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.Decoder().feed(REQUEST + REQUEST + b"nonsense")
    assert [frame.id for frame in caught.value.frames] == [7, 7]


@pytest.mark.parametrize(
    ("kind", "number", "header", "blob"),
    [
        (9, 1, {}, b""),
        (wire.REQUEST, 0, {}, b""),
        (wire.REQUEST, 1 << 32, {}, b""),
        (wire.HELLO, 1, {}, b""),
        (wire.REQUEST, 1, {"a": float("nan")}, b""),
        (wire.REQUEST, 1, {"a": object()}, b""),
        (wire.REQUEST, 1, ["no object"], b""),
        (wire.REQUEST, 1, {"a": "x" * wire.MAX_HEADER}, b""),
        (wire.REQUEST, 1, {}, bytes(wire.MAX_BLOB + 1)),
    ],
)
def test_what_no_decoder_takes_is_not_encoded(
    kind: int, number: int, header: Any, blob: bytes
) -> None:
    with pytest.raises(wire.WireError):
        wire.encode(kind, number, header, blob)


def test_the_largest_frame_passes() -> None:
    header = {"a": "x" * (wire.MAX_HEADER - 8)}
    blob = bytes(wire.MAX_BLOB)
    (frame,) = wire.Decoder().feed(wire.encode(wire.PART, wire.MAX_ID, header, blob))
    assert (frame.id, len(frame.blob)) == (wire.MAX_ID, wire.MAX_BLOB)


def test_file_names_that_are_no_utf8_pass_as_surrogates() -> None:
    name = b"/mnt/\xff".decode("utf-8", "surrogateescape")
    (frame,) = wire.Decoder().feed(wire.encode(wire.RESULT, 1, {"path": name}))
    assert frame.header["path"] == name
