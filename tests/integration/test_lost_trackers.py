"""Trackers that are lost for good while the source is frozen: compared once, never trusted, replaced afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from capabilities import require
from cvm_migrate import LocalHost, Migration, Options, events
from rig import loopdev, processes
from rig.disks import mounted_pair
from rig.writers import writing

MiB = 1 << 20


def test_a_tracker_lost_just_before_the_freeze_costs_one_comparison_and_is_replaced_later(
    tmp_path: Path,
) -> None:
    """The frozen disk is compared once, not in every collection; what follows is tracked again, and identical."""
    require("loop", "tracefs", "mkfs.ext4")
    size = 64 * MiB
    found: list[int | None] = []
    quiesced: list[bool] = []
    killed: list[int] = []

    def observe(event: events.Event) -> None:
        # The last pass before the freeze.
        if isinstance(event, events.PassEnded) and quiesced and not killed:
            agent = migration.agents[0]
            killed.extend(processes.children(getattr(agent, "pid", 0), "tracer"))
            for pid in killed:
                processes.kill(pid)

    def look() -> None:
        found.append(loopdev.first_difference(pair.source, pair.target))

    with (
        mounted_pair(tmp_path, size=size) as pair,
        writing(pair.mount),
        Migration(
            LocalHost(disks=[pair.source]),
            LocalHost(disks=[pair.target]),
            observer=observe,
            options=Options(rungs=("tracefs",), max_downtime=20),
        ) as migration,
    ):
        migration.prepare()
        migration.full_sync()
        migration.cutover(on_quiesced=lambda: quiesced.append(True), on_proven=look)
        final = migration.report().passes[-1]
        (pair.mount / "unseen").write_bytes(os.urandom(MiB))
        for _ in range(2):
            migration.delta_sync()
        again = migration.delta_sync()
        migration.cutover(on_proven=look)

    assert killed
    assert found == [None, None]
    assert not final.disks[0].certain
    assert final.compared <= size
    assert again.disks[0].certain, again.disks[0].reason
