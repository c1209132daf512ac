"""What a forecast is made of, with hosts in memory."""

from __future__ import annotations

from cvm_migrate import Migration, Options, SyncResult, events
from rig.memory_hosts import World

KiB = 1 << 10
_SIZE = 512 * KiB


def _after_a_delta(*, uncertain: bool) -> SyncResult:
    """A delta pass whose tracker may lose events after it was collected, and before the forecast."""
    world = World(1, sizes=[_SIZE], faults=0, tracked=True)

    def observe(event: events.Event) -> None:
        if uncertain and isinstance(event, events.PassStarted) and event.kind == "delta":
            assert world.tracker is not None
            world.tracker.doubtful = {0}

    with Migration(
        world.endpoint("source"),
        world.endpoint("target"),
        observer=observe,
        options=Options(prove="sent", chunk=64 * KiB),
    ) as migration:
        migration.prepare()
        migration.full_sync()
        first = migration.delta_sync()
        # The next one compares, and the one after it knows how long that takes.
        return migration.delta_sync() if uncertain else first


def test_a_tracker_that_is_certain_is_believed() -> None:
    assert _after_a_delta(uncertain=False).dirty_bytes is not None


def test_a_tracker_that_is_not_certain_makes_what_is_dirty_unknown() -> None:
    """Its number would be too low: only a comparison can tell."""
    result = _after_a_delta(uncertain=True)

    assert result.compared == _SIZE
    assert result.dirty_bytes is None
    # The comparison of the whole disk is in the forecast instead.
    assert result.predicted_downtime is not None
    assert "comparison" in result.reason
