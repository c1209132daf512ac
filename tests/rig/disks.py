"""Pairs of loop devices for a migration, and whether the copy is sound."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Generator
from pathlib import Path

import attrs

from rig import loopdev

MiB = 1 << 20

# What says that a file system is sound, after its journal has been replayed by a mount.
CHECKS = {
    "ext4": ("e2fsck", "-f", "-n"),
    "xfs": ("xfs_repair", "-n"),
    "btrfs": ("btrfs", "check", "--readonly"),
}
# btrfs and XFS refuse to be small.
SIZES = {"ext4": 96 * MiB, "xfs": 320 * MiB, "btrfs": 160 * MiB}


@attrs.frozen
class Pair:
    """A source with a mounted file system, and a target."""

    source: Path
    target: Path
    mount: Path
    kind: str
    folder: Path


@contextlib.contextmanager
def mounted_pair(
    folder: Path, kind: str = "ext4", *, size: int | None = None, target_size: int | None = None
) -> Generator[Pair]:
    """Two loop devices over files in *folder*, the first with a mounted file system."""
    size = SIZES[kind] if size is None else size
    with (
        loopdev.loop_device(folder / "source.img", size) as source,
        loopdev.loop_device(folder / "target.img", target_size or size) as target,
    ):
        loopdev.make_file_system(source, kind)
        with loopdev.mounted(source, folder / "mount") as mount:
            yield Pair(source, target, mount, kind, folder)


def check_copy(pair: Pair) -> tuple[int, str]:
    """Mount the copy, so that its journal is replayed, unmount and check it: exit code and what was said."""
    # XFS refuses to mount a second file system with the same UUID.
    options = ("nouuid",) if pair.kind == "xfs" else ()
    with loopdev.mounted(pair.target, pair.folder / "copy", *options):
        pass
    return check(pair.kind, pair.target)


def check(kind: str, device: Path) -> tuple[int, str]:
    """Check a file system that is not mounted: exit code and what was said."""
    done = subprocess.run(
        [*CHECKS[kind], str(device)], check=False, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr
