"""A state directory without room: every step says so, can be repeated after room was made, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import ImageFile, Migration
from cvm_migrate.errors import NoRoomError
from rig import loopdev

MiB = 1 << 20
_STEPS = ("prepare", "full_sync", "delta_sync", "cutover", "finish")


def _fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as opened:
        while True:
            opened.write(bytes(512))


def test_every_step_can_be_repeated_after_room_was_made(tmp_path: Path) -> None:
    require("root")
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    source.write_bytes(os.urandom(4 * MiB))
    with loopdev.mounted(Path("tmpfs"), tmp_path / "state", "size=64k", kind="tmpfs") as state:
        with Migration(ImageFile(source), ImageFile(target), state=state) as migration:
            for step in _STEPS:
                _fill(state / "ballast")
                with pytest.raises(NoRoomError, match="no room for the state"):
                    getattr(migration, step)()
                (state / "ballast").unlink()
                getattr(migration, step)()
            report = migration.report()
        with Migration(ImageFile(source), ImageFile(target), state=state) as again:
            status = again.status()

    assert report.proven
    assert status.state == "finished"
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("option", ["nr_inodes=3", "size=4k"])
def test_no_room_for_a_first_file_is_named_as_such(option: str, tmp_path: Path) -> None:
    require("root")
    source = tmp_path / "source.img"
    source.write_bytes(bytes(MiB))
    with (
        loopdev.mounted(Path("tmpfs"), tmp_path / "state", option, kind="tmpfs") as state,
        pytest.raises(NoRoomError, match="no room for the state"),
    ):
        Migration(ImageFile(source), ImageFile(tmp_path / "target.img"), state=state)
