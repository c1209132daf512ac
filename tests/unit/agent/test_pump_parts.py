"""Frames, limits, compression and chunks, without any connection."""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cvm_migrate.agent import blockio
from cvm_migrate.agent.pump import compression, frames, job
from cvm_migrate.agent.pump.channel import Waker
from cvm_migrate.agent.pump.pace import Bucket
from cvm_migrate.agent.verbs import AgentError, pack_ranges


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.binary(min_size=64, max_size=64), st.booleans())
def test_any_64_bytes_are_a_bounded_header_or_an_error(data: bytes, from_sender: bool) -> None:  # noqa: FBT001
    try:
        header = frames.decode_header(data, from_sender)
    except frames.FrameError:
        return
    assert header.size <= frames.MAX_CHUNK
    assert header.kind != frames.DATA or header.size <= header.length
    assert header.kind != frames.PROBE or header.size == header.length


@given(
    kind=st.sampled_from([frames.HELLO, frames.ALIVE, frames.FLUSH]),
    disk=st.integers(0, 65535),
    sequence=st.integers(0, (1 << 64) - 1),
)
def test_a_header_comes_back_as_it_was(kind: int, disk: int, sequence: int) -> None:
    data = frames.encode_header(kind, disk=disk, sequence=sequence)
    header = frames.decode_header(data, from_sender=True)

    assert (header.kind, header.disk, header.sequence, header.size) == (kind, disk, sequence, 0)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"a":', b"[" * 60_000, b"1"])
def test_json_that_is_no_object_is_an_error(data: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.decode_json(data)


def test_a_bucket_lets_through_its_rate() -> None:
    clock = _Clock()
    bucket = Bucket(1000.0, clock)
    taken = 0
    while clock.now < 110.0:
        wait = bucket.take(100)
        if wait:
            assert 0 < wait <= 0.1
            clock.now += wait
        else:
            taken += 100

    assert 9_700 <= taken <= 10_300


def test_a_bucket_does_not_save_up_while_nobody_takes() -> None:
    clock = _Clock()
    bucket = Bucket(1000.0, clock)
    clock.now += 3600
    taken = 0
    while not bucket.take(10):
        taken += 10

    assert taken <= 70


def test_a_chunk_larger_than_a_second_of_the_rate_passes_and_is_paid_for() -> None:
    clock = _Clock()
    bucket = Bucket(1000.0, clock)

    assert bucket.take(5000) == 0
    clock.now += 4.9
    assert bucket.take(1) > 0
    clock.now += 0.2
    assert bucket.take(1) == 0


def test_a_new_rate_counts_from_now_on() -> None:
    clock = _Clock()
    bucket = Bucket(10.0, clock)
    bucket.take(1000)
    bucket.rate = 1_000_000.0
    assert bucket.take(1) > 0
    bucket.rate = None
    assert bucket.take(1 << 40) == 0
    bucket.rate = 100.0
    assert bucket.rate == 100.0
    assert bucket.take(50) == 0
    assert bucket.take(50) > 0


@given(st.binary(min_size=1, max_size=5000), st.sampled_from(["zlib", "zstd"]))
def test_what_was_compressed_is_decompressed_to_exactly_its_length(
    data: bytes, codec: str
) -> None:
    packed = compression.compressor(codec, 1)(data)
    number = frames.CODEC_NUMBERS[codec]

    assert compression.decompress(number, packed, len(data)) == data
    for wrong in (len(data) - 1, len(data) + 1):
        with pytest.raises(frames.FrameError):
            compression.decompress(number, packed, wrong)


@given(st.binary(max_size=200), st.sampled_from([frames.ZLIB, frames.ZSTD]))
def test_bytes_that_were_never_compressed_are_an_error(data: bytes, codec: int) -> None:
    with pytest.raises(frames.FrameError):
        compression.decompress(codec, data, 4096)


@pytest.mark.parametrize("length", [1, 255, 256, 65_791, 65_792, 1 << 20, 8 << 20])
def test_the_announced_size_of_a_zstd_frame_is_read(length: int) -> None:
    packed = zstandard.compress(b"\0" * length, 1)

    assert compression.zstd_content_size(packed[:18]) == length


def test_a_zstd_frame_without_a_size_is_not_opened() -> None:
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 4096)
    with pytest.raises(frames.FrameError, match="announces"):
        compression.decompress(frames.ZSTD, packed, 4096)


def test_bytes_behind_the_end_of_a_chunk_are_an_error() -> None:
    with pytest.raises(frames.FrameError):
        compression.decompress(frames.ZLIB, zlib.compress(b"x" * 100) + zlib.compress(b"y"), 100)


_TEXT = b"something happened, and here is what\n" * 4000


# What a connection takes at once, and how fast memory is.
_BUFFER = 1_000_000
_MEMORY = 20e9


