"""The limits of a migration are changed while it runs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cvm_migrate import ImageFile, Migration, Options, events
from cvm_migrate.errors import InvalidRequestError

MiB = 1 << 20


def test_limits_change_while_a_pass_runs_and_hold_for_those_that_follow(tmp_path: Path) -> None:
    """A pass that would take minutes ends soon after its limit is lifted; one that is set then slows the next."""
    source = tmp_path / "source.img"
    source.write_bytes(os.urandom(8 * MiB))
    lifted = threading.Event()

    def observe(event: events.Event) -> None:
        if isinstance(event, events.PassStarted) and not lifted.is_set():
            lifted.set()
            threading.Timer(
                1.0, migration.set_limits, kwargs={"bandwidth": None, "read_limit": None}
            ).start()

    with Migration(
        ImageFile(source),
        ImageFile(tmp_path / "target.img"),
        observer=observe,
        options=Options(bandwidth=64 << 10, codec="raw", chunk=64 << 10, prove="sent"),
    ) as migration:
        migration.prepare()
        began = time.monotonic()
        # Two minutes, if nothing happened.
        migration.full_sync()
        took = time.monotonic() - began
        with source.open("r+b") as file:
            file.write(os.urandom(2 * MiB))
        migration.set_limits(bandwidth=MiB, read_limit=None)
        began = time.monotonic()
        migration.delta_sync()
        limited = time.monotonic() - began
        migration.cutover()

    assert took < 60
    # A second's worth may be in store.
    assert limited >= 0.9
    assert (tmp_path / "target.img").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("value", [0, -1, "50M", 1.5e9, True])
def test_a_limit_that_makes_no_sense_changes_nothing(value: Any, tmp_path: Path) -> None:
    (tmp_path / "source.img").write_bytes(bytes(MiB))
    with Migration(
        ImageFile(tmp_path / "source.img"), ImageFile(tmp_path / "target.img")
    ) as migration:
        with pytest.raises(InvalidRequestError, match="bandwidth"):
            migration.set_limits(bandwidth=value, read_limit=None)
        with pytest.raises(InvalidRequestError, match="read_limit"):
            migration.set_limits(bandwidth=None, read_limit=value)
        assert migration.run().proven
