"""The data pump copies what it was told to, nothing else, and proves it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import CancelledError, InvalidRequestError
from cvm_migrate.model import ExtentMap, Streamed
from rig import loopdev, pumps
from rig.pumps import MiB

pytestmark = pytest.mark.usefixtures("devices")


@pytest.fixture(name="devices")
def _devices() -> None:
    require("root", "loop")


@pytest.mark.parametrize(
    ("sectors", "size"),
    [
        pytest.param((512, 512), 9 * MiB + 512, id="odd-number-of-512-byte-sectors"),
        pytest.param((4096, 4096), 9 * MiB + 4096, id="4096-byte-sectors"),
        pytest.param((4096, 512), 9 * MiB + 8192, id="from-4096-to-512"),
        pytest.param((512, 4096), 8 * MiB, id="from-512-to-4096"),
    ],
)
def test_a_copied_disk_is_identical_and_proven(
    tmp_path: Path, sectors: tuple[int, int], size: int
) -> None:
    with pumps.disks(tmp_path, size, sectors=sectors) as (source, target):
        with pumps.pair(source, target) as pair:
            pair.connect()
            sent = pair.stream()
            proof = pair.read_back()

            assert (sent.acked, sent.read) == (size, size)
            assert (proof.bytes, proof.wrong) == (size, ExtentMap())
            assert pair.received("bytes") == size
        assert loopdev.first_difference(source, target) is None


def test_the_end_of_a_smaller_disk_may_lie_inside_a_block_of_the_target(tmp_path: Path) -> None:
    size = MiB + 512
    with pumps.disks(tmp_path, size, target_size=2 * MiB, sectors=(512, 4096)) as (source, target):
        rest = loopdev.read_direct(target)[size:]
        with pumps.pair(source, target) as pair:
            pair.connect()
            pair.stream()
            proof = pair.read_back()

        assert (proof.bytes, proof.wrong) == (size, ExtentMap())
        assert loopdev.read_direct(target) == loopdev.read_direct(source)[:size] + rest


def test_only_the_ranges_that_were_named_are_written(tmp_path: Path) -> None:
    size = 8 * MiB
    ranges = ExtentMap(
        [(4096, 4096), (MiB - 4096, 8192), (3 * MiB + 512, 2 * MiB), (size - 512, 512)]
    )
    with pumps.disks(tmp_path, size) as (source, target):
        wanted = bytearray(loopdev.read_direct(target))
        original = loopdev.read_direct(source)
        for offset, length in ranges:
            wanted[offset : offset + length] = original[offset : offset + length]
        with pumps.pair(source, target) as pair:
            pair.connect()
            sent = pair.stream(ranges)
            proof = pair.read_back()

        assert sent.acked == proof.bytes == ranges.total
        assert loopdev.read_direct(target) == bytes(wanted)


def test_a_chunk_that_is_zero_but_for_its_last_byte_arrives(tmp_path: Path) -> None:
    (tmp_path / "source.img").write_bytes(b"\0" * (MiB - 1) + b"\1" + b"\0" * MiB)
    pumps.fill(tmp_path / "target.img", 2 * MiB, kinds="n")
    with (
        loopdev.loop_device(tmp_path / "source.img") as source,
        loopdev.loop_device(tmp_path / "target.img") as target,
    ):
        with pumps.pair(source, target) as pair:
            pair.connect()
            sent = pair.stream(codec="raw")
            proof = pair.read_back()

            assert sent.zero == MiB
            assert MiB <= sent.wire < MiB + 4096
            assert proof.bytes == 2 * MiB
        assert loopdev.first_difference(source, target) is None


def test_image_files_of_any_size_are_copied(tmp_path: Path) -> None:
    size = 3 * MiB + 12_345
    pumps.fill(tmp_path / "source.img", size)
    with pumps.pair(tmp_path / "source.img", tmp_path / "copy.img", create_size=size) as pair:
        pair.connect()
        sent = pair.stream()
        proof = pair.read_back()

    assert sent.acked == proof.bytes == size
    assert (tmp_path / "copy.img").read_bytes() == (tmp_path / "source.img").read_bytes()


def test_progress_never_falls_and_ends_at_all_of_it(tmp_path: Path) -> None:
    seen: list[Streamed] = []
    with (
        pumps.disks(tmp_path, 16 * MiB, kinds="n") as (source, target),
        pumps.pair(source, target) as pair,
    ):
        pair.connect()
        # Slow enough for a few reports.
        pair.stream(chunk=256 << 10, read_limit=12 * MiB, on_progress=seen.append)

    acked = [one.acked for one in seen]
    assert len(acked) >= 3
    assert acked == sorted(acked)
    assert acked[-1] == 16 * MiB


def test_a_second_pass_needs_no_new_connection(tmp_path: Path) -> None:
    with pumps.disks(tmp_path, 4 * MiB) as (source, target):
        with pumps.pair(source, target, through_proxy=True) as pair:
            assert pair.proxy is not None
            pair.connect(streams=2)
            pair.stream()
            with source.open("r+b", buffering=0) as disk:
                disk.seek(MiB)
                disk.write(os.urandom(8192))
                os.fsync(disk.fileno())
            again = pair.stream(ExtentMap([(MiB, 8192)]))
            proof = pair.read_back()

            assert (again.acked, again.reconnects) == (8192, 0)
            assert pair.proxy.accepted == 2
            assert pair.received("connections") == 2
        # The chunk that was overwritten in part is proven no longer, and the rest is.
        assert proof.bytes == 3 * MiB + 8192
        assert not proof.wrong
        assert loopdev.first_difference(source, target) is None


def test_no_ranges_are_a_flush(tmp_path: Path) -> None:
    with pumps.disks(tmp_path, MiB) as (source, target), pumps.pair(source, target) as pair:
        pair.connect()
        sent = pair.stream(ExtentMap())

        assert sent.acked == 0
        assert pair.read_back().bytes == 0


def test_what_was_written_behind_its_back_is_reported(tmp_path: Path) -> None:
    with pumps.disks(tmp_path, 8 * MiB, kinds="nz") as (source, target):
        with pumps.pair(source, target) as pair:
            pair.connect()
            pair.stream()
            fd = os.open(target, os.O_WRONLY)
            try:
                os.pwrite(fd, b"\x55\xaa", 3 * MiB + 777)
                os.fsync(fd)
            finally:
                os.close(fd)
            proof = pair.read_back()

            assert proof.wrong == ExtentMap([(3 * MiB, MiB)])
            assert proof.bytes == 7 * MiB
            # It is told once: sending it again is what mends it.
            pair.stream(proof.wrong)
            proof = pair.read_back()
            assert (proof.bytes, proof.wrong) == (MiB, ExtentMap())
        assert loopdev.first_difference(source, target) is None


def test_zeroes_on_the_target_are_proven_too(tmp_path: Path) -> None:
    with (
        pumps.disks(tmp_path, 4 * MiB, kinds="z") as (source, target),
        pumps.pair(source, target) as pair,
    ):
        pair.connect()
        sent = pair.stream()
        fd = os.open(target, os.O_WRONLY)
        try:
            os.pwrite(fd, b"\1", 2 * MiB + 5)
            os.fsync(fd)
        finally:
            os.close(fd)
        proof = pair.read_back()

    assert sent.zero == 4 * MiB
    assert sent.wire < 4096
    assert proof.bytes == 3 * MiB
    assert proof.wrong == ExtentMap([(2 * MiB, MiB)])


@pytest.mark.parametrize("codec", ["zlib", "zstd"])
def test_text_needs_fewer_bytes_on_the_wire(tmp_path: Path, codec: str) -> None:
    with pumps.disks(tmp_path, 8 * MiB, kinds="t") as (source, target):
        with pumps.pair(source, target) as pair:
            pair.connect()
            sent = pair.stream(codec=codec)
            assert pair.read_back().bytes == 8 * MiB

        assert sent.codec == codec
        assert sent.wire < 2 * MiB
        assert loopdev.first_difference(source, target) is None


@pytest.mark.parametrize("codec", ["auto", "zlib", "zstd"])
def test_noise_is_sent_as_it_is(tmp_path: Path, codec: str) -> None:
    with pumps.disks(tmp_path, 8 * MiB, kinds="n") as (source, target):
        with pumps.pair(source, target) as pair:
            pair.connect()
            sent = pair.stream(codec=codec)

        assert sent.codec == "raw"
        assert 8 * MiB < sent.wire < 8 * MiB + 65536
        assert loopdev.first_difference(source, target) is None


def test_a_slow_path_has_its_text_compressed(tmp_path: Path) -> None:
    with pumps.disks(tmp_path, 16 * MiB, kinds="t") as (source, target):
        with pumps.pair(source, target) as pair:
            pair.connect(streams=1)
            sent = pair.stream(codec="auto", chunk=256 << 10, bandwidth=4 * MiB)

        assert sent.codec == "zstd"
        assert sent.wire < 8 * MiB
        assert loopdev.first_difference(source, target) is None


@pytest.mark.parametrize(
    "ranges",
    [
        pytest.param(ExtentMap([(100, 512)]), id="begins-inside-a-sector"),
        pytest.param(ExtentMap([(512, 100)]), id="ends-inside-a-sector"),
        pytest.param(ExtentMap([(MiB, 512)]), id="after-the-end"),
    ],
)
def test_ranges_that_are_none_are_refused_before_anything_is_sent(
    tmp_path: Path, ranges: ExtentMap
) -> None:
    with pumps.disks(tmp_path, MiB) as (source, target), pumps.pair(source, target) as pair:
        pair.connect()
        with pytest.raises(InvalidRequestError):
            pair.stream(ranges)

        assert pair.received("bytes") == 0
        assert pair.stream().acked == MiB


def test_a_range_beyond_the_target_is_refused(tmp_path: Path) -> None:
    with (
        pumps.disks(tmp_path, 2 * MiB, target_size=MiB) as (source, target),
        pumps.pair(source, target) as pair,
    ):
        pair.connect()
        with pytest.raises(InvalidRequestError, match="target"):
            pair.stream()

        assert pair.received("bytes") == 0


def test_a_stream_that_is_called_off_ends_and_the_next_one_works(tmp_path: Path) -> None:
    with pumps.disks(tmp_path, 16 * MiB, kinds="n") as (source, target):
        with pumps.pair(source, target) as pair:
            pair.connect()
            token = CancelToken()
            timer = threading.Timer(0.5, token.cancel)
            timer.start()
            with pytest.raises(CancelledError):
                pair.source.stream(
                    pair.pump,
                    1,
                    ExtentMap.whole(16 * MiB),
                    chunk=65536,
                    read_limit=MiB,
                    cancel=token,
                )
            timer.join()
            pair.stream()
        assert loopdev.first_difference(source, target) is None


def test_two_streams_at_once_are_done_one_after_the_other(tmp_path: Path) -> None:
    results: list[Streamed] = []
    with pumps.disks(tmp_path, 8 * MiB) as (source, target):
        with pumps.pair(source, target) as pair:
            pair.connect()

            def stream(half: ExtentMap) -> None:
                results.append(pair.stream(half))

            halves = [ExtentMap([(0, 4 * MiB)]), ExtentMap([(4 * MiB, 4 * MiB)])]
            threads = [threading.Thread(target=stream, args=(half,)) for half in halves]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert pair.read_back().bytes == 8 * MiB

        assert [one.acked for one in results] == [4 * MiB, 4 * MiB]
        assert loopdev.first_difference(source, target) is None


@pytest.mark.parametrize(
    ("source_python", "target_python"),
    [
        ("2.7", "3.13"),
        ("3.13", "2.7"),
        ("2.7", "2.7"),
        ("3.6", "3.11"),
        ("3.8", "3.6"),
        ("3.12", "3.7"),
    ],
)
def test_pythons_of_any_age_understand_each_other(
    tmp_path: Path, source_python: str, target_python: str
) -> None:
    require(f"python {source_python}", f"python {target_python}")
    size = 6 * MiB + 512
    with pumps.disks(tmp_path, size) as (source, target):
        with pumps.pair(source, target, python=(source_python, target_python)) as pair:
            pair.connect()
            assert pair.stream(codec="zlib").acked == size
            assert pair.stream(ExtentMap([(0, 4096), (MiB, 2 * MiB)])).acked == 2 * MiB + 4096
            assert not pair.read_back().wrong
        assert loopdev.first_difference(source, target) is None
