"""What must not be is refused with an error that says what to do, before a byte of the target is written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import ImageFile, LocalHost, Migration, Options, Severity
from cvm_migrate.errors import (
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    StepOrderError,
    UnsafeTargetError,
)
from rig import loopdev

MiB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 16 MiB with random content."""
    require("loop")
    file = tmp_path / "source.img"
    file.write_bytes(os.urandom(16 * MiB))
    with loopdev.loop_device(file) as device:
        yield device


def _refused(
    source: Path, target: Path, kind: type[Exception], *, untouched: Path | None = None
) -> str:
    before = None if untouched is None else untouched.read_bytes()
    with Migration(LocalHost(disks=[source]), LocalHost(disks=[target])) as migration:
        report = migration.check()
        with pytest.raises(kind) as refusal:
            migration.prepare()
        assert migration.status().state == "new"

    if untouched is not None:
        assert untouched.read_bytes() == before
    assert not report.possible, report.to_text()
    text = str(refusal.value)
    assert refusal.value.args
    return text


def test_a_mounted_target_is_refused(source: Path, tmp_path: Path) -> None:
    """A target with a mounted file system is named with its mount point and left alone."""
    require("mkfs.ext4")
    with loopdev.loop_device(tmp_path / "target.img", 16 * MiB) as target:
        loopdev.make_file_system(target, "ext4")
        with loopdev.mounted(target, tmp_path / "mount", "ro") as mount:
            text = _refused(source, target, UnsafeTargetError, untouched=target)

    assert str(mount) in text


def test_a_target_that_is_too_small_is_refused(source: Path, tmp_path: Path) -> None:
    """A smaller target is refused with both sizes."""
    with loopdev.loop_device(tmp_path / "target.img", 16 * MiB - 4096) as target:
        text = _refused(source, target, UnsafeTargetError, untouched=target)

    assert str(16 * MiB) in text
    assert str(16 * MiB - 4096) in text


def test_the_source_is_no_target(source: Path) -> None:
    """The same disk on both sides is refused."""
    _refused(source, source, UnsafeTargetError, untouched=source)


def test_a_partition_is_no_source(source: Path, tmp_path: Path) -> None:
    """A partition is refused by check() and prepare() with the name of its disk: its table would be missing."""
    require("partx")
    with loopdev.loop_device(tmp_path / "target.img", 16 * MiB) as target:
        subprocess.run(["addpart", str(source), "1", "2048", "16384"], check=True)
        try:
            text = _refused(Path(f"{source}p1"), target, InvalidRequestError, untouched=target)
        finally:
            subprocess.run(["delpart", str(source), "1"], check=True)

    assert f"{source}p1 is a partition of {source}" in text


def test_another_name_of_the_source_is_no_target(source: Path, tmp_path: Path) -> None:
    """A link that leads to the source is the source."""
    link = tmp_path / "link"
    link.symlink_to(source)
    _refused(source, link, UnsafeTargetError, untouched=source)


def test_a_second_device_over_the_sources_file_is_no_target(source: Path, tmp_path: Path) -> None:
    """Two loop devices over one file are one disk."""
    with loopdev.loop_device(tmp_path / "source.img") as other:
        _refused(source, other, UnsafeTargetError, untouched=source)


def test_a_target_on_the_source_is_refused(tmp_path: Path) -> None:
    """An image file in a file system of the source would be written to the source."""
    require("loop", "mkfs.ext4")
    with loopdev.loop_device(tmp_path / "source.img", 32 * MiB) as device:
        loopdev.make_file_system(device, "ext4")
        with loopdev.mounted(device, tmp_path / "mount") as mount:
            with Migration(LocalHost(disks=[device]), ImageFile(mount / "copy.img")) as migration:
                assert not migration.check().possible
                with pytest.raises(UnsafeTargetError):
                    migration.prepare()

            assert not (mount / "copy.img").exists()


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_disk_that_does_not_exist_is_named(role: str, source: Path) -> None:
    """A missing disk is a NotFoundError with its path, whichever side it is on."""
    missing = Path("/dev/no-such-disk")
    pair = (missing, source) if role == "source" else (source, missing)

    text = _refused(*pair, NotFoundError, untouched=source)
    assert str(missing) in text
    assert "lsblk" in text
    assert "its disks are: /dev/" in text


def test_an_image_that_does_not_exist_is_looked_for_at_its_path(
    source: Path, tmp_path: Path
) -> None:
    """Nobody is sent to lsblk for a file; check() and prepare() say the same."""
    missing = tmp_path / "missing.img"
    with Migration(ImageFile(missing), LocalHost(disks=[source])) as migration:
        report = migration.check()
        with pytest.raises(NotFoundError, match="Look at the path") as caught:
            migration.prepare()

    assert str(missing) in str(caught.value)
    assert any("Look at the path" in finding.remedy for finding in report.blockers)


