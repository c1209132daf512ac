"""How a migration onto an instance ends: which snapshots remain, and what calling the end off does."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

import rig.cloud
from capabilities import require
from cvm_migrate import CvmTarget, ImageFile, Migration, Severity, parse_endpoint
from cvm_migrate.cloud import CvmInstance
from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import CancelledError
from cvm_migrate.fleet import Place
from cvm_migrate.migration import parse_cvm
from cvm_migrate.testing import SimulatedInstance, TencentCloud
from cvm_migrate.units import MiB
from rig.cloud import QUICK, cloud, instance


@pytest.fixture
def simulated() -> Iterator[TencentCloud]:
    with cloud() as running:
        yield running


@pytest.fixture
def slow() -> Iterator[TencentCloud]:
    """Operations last so long that there is a wait in each."""
    require("root", "loop", "namespaces", "sshd", "sshpass")
    with TencentCloud(operation_seconds=0.6) as running:
        yield running


def add(simulated: TencentCloud) -> SimulatedInstance:
    return rig.cloud.add(simulated, system_disk=4 * MiB, data_disks=[2 * MiB])


def source(folder: Path, *sizes: int) -> ImageFile:
    paths: list[str] = []
    for number, size in enumerate(sizes):
        path = folder / f"source{number}.img"
        path.write_bytes(os.urandom(size))
        paths.append(str(path))
    return ImageFile(paths)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def snapshots(simulated: TencentCloud, made: SimulatedInstance) -> set[str]:
    client = instance(simulated, made).client
    return {
        str(snapshot["SnapshotId"])
        for disk in made.disks
        for snapshot in client.describe_snapshots({"disk-id": disk.disk_id}, 0)["SnapshotSet"]
    }


def waits(
    simulated: TencentCloud, made: SimulatedInstance, at_each: Callable[[], None]
) -> CvmInstance:
    """Return the instance; whatever waits for it calls something first."""

    def sleep(seconds: float) -> None:
        at_each()
        time.sleep(seconds)

    return instance(simulated, made, policy=attrs.evolve(QUICK, sleep=sleep))


# Snapshots


def begun(
    simulated: TencentCloud,
    made: SimulatedInstance,
    notes: dict[str, str],
    *,
    drop_snapshots: bool,
) -> CvmTarget:
    target = CvmTarget(instance(simulated, made), drop_snapshots=drop_snapshots)
    target.begin("target", notes)
    return target


def test_snapshots_that_are_not_to_be_dropped_are_named_with_their_last_day(
    simulated: TencentCloud,
) -> None:
    made, notes = add(simulated), dict[str, str]()
    target = begun(simulated, made, notes, drop_snapshots=False)

    target.finish("target", notes)

    (left,) = target.left
    kept = snapshots(simulated, made)
    assert len(kept) == 2
    assert all(name in left.title for name in kept)
    assert left.severity is Severity.INFO
    assert "delete themselves on 2" in left.evidence
    assert left.remedy


def test_snapshots_are_dropped_once_the_copy_runs_and_those_of_others_stay(
    simulated: TencentCloud,
) -> None:
    made, notes = add(simulated), dict[str, str]()
    instance(simulated, made).snapshots.create("other")
    others = snapshots(simulated, made)
    target = begun(simulated, made, notes, drop_snapshots=True)
    assert len(snapshots(simulated, made)) == 4

    target.finish("target", notes)

    assert target.left == ()
    assert snapshots(simulated, made) == others
    actions = [request.action for request in simulated.requests]
    assert actions.index("StartInstances") < actions.index("DeleteSnapshots")


def test_snapshots_that_cannot_be_deleted_are_told_and_the_migration_has_ended_all_the_same(
    simulated: TencentCloud,
) -> None:
    made, notes = add(simulated), dict[str, str]()
    target = begun(simulated, made, notes, drop_snapshots=True)
    simulated.fail("unauthorized", action="DeleteSnapshots", nth=2, times=None)

    target.finish("target", notes)

    (left,) = target.left
    (kept,) = snapshots(simulated, made)
    assert kept in left.title
    assert left.severity is Severity.WARNING
    assert "delete themselves on 2" in left.evidence
    assert "DeleteSnapshots" in left.evidence
    assert made.state == "RUNNING"


def test_snapshots_of_an_instance_that_is_not_well_are_kept(simulated: TencentCloud) -> None:
    made, notes = add(simulated), dict[str, str]()
    begun(simulated, made, notes, drop_snapshots=False).finish("target", notes)
    made.set_restricted("EXPIRED")
    target = CvmTarget(instance(simulated, made), drop_snapshots=True)

    target.finish("target", notes)

    assert len(snapshots(simulated, made)) == 2
    assert "EXPIRED" in target.left[0].evidence
    assert target.left[0].severity is Severity.WARNING


def test_a_finish_that_fails_drops_no_snapshots(simulated: TencentCloud) -> None:
    made, notes = add(simulated), dict[str, str]()
    target = begun(simulated, made, notes, drop_snapshots=True)
    simulated.fail("unauthorized", action="ExitRescueMode", times=None)

    with pytest.raises(Exception, match="ExitRescueMode"):
        target.finish("target", notes)

    assert len(snapshots(simulated, made)) == 2
    simulated.heal()
    target.finish("target", notes)
    assert snapshots(simulated, made) == set()


def test_snapshots_that_a_disk_was_put_back_from_remain_and_are_named(
    simulated: TencentCloud,
) -> None:
    made, notes = add(simulated), dict[str, str]()
    target = begun(simulated, made, notes, drop_snapshots=True)
    notes["cvm.written"] = "perhaps"

    target.abort("target", notes)

    kept = snapshots(simulated, made)
    assert len(kept) == 2
    assert all(name in target.left[0].title for name in kept)
    assert made.state == "RUNNING"


def test_dropping_that_is_called_off_goes_on_with_the_next_finish(simulated: TencentCloud) -> None:
    made, notes = add(simulated), dict[str, str]()
    token = CancelToken()
    calls: list[str] = []

    def at_each() -> None:
        # The first deletion is told to come again later.
        if any(request.action == "DeleteSnapshots" for request in simulated.requests):
            calls.append("wait")
            token.cancel()

    target = CvmTarget(waits(simulated, made, at_each), drop_snapshots=True)
    target.expect(ImageFile(["/a", "/b"]), cancel=token)
    target.begin("target", notes)
    simulated.fail("throttle", action="DeleteSnapshots", times=1)

    with pytest.raises(CancelledError, match="runs the copy") as caught:
        target.finish("target", notes)
    assert calls
    assert "finish() again" in str(caught.value.remedy)
    assert len(snapshots(simulated, made)) == 2
    again = CvmTarget(instance(simulated, made), drop_snapshots=True)
    again.finish("target", notes)

    assert snapshots(simulated, made) == set()
    assert made.state == "RUNNING"


def test_texts_and_plans_can_say_that_snapshots_are_dropped(simulated: TencentCloud) -> None:
    made = add(simulated)
    text = f"cvm:{made.region}/{made.instance_id}"
    places = (
        parse_endpoint(f"{text}?drop_snapshots=yes", more={"cvm": parse_cvm}),
        Place(text, {"drop_snapshots": True}).endpoint(),
        Place(text, {"drop_snapshots": False}).endpoint(),
        Place(text).endpoint(),
    )
    made_of = [place.drop_snapshots for place in places if isinstance(place, CvmTarget)]

    assert made_of == [True, True, False, False]


def test_the_report_says_which_snapshots_remain(slow: TencentCloud, tmp_path: Path) -> None:
    made = slow.add_instance(system_disk=4 * MiB)
    target = CvmTarget(instance(slow, made), data_port=free_port())

    with Migration(source(tmp_path, 4 * MiB), target, state=tmp_path / "state") as migration:
        report = migration.run()

    (kept,) = snapshots(slow, made)
    assert [finding.title for finding in report.findings if kept in finding.title]
    assert kept in report.to_text()
    with Migration(source(tmp_path, 4 * MiB), target, state=tmp_path / "state") as another:
        assert kept in another.report().to_text()


# Called off


@pytest.mark.slow
@pytest.mark.parametrize("last", ["finish", "abort"])
def test_the_end_of_a_migration_can_be_called_off_and_called_again(
    slow: TencentCloud, tmp_path: Path, last: str
) -> None:
    """The same object takes the same call again, which does the rest."""
    made = slow.add_instance(system_disk=4 * MiB)
    before = made.disks[0].path.read_bytes()
    asked: list[str] = []
    ending: list[str] = []

    def at_each() -> None:
        if ending and not asked:
            asked.append("off")
            migration.cancel()

    target = CvmTarget(waits(slow, made, at_each), data_port=free_port())
    with Migration(source(tmp_path, 4 * MiB), target, state=tmp_path / "state") as migration:
        migration.prepare()
        migration.full_sync()
        if last == "finish":
            migration.cutover()
        end = migration.finish if last == "finish" else migration.abort
        ending.append(last)
        with pytest.raises(CancelledError, match=f"{last}.*{made.instance_id}"):
            end()
        assert migration.status().state == ("cut over" if last == "finish" else "synced")
        report = end()

    assert asked == ["off"]
    assert report.state == ("finished" if last == "finish" else "aborted")
    assert made.state == "RUNNING"
    assert (made.disks[0].path.read_bytes() == before) is (last == "abort")


def test_what_was_called_off_can_be_given_up_without_a_state_directory(
    slow: TencentCloud, tmp_path: Path
) -> None:
    """Nobody but this object knows how to put the instance back."""
    made = slow.add_instance(system_disk=4 * MiB)
    before = made.disks[0].path.read_bytes()
    target = CvmTarget(instance(slow, made), data_port=free_port())

    with Migration(source(tmp_path, 4 * MiB), target) as migration:
        migration.prepare()
        migration.cancel()
        for _ in range(2):
            with pytest.raises(CancelledError):
                migration.full_sync()
        assert made.state == "RESCUE_MODE"
        migration.abort()

    assert made.state == "RUNNING"
    assert made.disks[0].path.read_bytes() == before
