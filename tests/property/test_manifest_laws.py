"""A manifest gives back what it was given, stays sparse, and a damaged one is refused."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cvm_migrate.delta import Manifest, chunks, compare, digest_of
from cvm_migrate.errors import InvalidRequestError, UnsupportedError
from cvm_migrate.model import ExtentMap
from cvm_migrate.units import KiB, TiB

CHUNK = 4
SIZE = 90
COUNT = -(-SIZE // CHUNK)
algorithms = st.sampled_from(["xxh3-128", "sha256"])
maps = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 30)), max_size=6).map(ExtentMap)


def length_of(number: int) -> int:
    return min(CHUNK, SIZE - number * CHUNK)


@st.composite
def writes(draw: st.DrawFn) -> tuple[int, list[bytes]]:
    """A chunk's number and the contents of the chunks from there on; often zeroes."""
    first = draw(st.integers(0, COUNT - 1))
    count = draw(st.integers(0, COUNT - first))
    contents = [
        draw(
            st.just(bytes(length_of(n))) | st.binary(min_size=length_of(n), max_size=length_of(n))
        )
        for n in range(first, first + count)
    ]
    return first, contents


def buffer_for(algorithm: str) -> bytearray:
    return bytearray(Manifest.bytes_needed(algorithm=algorithm, chunk=CHUNK, size=SIZE))


# Behind the end of the disk, where a whole last chunk would reach.
@example("xxh3-128", [(COUNT - 1, [bytes(length_of(COUNT - 1))]), ExtentMap([(SIZE, 1)])])
@given(algorithms, st.lists(writes() | maps, max_size=8))
def test_it_gives_back_what_it_was_given(
    algorithm: str, steps: list[tuple[int, list[bytes]] | ExtentMap]
) -> None:
    """After any sets and forgets, also when it was stored and loaded in between."""
    buffer = buffer_for(algorithm)
    manifest = Manifest.create(algorithm=algorithm, chunk=CHUNK, size=SIZE, buffer=buffer)
    model: dict[int, bytes] = {}

    for step in steps:
        if isinstance(step, ExtentMap):
            manifest.forget(step)
            for piece in chunks(step, CHUNK, SIZE):
                model.pop(piece.offset // CHUNK, None)
            continue
        first, contents = step
        digests = [digest_of(content, algorithm) for content in contents]
        manifest.set(first * CHUNK, digests)
        model |= dict(enumerate(digests, first))
    manifest.seal()
    loaded = Manifest.load(bytes(buffer))

    known = ExtentMap((number * CHUNK, length_of(number)) for number in model)
    for one in (manifest, loaded):
        assert one.get(0, COUNT) == [model.get(number) for number in range(COUNT)]
        assert one.known() == known
        assert one.unknown() == ExtentMap.whole(SIZE) - known
        given_back = {
            offset // CHUNK + n: digest
            for offset, digests in one.batches(most=3)
            for n, digest in enumerate(digests)
        }
        assert given_back == model
    assert (loaded.algorithm, loaded.chunk, loaded.size) == (algorithm, CHUNK, SIZE)


@given(
    st.binary(min_size=SIZE, max_size=SIZE), st.lists(st.integers(0, SIZE - 1), max_size=6), maps
)
def test_two_manifests_are_compared_by_their_streams(
    disk: bytes, changed: list[int], ranges: ExtentMap
) -> None:
    after = bytearray(disk)
    for position in changed:
        after[position] ^= 1
    made: list[Manifest] = []
    for content in (disk, bytes(after)):
        manifest = Manifest.create(algorithm="xxh3-128", chunk=CHUNK, size=SIZE)
        manifest.set(
            0,
            [
                digest_of(content[piece.offset : piece.end], "xxh3-128")
                for piece in chunks(ExtentMap.whole(SIZE), CHUNK, SIZE)
            ],
        )
        made.append(manifest)

    found = compare(
        made[0].batches(ranges), made[1].batches(ranges, most=2), chunk=CHUNK, size=SIZE
    )

    expected = ExtentMap(
        piece
        for piece in chunks(ranges, CHUNK, SIZE)
        if disk[piece.offset : piece.end] != bytes(after[piece.offset : piece.end])
    )
    assert found == expected


@given(st.lists(writes(), max_size=3), st.integers(0), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_noticed(
    steps: list[tuple[int, list[bytes]]], position: int, change: int
) -> None:
    buffer = buffer_for("xxh3-128")
    manifest = Manifest.create(algorithm="xxh3-128", chunk=CHUNK, size=SIZE, buffer=buffer)
    for first, contents in steps:
        manifest.set(first * CHUNK, [digest_of(content, "xxh3-128") for content in contents])
    manifest.seal()
    manifest.release()

    buffer[position % len(buffer)] ^= change

    with pytest.raises(InvalidRequestError, match="not a manifest"):
        Manifest.load(buffer)


@given(st.binary(max_size=300), st.integers(0, 3))
def test_any_bytes_are_refused_with_a_documented_error(noise: bytes, pages: int) -> None:
    for content in (
        noise,
        noise + bytes(4096 * pages),
        b"CVMMANI\x1a" + noise + bytes(4096 * pages),
    ):
        with pytest.raises(InvalidRequestError):
            Manifest.load(content)


@given(st.integers(0, 4095))
def test_a_file_that_was_cut_off_is_refused(cut: int) -> None:
    buffer = buffer_for("sha256")
    with Manifest.create(algorithm="sha256", chunk=CHUNK, size=SIZE, buffer=buffer) as manifest:
        manifest.seal()

    with pytest.raises(InvalidRequestError):
        Manifest.load(buffer[: len(buffer) - cut - 1])


def test_only_a_sealed_manifest_is_taken() -> None:
    """A process that died while it wrote leaves one that is not sealed; any change breaks the seal."""
    buffer = buffer_for("xxh3-128")
    manifest = Manifest.create(algorithm="xxh3-128", chunk=CHUNK, size=SIZE, buffer=buffer)
    with pytest.raises(InvalidRequestError, match="not sealed"):
        Manifest.load(bytes(buffer))

    manifest.seal()
    assert Manifest.load(bytes(buffer)).sealed

    manifest.set(0, [digest_of(b"abcd", "xxh3-128")])
    assert not manifest.sealed
    with pytest.raises(InvalidRequestError, match="not sealed"):
        Manifest.load(bytes(buffer))


def set_one(manifest: Manifest) -> None:
    manifest.set(0, [bytes(16)])


def forget_one(manifest: Manifest) -> None:
    manifest.forget(ExtentMap.whole(4))


@pytest.mark.parametrize("change", [set_one, forget_one, Manifest.seal])
def test_one_loaded_from_read_only_bytes_cannot_be_changed(
    change: Callable[[Manifest], None],
) -> None:
    buffer = buffer_for("xxh3-128")
    Manifest.create(algorithm="xxh3-128", chunk=CHUNK, size=SIZE, buffer=buffer).seal()
    manifest = Manifest.load(bytes(buffer))

    with pytest.raises(InvalidRequestError, match="read-only"):
        change(manifest)


@pytest.mark.parametrize(
    ("offset", "digests"),
    [
        pytest.param(2, [bytes(16)], id="not aligned"),
        pytest.param(-4, [bytes(16)], id="before the start"),
        pytest.param(COUNT * CHUNK, [bytes(16)], id="behind the end"),
        pytest.param((COUNT - 1) * CHUNK, [bytes(16)] * 2, id="past the end"),
        pytest.param(0, [bytes(16), bytes(15)], id="digest of another length"),
    ],
)
def test_a_bad_set_is_refused_and_changes_nothing(offset: int, digests: list[bytes]) -> None:
    buffer = buffer_for("xxh3-128")
    manifest = Manifest.create(algorithm="xxh3-128", chunk=CHUNK, size=SIZE, buffer=buffer)
    manifest.seal()
    before = bytes(buffer)

    with pytest.raises(InvalidRequestError):
        manifest.set(offset, digests)

    assert bytes(buffer) == before


def test_a_buffer_of_another_length_or_with_something_in_it_is_refused() -> None:
    for buffer in (bytearray(4096), buffer_for("sha256")):
        with pytest.raises(InvalidRequestError, match="bytes_needed"):
            Manifest.create(algorithm="xxh3-128", chunk=CHUNK, size=SIZE, buffer=buffer)
    used = buffer_for("xxh3-128")
    Manifest.create(algorithm="xxh3-128", chunk=CHUNK, size=SIZE, buffer=used).seal()
    with pytest.raises(InvalidRequestError, match="something already"):
        Manifest.create(algorithm="xxh3-128", chunk=CHUNK, size=SIZE, buffer=used)
    with pytest.raises(InvalidRequestError, match="writable"):
        Manifest.create(algorithm="xxh3-128", chunk=CHUNK, size=SIZE, buffer=bytes(used))


def test_an_unknown_algorithm_or_layout_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        Manifest.create(algorithm="crc32", chunk=CHUNK, size=SIZE)
    with pytest.raises(InvalidRequestError):
        Manifest.create(algorithm="sha256", chunk=0, size=SIZE)
    with pytest.raises(InvalidRequestError):
        Manifest.create(algorithm="sha256", chunk=1, size=1 << 62)


def test_a_disk_without_a_byte_has_an_empty_manifest() -> None:
    buffer = bytearray(Manifest.bytes_needed(algorithm="sha256", chunk=CHUNK, size=0))
    Manifest.create(algorithm="sha256", chunk=CHUNK, size=0, buffer=buffer).seal()

    loaded = Manifest.load(buffer)

    assert not loaded.known()
    assert list(loaded.batches()) == []


def test_zeroes_are_known_and_still_take_no_room(tmp_path: Path) -> None:
    """A chunk of zeroes is not the same as a chunk that nobody has read, but neither needs a page of the table."""
    size, chunk = 16 * TiB, 64 * KiB
    needed = Manifest.bytes_needed(algorithm="xxh3-128", chunk=chunk, size=size)
    path = tmp_path / "manifest"
    with path.open("w+b") as file:
        file.truncate(needed)
        with mmap.mmap(file.fileno(), needed) as memory:
            with Manifest.create(
                algorithm="xxh3-128", chunk=chunk, size=size, buffer=memory
            ) as manifest:
                zeroes = [digest_of(bytes(chunk), "xxh3-128")] * 4096
                for at in range(0, 64 * 4096, 4096):
                    manifest.set(at * chunk, zeroes)
                manifest.set(size - chunk, [digest_of(b"x" * chunk, "xxh3-128")])
                known = manifest.known()
                assert manifest.get(0) == zeroes[:1]
                assert manifest.get(64 * 4096 * chunk) == [None]
            memory.flush()

    assert needed > 1 << 32
    assert list(known) == [(0, 64 * 4096 * chunk), (size - chunk, chunk)]
    # The bitmap is 32 MiB, which a tmpfs makes real by reading; the table would be 4 GiB.
    assert path.stat().st_blocks * 512 < 1 << 26