@pytest.mark.parametrize(
    ("size", "sector", "advice"),
    [
        (8 * MiB + 100, 512, "Look whether the image is whole and raw"),
        (8 * MiB + 512, 4096, "Use a target with logical blocks of 512 bytes"),
    ],
)
def test_an_image_whose_end_the_target_cannot_hold_is_refused(
    size: int, sector: int, advice: str, tmp_path: Path
) -> None:
    """The message has both sizes and the command that mends the image, which then is copied."""
    require("loop")
    image = tmp_path / "image.raw"
    image.write_bytes(os.urandom(size))
    with loopdev.loop_device(tmp_path / "target.img", 16 * MiB, sector=sector) as target:
        before = target.read_bytes()
        with Migration(ImageFile(image), LocalHost(disks=[target])) as migration:
            report = migration.check()
            with pytest.raises(UnsafeTargetError) as caught:
                migration.prepare()
        assert target.read_bytes() == before
        text = str(caught.value)
        assert f"{size} bytes are {size // sector} blocks of {sector} bytes" in text
        assert advice in text
        assert any(advice in finding.remedy for finding in report.blockers)

        command = next(part for part in text.split("; ") if "truncate -s" in part)
        subprocess.run(
            command[command.index("truncate") :].partition(" appends")[0].split(), check=True
        )
        assert image.stat().st_size == -(-size // sector) * sector
        with Migration(ImageFile(image), LocalHost(disks=[target])) as migration:
            assert migration.run().proven
        assert target.read_bytes()[: image.stat().st_size] == image.read_bytes()


def test_an_image_of_an_odd_size_is_no_source_for_an_image_either(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(MiB + 1))
    with Migration(ImageFile(tmp_path / "a"), ImageFile(tmp_path / "b")) as migration:
        report = migration.check()
        with pytest.raises(UnsafeTargetError, match="truncate"):
            migration.prepare()

    assert not report.possible
    assert not (tmp_path / "b").exists()


def test_without_rights_it_is_said(source: Path, tmp_path: Path) -> None:
    """An agent that is not root cannot open disks, and the error says so."""
    sh = tmp_path / "python"
    sh.write_text(
        '#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups /usr/bin/python3 "$@"\n'
    )
    sh.chmod(0o755)
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        if parent != Path("/tmp"):
            parent.chmod(0o755)
    with (
        loopdev.loop_device(tmp_path / "target.img", 16 * MiB) as target,
        Migration(
            LocalHost(disks=[source], python=str(sh)), LocalHost(disks=[target])
        ) as migration,
    ):
        report = migration.check()
        with pytest.raises(PermissionDeniedError, match="sudo=True"):
            migration.prepare()

    assert any("not root" in finding.title for finding in report.findings)


def test_as_many_targets_as_sources(source: Path, tmp_path: Path) -> None:
    """Two disks cannot go to one."""
    with (
        loopdev.loop_device(tmp_path / "other.img", 16 * MiB) as other,
        loopdev.loop_device(tmp_path / "target.img", 16 * MiB) as target,
        Migration(LocalHost(disks=[source, other]), LocalHost(disks=[target])) as migration,
    ):
        assert not migration.check().possible
        with pytest.raises(InvalidRequestError, match="2 disks cannot go to 1"):
            migration.prepare()


def test_check_writes_nothing(source: Path, tmp_path: Path) -> None:
    """A check leaves source, target and image folder as they were, and says what it found."""
    before = source.read_bytes()
    image = tmp_path / "images" / "copy.img"
    image.parent.mkdir()
    with Migration(LocalHost(disks=[source]), ImageFile(image)) as migration:
        report = migration.check()

    assert report.possible
    assert report.size == 16 * MiB
    assert report.estimated_seconds is not None
    assert report.estimated_seconds > 0
    assert source.read_bytes() == before
    assert not image.exists()
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=list(Severity).index)


@pytest.mark.parametrize(
    ("step", "needs"),
    [
        ("full_sync", "prepare"),
        ("delta_sync", "prepare"),
        ("cutover", "prepare"),
        ("finish", "prepare"),
    ],
)
def test_steps_out_of_order_name_the_step_to_call(step: str, needs: str, tmp_path: Path) -> None:
    """A step that needs another one says which."""
    with Migration(ImageFile(tmp_path / "a"), ImageFile(tmp_path / "b")) as migration:
        with pytest.raises(StepOrderError, match=needs):
            getattr(migration, step)()

        assert migration.status().next_steps == ("check", "prepare", "abort")


def test_one_process_works_with_a_state_directory(tmp_path: Path) -> None:
    """A second Migration with the same state directory is refused as long as the first is open."""
    ends = ImageFile(tmp_path / "a"), ImageFile(tmp_path / "b")
    with (
        Migration(*ends, state=tmp_path / "state"),
        pytest.raises(InvalidRequestError, match="another process"),
    ):
        Migration(*ends, state=tmp_path / "state")
    with Migration(*ends, state=tmp_path / "state") as migration:
        assert migration.status().state == "new"


def test_another_disk_is_not_taken_for_the_one_it_began_with(tmp_path: Path) -> None:
    """A state directory refuses a source or a target other than its own, before anything is written."""
    for name in ("a", "other"):
        (tmp_path / name).write_bytes(os.urandom(8 * MiB))
    with Migration(
        ImageFile(tmp_path / "a"), ImageFile(tmp_path / "b"), state=tmp_path / "state"
    ) as migration:
        migration.prepare()
        migration.full_sync()
    copy = (tmp_path / "b").read_bytes()
    with (
        Migration(
            ImageFile(tmp_path / "other"), ImageFile(tmp_path / "b"), state=tmp_path / "state"
        ) as migration,
        pytest.raises(InvalidRequestError, match="began with"),
    ):
        migration.delta_sync()
    (tmp_path / "c").write_bytes(bytes(8 * MiB))
    with (
        Migration(
            ImageFile(tmp_path / "a"), ImageFile(tmp_path / "c"), state=tmp_path / "state"
        ) as migration,
        pytest.raises(InvalidRequestError, match="began with"),
    ):
        migration.delta_sync()

    assert (tmp_path / "b").read_bytes() == copy
    assert (tmp_path / "c").read_bytes() == bytes(8 * MiB)


def test_options_out_of_range_are_refused() -> None:
    """Numbers that make no sense are refused when the options are made."""
    with pytest.raises(InvalidRequestError, match="max_downtime"):
        Options(max_downtime=-1)
    with pytest.raises(InvalidRequestError, match="chunk"):
        Options(chunk=1000)
