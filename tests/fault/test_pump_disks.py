"""Disks that fail are named, with the place."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate.errors import NoRoomError, SourceReadError, TargetWriteError
from cvm_migrate.model import ExtentMap
from rig import loopdev, pumps
from rig.pumps import MiB

_SIZE = 4 * MiB


@contextlib.contextmanager
def _bad_file(folder: Path, *options: str) -> Generator[Path]:
    """A file of which parts cannot be read or written: nbdkit's error filter behind nbdfuse."""
    require("root", "loop", "nbdkit", "nbdfuse", "fuse")
    mount = folder / "bad"
    mount.mkdir()
    # nbdfuse makes one file out of a NBD server that it starts itself.
    process = subprocess.Popen(
        [
            "nbdfuse",
            str(mount / "disk"),
            "--command",
            "nbdkit",
            "--single",
            "--exit-with-parent",
            *options,
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        pumps.wait_until(
            lambda: (
                process.poll() is not None
                or ((mount / "disk").exists() and (mount / "disk").stat().st_size > 0)
            )
        )
        assert process.poll() is None, "nbdfuse has ended"
        yield mount / "disk"
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mount)], check=False, capture_output=True)
        process.terminate()
        process.wait(20)


def test_a_range_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pumps.fill(tmp_path / "good.img", _SIZE)
    with (
        _bad_file(
            tmp_path,
            "--filter=error",
            "file",
            str(tmp_path / "good.img"),
            "error-pread=EIO",
            "error-pread-rate=100%",
            f"error-file={tmp_path / 'now'}",
        ) as bad,
        loopdev.loop_device(tmp_path / "target.img", _SIZE) as target,
        loopdev.loop_device(bad) as source,
        pumps.pair(source, target) as pair,
    ):
        pair.connect()
        pair.stream(ExtentMap([(0, MiB)]))
        (tmp_path / "now").touch()
        with pytest.raises(SourceReadError) as caught:
            pair.stream(ExtentMap([(2 * MiB, MiB)]))

        assert caught.value.device == str(source)
        assert caught.value.offset is not None
        assert caught.value.length is not None
        assert (
            2 * MiB <= caught.value.offset < caught.value.offset + caught.value.length <= 3 * MiB
        )
        assert caught.value.errno == 5

        # When the disk reads again, so does the pump.
        (tmp_path / "now").unlink()
        assert pair.stream().acked == _SIZE
        assert not pair.read_back().wrong


def test_a_range_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pumps.fill(tmp_path / "good.img", _SIZE, kinds="n")
    (tmp_path / "bad.img").write_bytes(b"\0" * _SIZE)
    with (
        _bad_file(
            tmp_path,
            "--filter=error",
            "file",
            str(tmp_path / "bad.img"),
            "error-pwrite=EIO",
            "error-pwrite-rate=100%",
            f"error-file={tmp_path / 'now'}",
        ) as bad,
        loopdev.loop_device(tmp_path / "good.img") as source,
        loopdev.loop_device(bad) as target,
        pumps.pair(source, target) as pair,
    ):
        pair.connect()
        (tmp_path / "now").touch()
        with pytest.raises(TargetWriteError) as caught:
            pair.stream(ExtentMap([(MiB, MiB)]))

        assert caught.value.device == str(target)
        assert caught.value.offset is not None
        assert MiB <= caught.value.offset < 2 * MiB
        assert pair.received("bytes") == 0

        (tmp_path / "now").unlink()
        assert pair.stream().acked == _SIZE
        assert not pair.read_back().wrong


def test_a_full_file_system_is_named_and_the_stream_goes_on_after_room_was_made(
    tmp_path: Path,
) -> None:
    require("root", "loop", "mkfs.ext4")
    pumps.fill(tmp_path / "source.img", 24 * MiB, kinds="n")
    with (
        loopdev.loop_device(tmp_path / "small.img", 32 * MiB) as small,
        contextlib.ExitStack() as stack,
    ):
        loopdev.make_file_system(small, "ext4")
        at = stack.enter_context(loopdev.mounted(small, tmp_path / "mnt"))
        ballast = at / "ballast"
        ballast.write_bytes(os.urandom(8 * MiB))
        with pumps.pair(tmp_path / "source.img", at / "copy.img", create_size=24 * MiB) as pair:
            pair.connect()
            with pytest.raises(NoRoomError) as caught:
                pair.stream()
            assert caught.value.device == str(at / "copy.img")
            assert caught.value.errno == 28
            assert caught.value.offset is not None

            ballast.unlink()
            assert pair.stream().acked == 24 * MiB
            assert pair.read_back().bytes == 24 * MiB
        assert (at / "copy.img").read_bytes() == (tmp_path / "source.img").read_bytes()


def test_a_disk_that_became_another_is_not_opened(tmp_path: Path) -> None:
    require("root", "loop")
    pumps.fill(tmp_path / "source.img", MiB)
    with pumps.pair(tmp_path / "source.img", tmp_path / "copy.img", create_size=MiB) as pair:
        (tmp_path / "source.img").rename(tmp_path / "old.img")
        pumps.fill(tmp_path / "source.img", MiB, seed=3)
        with pytest.raises(Exception, match="another disk") as caught:
            pair.connect()

        assert type(caught.value).__name__ == "UnsafeTargetError"
