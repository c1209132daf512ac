"""What a comparison within the freeze is predicted to take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import LocalHost, Migration, Options
from rig import loopdev
from rig.disks import mounted_pair
from rig.writers import writing

MiB = 1 << 20


@pytest.mark.slow
def test_tiny_passes_do_not_make_the_comparison_in_the_freeze_look_slow(tmp_path: Path) -> None:
    """A delta of some hundred KiB measures round trips: at its rate, to compare the disk would take a minute."""
    require("loop", "mkfs.ext4")
    found: list[int | None] = []
    with (
        mounted_pair(tmp_path, size=512 * MiB) as pair,
        writing(pair.mount, pause=0.02),
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            options=Options(prove="frozen", max_downtime=15, freeze_limit=30),
        ) as migration,
    ):
        (pair.mount / "ballast").write_bytes(os.urandom(16 * MiB))
        report = migration.run(
            on_proven=lambda: found.append(loopdev.first_difference(pair.source, pair.target))
        )

    assert found == [None]
    assert report.cutover is not None
    assert report.cutover.proven["frozen"] > 256 * MiB
