"""Disks and files through the agent, under every Python: what it says is what a direct reading shows."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import struct
import subprocess
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest

from capabilities import python, require
from rig import loopdev
from rig.pythons import EXTREMES, VERSIONS
from rig.rawagent import RawAgent, RawError, build_zip, raw_agent

MiB = 1 << 20
EVERY_PYTHON = pytest.mark.parametrize("version", VERSIONS)
SOME_PYTHONS = pytest.mark.parametrize("version", EXTREMES)


@pytest.fixture(scope="module")
def agent_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("pyenv")
    return build_zip(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def stack() -> Generator[contextlib.ExitStack]:
    """What a test enters here is left after the agent has ended, and so has let go of it."""
    with contextlib.ExitStack() as entered:
        yield entered


@pytest.fixture
def agent(agent_zip: Path, version: str, stack: contextlib.ExitStack) -> Generator[RawAgent]:
    del stack
    with raw_agent(python(version), agent_zip) as one:
        yield one


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def pairs(*ranges: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">QQ", *one) for one in ranges)


def fill(agent: RawAgent, handle: int, begin: int, end: int) -> None:
    """Write noise and flush it: a loop device may take a write into its cache, and tell of its failure later."""
    for offset in range(begin, end, MiB):
        agent.call("write", noise(MiB), handle=handle, offset=offset)
    agent.call("flush", handle=handle)


def digests(
    agent: RawAgent, handle: int, chunk: int, algorithm: str, ranges: Iterable[tuple[int, int]]
) -> dict[int, bytes]:
    """The digests of chunks, by offset, as the agent tells them."""
    number = agent.ask("digest", pairs(*ranges), handle=handle, chunk=chunk, algorithm=algorithm)
    found: dict[int, bytes] = {}
    *parts, _ = agent.frames(number)
    for part in parts:
        count = part.header["count"]
        assert 0 < count <= 4096
        size = len(part.blob) // count
        for index in range(count):
            offset = part.header["offset"] + index * chunk
            assert offset not in found
            found[offset] = part.blob[index * size : (index + 1) * size]
    assert list(found) == sorted(found)
    return found


@EVERY_PYTHON
@pytest.mark.parametrize("sector", [512, 4096])
def test_reads_writes_zeroes_and_digests_of_a_device_agree_with_direct_reads(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack, sector: int
) -> None:
    require("root", "loop")
    size = 8 * MiB + 3 * sector
    device = stack.enter_context(loopdev.loop_device(tmp_path / "disk", size, sector=sector))
    opened = agent.open(device, "write")
    handle = opened["handle"]
    number = device.stat().st_rdev
    assert opened["kind"] == "block"
    assert opened["size"] == size
    assert opened["logical_block_size"] == sector
    assert opened["identity"] == f"block:{os.major(number)}:{os.minor(number)}"
    assert opened["direct"] is True

    expected = bytearray(size)
    for offset, length in (
        (0, MiB),
        (3 * MiB + sector, 5 * sector),
        (4 * MiB, 4 * MiB),
        (size - sector, sector),
    ):
        data = noise(length, offset)
        agent.call("write", data, handle=handle, offset=offset)
        expected[offset : offset + length] = data
    assert loopdev.read_direct(device) == expected
    for offset, length in ((5 * MiB, MiB), (7 * MiB + sector, sector), (0, sector)):
        method = agent.call("zero", handle=handle, offset=offset, length=length).header
        assert method["method"] in {"zeroout", "punch", "write"}
        expected[offset : offset + length] = bytes(length)
    assert agent.call("flush", handle=handle).header["seconds"] >= 0
    assert loopdev.read_direct(device) == expected

    for offset, length in ((0, 1), (1, 4095), (MiB - 3, 4 * MiB), (size - 5, 5), (size, 0)):
        blob = agent.call("read", handle=handle, offset=offset, length=length).blob
        assert blob == expected[offset : offset + length]
    chunk = 64 << 10
    for algorithm in agent.hello["digests"]:
        if algorithm != "sha256":
            continue
        wanted = [(0, 5 * chunk), (8 * chunk, size - 8 * chunk)]
        assert digests(agent, handle, chunk, algorithm, wanted) == {
            at: hashlib.sha256(expected[at : min(at + chunk, size)]).digest()
            for offset, length in wanted
            for at in range(offset, offset + length, chunk)
        }
    agent.call("close", handle=handle)
    with pytest.raises(RawError, match="no open handle"):
        agent.call("read", handle=handle, offset=0, length=1)


@EVERY_PYTHON
def test_a_file_of_an_odd_size_is_read_and_written_to_its_last_byte(
    agent: RawAgent, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    size = 2 * MiB + 777
    opened = agent.open(path, "write", create_size=size)
    handle = opened["handle"]
    status = path.stat()
    assert (opened["kind"], opened["size"], status.st_size) == ("file", size, size)
    assert opened["identity"] == f"file:{status.st_dev}:{status.st_ino}"
    expected = bytearray(size)
    for offset, length in ((0, MiB), (MiB + 1, 10), (2 * MiB - 100, 877), (size - 1, 1)):
        data = noise(length, offset)
        agent.call("write", data, handle=handle, offset=offset)
        expected[offset : offset + length] = data
    agent.call("flush", handle=handle)
    assert path.read_bytes() == expected
    for offset, length in ((2 * MiB, 777), (4096, 8192), (MiB + 5, 1)):
        agent.call("zero", handle=handle, offset=offset, length=length)
        expected[offset : offset + length] = bytes(length)
    assert path.read_bytes() == expected
    for offset, length in ((0, size), (size - 778, 778), (2 * MiB + 700, 1)):
        blob = agent.call("read", handle=handle, offset=offset, length=length).blob
        assert blob == expected[offset : offset + length]
    found = digests(agent, handle, MiB, "sha256", [(0, size)])
    assert found == {
        at: hashlib.sha256(expected[at : at + MiB]).digest() for at in range(0, size, MiB)
    }


@EVERY_PYTHON
def test_a_file_grows_to_the_size_asked_for_and_never_shrinks(
    agent: RawAgent, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"old")
    handle = agent.open(path, "write", create_size=8192)["handle"]
    assert path.read_bytes() == b"old" + bytes(8189)
    agent.call("close", handle=handle)
    assert agent.open(path, "write", create_size=100)["size"] == 8192


@SOME_PYTHONS
def test_a_mounted_disk_is_read_past_the_page_cache(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    require("root", "loop", "mkfs.ext4")
    device = stack.enter_context(loopdev.loop_device(tmp_path / "disk", 64 * MiB))
    loopdev.make_file_system(device, "ext4")
    mount = stack.enter_context(loopdev.mounted(device, tmp_path / "mount"))
    handle = agent.open(device)["handle"]
    # What the page cache of the device holds is from before.
    device.read_bytes()
    data = noise(MiB)
    (mount / "file").write_bytes(data)
    loopdev.write_out(mount)
    direct = loopdev.read_direct(device)
    assert data[:4096] in direct
    found = b"".join(
        agent.call("read", handle=handle, offset=offset, length=4 * MiB).blob
        for offset in range(0, 64 * MiB, 4 * MiB)
    )
    # The file system may write its own metadata between the two readings.
    assert found[direct.index(data[:4096]) :][:4096] == data[:4096]


@SOME_PYTHONS
def test_a_disk_in_use_is_not_opened_for_writing(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    require("root", "loop", "mkfs.ext4")
    device = stack.enter_context(loopdev.loop_device(tmp_path / "disk", 32 * MiB))
    loopdev.make_file_system(device, "ext4")
    with loopdev.mounted(device, tmp_path / "mount"):
        with pytest.raises(RawError) as caught:
            agent.open(device, "write")
        assert caught.value.code == "unsafe"
        assert caught.value.header["device"] == str(device)
        assert caught.value.header["errno"] == errno.EBUSY
        assert agent.open(device, "read")["size"] == 32 * MiB
    with pytest.raises(RawError, match=r"attached to the loop device") as caught:
        agent.open(tmp_path / "disk", "write", create_size=64 * MiB)
    assert caught.value.code == "unsafe"
    assert (tmp_path / "disk").stat().st_size == 32 * MiB
    # Free now: claimed, once.
    handle = agent.open(device, "write")["handle"]
    with pytest.raises(RawError) as caught:
        agent.open(device, "write")
    assert caught.value.code == "unsafe"
    agent.call("close", handle=handle)
    agent.open(device, "write")


@SOME_PYTHONS
def test_a_wrong_request_names_its_fault_and_touches_nothing(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    require("root", "loop")
    device = stack.enter_context(loopdev.loop_device(tmp_path / "disk", MiB, sector=4096))
    handle = agent.open(device, "write")["handle"]
    reading = agent.open(device)["handle"]
    for verb, blob, args, code in (
        ("open", b"", {"path": str(tmp_path / "none"), "mode": "read"}, "not-found"),
        ("open", b"", {"path": str(tmp_path), "mode": "read"}, "bad-request"),
        ("open", b"", {"path": "/dev/null", "mode": "read"}, "bad-request"),
        ("open", b"", {"path": str(device), "mode": "append"}, "bad-request"),
        (
            "open",
            b"",
            {"path": "/dev/cvm-migrate-none", "mode": "write", "create_size": MiB},
            "not-found",
        ),
        ("read", b"", {"handle": 99, "offset": 0, "length": 1}, "bad-request"),
        ("read", b"", {"handle": handle, "offset": MiB, "length": 1}, "bad-request"),
        ("read", b"", {"handle": handle, "offset": 0, "length": 5 * MiB}, "bad-request"),
        ("read", b"", {"handle": handle, "offset": -1, "length": 1}, "bad-request"),
        ("read", b"", {"handle": handle, "length": 1}, "bad-request"),
        ("write", b"x" * 512, {"handle": handle, "offset": 0}, "bad-request"),
        ("write", b"x" * 4096, {"handle": handle, "offset": 512}, "bad-request"),
        ("write", b"x" * 4096, {"handle": handle, "offset": MiB}, "bad-request"),
        ("write", b"x" * 4096, {"handle": reading, "offset": 0}, "bad-request"),
        ("zero", b"", {"handle": reading, "offset": 0, "length": 4096}, "bad-request"),
        ("zero", b"", {"handle": handle, "offset": 0, "length": 100}, "bad-request"),
        (
            "digest",
            pairs((512, 512)),
            {"handle": handle, "chunk": 4096, "algorithm": "sha256"},
            "bad-request",
        ),
        (
            "digest",
            pairs((0, MiB)),
            {"handle": handle, "chunk": 5000, "algorithm": "sha256"},
            "bad-request",
        ),
        (
            "digest",
            pairs((0, MiB)),
            {"handle": handle, "chunk": 4096, "algorithm": "md5"},
            "bad-request",
        ),
    ):
        with pytest.raises(RawError) as caught:
            agent.call(verb, blob, **args)
        assert caught.value.code == code, (verb, args, caught.value)
    assert not Path("/dev/cvm-migrate-none").exists()
    assert loopdev.read_direct(device) == bytes(MiB)


@SOME_PYTHONS
def test_a_bad_sector_is_reported_with_its_place(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    require("root", "loop", "nbdkit", "nbdfuse")
    device = stack.enter_context(bad_disk(tmp_path, "error", "error=EIO", "error-rate=100%"))
    handle = agent.open(device, "write")["handle"]
    with pytest.raises(RawError) as caught:
        agent.call("read", handle=handle, offset=3 * MiB, length=MiB)
    header = caught.value.header
    assert (header["code"], header["errno"], header["device"]) == (
        "read",
        errno.EIO,
        str(device),
    )
    assert 3 * MiB <= header["offset"] < header["offset"] + header["length"] <= 4 * MiB
    with pytest.raises(RawError) as caught:
        fill(agent, handle, MiB, 2 * MiB)
    assert caught.value.code == "write"
    assert caught.value.header["errno"] == errno.EIO
    with pytest.raises(RawError) as caught:
        list(
            agent.frames(
                agent.ask(
                    "digest",
                    pairs((0, 8 * MiB)),
                    handle=handle,
                    chunk=MiB,
                    algorithm="sha256",
                )
            )
        )
    assert caught.value.code == "read"


@SOME_PYTHONS
def test_only_the_chunk_with_the_bad_sector_fails(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    require("root", "loop", "nbdkit", "nbdfuse")
    mapfile = tmp_path / "map"
    mapfile.write_text(
        "# Mapfile.\n0x00000000 ? 1\n0x00000000 0x00400000 +\n"
        "0x00400000 0x00001000 -\n0x00401000 0x003FF000 +\n"
    )
    device = stack.enter_context(bad_disk(tmp_path, "ddrescue", f"ddrescue-mapfile={mapfile}"))
    handle = agent.open(device)["handle"]
    with pytest.raises(RawError) as caught:
        agent.call("read", handle=handle, offset=3 * MiB, length=2 * MiB)
    header = caught.value.header
    assert header["offset"] <= 4 * MiB < header["offset"] + header["length"]
    good = agent.call("read", handle=handle, offset=0, length=4 * MiB).blob
    assert good == bytes(4 * MiB)
    good = agent.call("read", handle=handle, offset=4 * MiB + 4096, length=MiB).blob
    assert good == bytes(MiB)


class bad_disk:  # noqa: N801 - used as a context manager
    """A loop device of 8 MiB over an nbdkit filter."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self._file = folder / "faulty"
        self._command = [
            "nbdfuse",
            str(self._file),
            "--command",
            "nbdkit",
            "-s",
            f"--filter={name}",
            "memory",
            "8M",
            *options,
        ]

    def __enter__(self) -> Path:
        self._file.touch()
        self._process = subprocess.Popen(self._command)
        wait_until(lambda: self._file.stat().st_size == 8 * MiB)
        self._loop = loopdev.loop_device(self._file)
        return self._loop.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._loop.__exit__(None, None, None)
        loopdev.run("fusermount3", "-u", str(self._file), check=False)
        self._process.terminate()
        self._process.wait(30)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@SOME_PYTHONS