class _Trial:
    """A chooser whose link and compressor have the speeds that a test gives them, in bytes a second."""

    def __init__(
        self, codec: str, *, link: float, packer: float, ratio: float = 0.1, threads: int = 1
    ) -> None:
        self.clock = _Clock()
        self.chooser = compression.Chooser("auto", codec, 1, self.clock, threads)
        self.link = link
        self._packer = packer
        self._ratio = ratio
        self._threads = threads
        self._compress = compression.compressor(codec, 1)
        self._drained = 0.0
        self.compressed = 0

    def run(self, chunks: int) -> None:
        """Send so many chunks of text."""
        view = memoryview(_TEXT * 8)
        for _ in range(chunks):
            size = len(view)
            raw = not self.chooser.wants(view, self._compress)
            if not raw:
                packed = int(size * self._ratio)
                self.chooser.tried(size, packed, size / self._packer)
                self.clock.now += size / self._packer / self._threads
                self.compressed += 1
                size = packed
            begin = self.clock.now
            at_once = begin + size / _MEMORY
            self._drained = max(self._drained, begin) + size / self.link
            self.clock.now = max(at_once, self._drained - _BUFFER / self.link)
            self.chooser.sent(size, self.clock.now - begin, self.clock.now > at_once, raw)


def test_a_slow_link_has_its_chunks_compressed() -> None:
    trial = _Trial("zstd", link=10e6, packer=500e6)
    trial.run(100)

    assert trial.compressed > 90


def test_a_fast_link_is_left_raw_and_seldom_tried() -> None:
    trial = _Trial("zstd", link=5e9, packer=500e6)
    trial.run(1000)

    assert trial.compressed <= 2


def test_compressing_beside_sending_costs_only_the_slower_of_both() -> None:
    one = _Trial("zstd", link=125e6, packer=130e6, ratio=0.27)
    two = _Trial("zstd", link=125e6, packer=130e6, ratio=0.27, threads=2)
    one.run(2000)
    two.run(2000)

    assert one.compressed < 200
    assert two.compressed > 1900


def test_a_link_that_becomes_faster_is_noticed_though_only_little_is_sent() -> None:
    trial = _Trial("zstd", link=20e6, packer=130e6, ratio=0.1, threads=2)
    trial.run(1000)
    slow = trial.compressed
    trial.link = 5e9
    trial.clock.now += 60
    trial.run(1000)

    assert slow > 900
    assert trial.compressed - slow < 100


def test_what_does_not_shrink_is_left_raw() -> None:
    trial = _Trial("zstd", link=100e6, packer=500e6, ratio=0.99)
    trial.run(320)

    assert trial.compressed <= 11


def test_zlib_is_not_even_tried_on_a_fast_link() -> None:
    trial = _Trial("zlib", link=100e6, packer=30e6)
    trial.run(200)

    assert trial.compressed == 0


def test_the_choice_follows_the_link() -> None:
    trial = _Trial("zstd", link=5e9, packer=500e6)
    trial.run(100)
    before = trial.compressed
    trial.link = 5e6
    trial.clock.now += 60
    trial.run(200)

    assert before <= 2
    assert trial.compressed > 100


def test_a_sample_tells_that_noise_does_not_shrink() -> None:
    noise = memoryview(random.Random(1).randbytes(100_000))
    chooser = compression.Chooser("auto", "zstd", 1, _Clock())
    chooser.sent(1000, 1.0, waited=True, raw=True)
    compress = compression.compressor("zstd", 1)

    assert not chooser.wants(noise, compress)


@pytest.fixture(name="handle")
def _handle(tmp_path: Path) -> Generator[blockio.OpenHandle]:
    handle = blockio.open_disk(str(tmp_path / "disk.img"), "write", create_size=100_352)
    yield handle
    handle.close()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(0, 0)], "empty"),
        ([(4096, 4096), (0, 4096)], "after the one before"),
        ([(0, 4096), (4096, 4096)], "after the one before"),
        ([(98_304, 4096)], "ends after"),
        ([(1, 512)], "blocks"),
        ([(0, 500)], "blocks"),
    ],
)
def test_ranges_are_checked_before_they_are_used(
    handle: blockio.OpenHandle, pairs: list[tuple[int, int]], message: str
) -> None:
    with pytest.raises(AgentError, match=message) as caught:
        job.check_ranges(pack_ranges(pairs), handle, 1 << 30)

    assert caught.value.code == "bad-request"


def test_chunks_end_at_multiples_of_the_chunk(handle: blockio.OpenHandle) -> None:
    blob = pack_ranges([(512, 10_000), (40_960, 4096), (99_840, 512)])
    waker = Waker()
    made = job.Job(1, handle, blob, 4096, compression.Chooser("raw", "raw"), waker)
    chunks: list[tuple[int, int]] = []
    while (found := made.take()) is not None:
        chunks.append(found)
        made.confirmed(found[1], zero=False)

    assert chunks == [(512, 3584), (4096, 4096), (8192, 2320), (40_960, 4096), (99_840, 512)]
    assert made.settled
    assert made.figures()["acked"] == 14_608
    waker.close()
