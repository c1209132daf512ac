"""The source by yet another name is no target: a loop device over it or over its file, a linked folder."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import ImageFile, LocalHost, Migration
from cvm_migrate.errors import UnsafeTargetError
from rig import loopdev

MiB = 1 << 20
_SIZE = 32 * MiB
_End = LocalHost | ImageFile


@pytest.fixture
def source(tmp_path: Path) -> Generator[Path]:
    require("loop", "mkfs.ext4")
    with loopdev.loop_device(tmp_path / "source.img", _SIZE) as device:
        loopdev.make_file_system(device, "ext4")
        yield device


def _refused(source: _End, target: _End, device: Path) -> None:
    """Both check() and prepare() refuse, and nothing is written."""
    before = loopdev.read_direct(device)
    with Migration(source, target) as migration:
        assert not migration.check().possible
        with pytest.raises(UnsafeTargetError):
            migration.prepare()
    assert loopdev.read_direct(device) == before


def test_a_loop_device_over_the_source_is_no_target(source: Path) -> None:
    with loopdev.loop_device(source) as over:
        _refused(LocalHost(disks=[source]), LocalHost(disks=[over]), source)
        _refused(LocalHost(disks=[over]), LocalHost(disks=[source]), source)


def test_a_loop_device_over_a_node_of_the_source_is_no_target(
    source: Path, tmp_path: Path
) -> None:
    node = tmp_path / "node"
    os.mknod(node, 0o060600, source.stat().st_rdev)
    _refused(LocalHost(disks=[source]), LocalHost(disks=[node]), source)
    with loopdev.loop_device(node) as over:
        _refused(LocalHost(disks=[source]), LocalHost(disks=[over]), source)


def test_a_loop_device_over_another_name_of_the_sources_file_is_no_target(
    source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.img"
    other.hardlink_to(tmp_path / "source.img")
    with loopdev.loop_device(other) as over:
        _refused(LocalHost(disks=[source]), LocalHost(disks=[over]), source)


def test_the_loop_device_over_an_image_is_no_target_for_any_name_of_it(
    source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.img"
    other.hardlink_to(tmp_path / "source.img")
    _refused(ImageFile(other), LocalHost(disks=[source]), source)


def test_an_image_in_a_folder_that_is_a_link_to_the_source_is_no_target(
    source: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    with loopdev.mounted(source, tmp_path / "mount") as mount:
        link.symlink_to(mount)
        with Migration(LocalHost(disks=[source]), ImageFile(link / "new.img")) as migration:
            assert not migration.check().possible
            with pytest.raises(UnsafeTargetError, match="lies on the source"):
                migration.prepare()
        assert not (mount / "new.img").exists()