def test_a_file_system_without_direct_io_is_read_all_the_same(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    require("root")
    mount = stack.enter_context(loopdev.mounted(Path("ramfs"), tmp_path / "ram", kind="ramfs"))
    path = mount / "image"
    data = noise(MiB + 77)
    opened = agent.open(path, "write", create_size=len(data))
    assert opened["direct"] is False
    handle = opened["handle"]
    agent.call("write", data, handle=handle, offset=0)
    agent.call("zero", handle=handle, offset=10, length=8192)
    agent.call("flush", handle=handle)
    expected = data[:10] + bytes(8192) + data[8202:]
    assert path.read_bytes() == expected
    assert agent.call("read", handle=handle, offset=0, length=len(data)).blob == expected
    agent.call("close", handle=handle)


@SOME_PYTHONS
def test_a_full_file_system_is_told_apart(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    require("root", "loop", "mkfs.ext4")
    device = stack.enter_context(loopdev.loop_device(tmp_path / "disk", 8 * MiB))
    loopdev.make_file_system(device, "ext4")
    mount = stack.enter_context(loopdev.mounted(device, tmp_path / "mount"))
    handle = agent.open(mount / "image", "write", create_size=64 * MiB)["handle"]
    with pytest.raises(RawError) as caught:
        fill(agent, handle, 0, 64 * MiB)
    assert caught.value.code == "no-room"
    assert caught.value.header["errno"] == errno.ENOSPC
    agent.call("close", handle=handle)


@SOME_PYTHONS
def test_zeroing_gives_the_room_of_an_image_back(agent: RawAgent, tmp_path: Path) -> None:
    path = tmp_path / "image"
    handle = agent.open(path, "write", create_size=8 * MiB)["handle"]
    agent.call("write", noise(4 * MiB), handle=handle, offset=0)
    agent.call("flush", handle=handle)
    before = path.stat().st_blocks
    method = agent.call("zero", handle=handle, offset=0, length=8 * MiB).header["method"]
    assert method == "punch"
    assert path.stat().st_blocks < before


@SOME_PYTHONS
def test_a_digest_of_a_huge_sparse_disk_is_called_off_at_once_and_takes_little_memory(
    agent: RawAgent, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    size = 8 << 40
    handle = agent.open(path, "write", create_size=size)["handle"]
    number = agent.ask(
        "digest", pairs((0, size)), handle=handle, chunk=64 << 10, algorithm="sha256"
    )
    frames = agent.frames(number)
    for _ in range(2):
        assert next(frames).header["count"] > 0
    agent.cancel(number)
    with pytest.raises(RawError) as caught:
        list(frames)
    assert caught.value.code == "cancelled"
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 100 << 10


@SOME_PYTHONS
def test_a_handle_closed_while_it_is_read_does_not_become_another_file(
    agent: RawAgent, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    size = 1 << 30
    handle = agent.open(path, "write", create_size=size)["handle"]
    number = agent.ask("digest", pairs((0, size)), handle=handle, chunk=MiB, algorithm="sha256")
    frames = agent.frames(number)
    next(frames)
    agent.call("close", handle=handle)
    other = tmp_path / "other"
    other.write_bytes(noise(MiB))
    agent.open(other)
    zero = hashlib.sha256(bytes(MiB)).digest()
    seen: set[bytes] = set()
    with pytest.raises(RawError, match=r"closed|no open handle"):
        seen.update(
            frame.blob[at : at + 32] for frame in frames for at in range(0, len(frame.blob), 32)
        )
    assert seen <= {zero}
