"""Every call of a migration to a CVM, and of one that is given up, meets every fault once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import attrs
import pytest

import rig.cloud
from cvm_migrate.cloud import RescueTarget, SecurityGroups, TargetWish
from cvm_migrate.errors import CvmMigrateError, StepOrderError
from cvm_migrate.testing import SimulatedDisk, SimulatedInstance
from cvm_migrate.units import MiB
from rig.cloud import PASSING, cloud, instance

WISH: Final = TargetWish(data_port=443, source="203.0.113.5")
# A state that the instance should not be in, as when someone else works on it.
WRONG_STATE: Final = "UnsupportedOperation.InstanceStateRebooting"
# What they strike fails; an operation that fails later is only met where there is one.
FAILING: Final = ("unauthorized", "expired-token", "failed-operation", WRONG_STATE)
KINDS: Final = (*PASSING, "busy", *FAILING)
WAYS: Final = ("finish", "abort")
BEFORE, COPY = b"a", b"b"


@attrs.define
class Story:
    """What became of an instance."""

    requests: int
    succeeded: bool
    finished: bool
    stuck: str
    half_way: str | None
    errors: list[CvmMigrateError]
    made: SimulatedInstance
    contents: set[bytes]
    rules: list[str]


def fill(made: SimulatedInstance, byte: bytes) -> None:
    for disk in made.disks:
        disk.path.write_bytes(byte * disk.size)


def tell(way: str, kind: str | None = None, nth: int = 1) -> Story:
    """Go in and out, with one fault at the nth call; what fails is given up once the fault is over."""
    with cloud() as simulated:
        made = rig.cloud.add(simulated, system_disk=MiB, data_disks=[MiB])
        fill(made, BEFORE)
        disks = made.disks
        notes: dict[str, str] = {}
        errors: list[CvmMigrateError] = []
        if kind is not None:
            simulated.fail(kind, nth=nth)

        def target() -> RescueTarget:
            # Each step is another process's.
            cvm = instance(simulated, made, kind or "")
            return RescueTarget(cvm, notes, wish=WISH, ledger="web-1")

        def copy() -> None:
            begun = target()
            begun.before_prepare()
            begun.writing()
            fill(made, COPY)

        def attempt(*steps: Callable[[], object]) -> bool:
            try:
                for step in steps:
                    step()
            except CvmMigrateError as error:
                errors.append(error)
                return False
            return True

        def undo() -> object:
            return target().on_abort(prove=lambda _: is_before(disks))

        finish = way == "finish"
        end = (lambda: target().after_cutover()) if finish else undo
        succeeded = attempt(copy, end)
        stuck, requests = made.state, len(simulated.requests)
        half_way = target().half_way
        # How many looks a wait takes differs, so that a late fault may not have struck at all.
        simulated.heal()
        if not succeeded:
            finish = give_up(undo, target, made)
        cvm = instance(simulated, made)
        listed = SecurityGroups(cvm).rules(cvm.describe().security_groups)
        return Story(
            requests,
            succeeded,
            finish,
            stuck,
            half_way,
            errors,
            made,
            {disk.path.read_bytes() for disk in disks},
            [rule.description for rule in listed if rule.description],
        )


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_before(disks: Sequence[SimulatedDisk]) -> bool:
    return all(disk.path.read_bytes() == BEFORE * MiB for disk in disks)


def give_up(
    undo: Callable[[], object], target: Callable[[], RescueTarget], made: SimulatedInstance
) -> bool:
    """Give up; return whether it was too late for that, as the copy runs."""
    try:
        undo()
    except StepOrderError:
        made.wait_for("RUNNING")
        target().after_cutover()
        return True
    return False


def judge(way: str, kind: str, nth: int) -> None:
    """Whatever was struck: success or an error with a remedy, and in the end an instance that runs."""
    story = tell(way, kind, nth)
    told = f"{kind} at call {nth} of {way}: {story.errors}"

    assert story.succeeded or kind in FAILING, told
    assert all(error.remedy for error in story.errors), told
    if "RESCUE_MODE" in story.stuck:
        assert any("rescue mode" in str(error) for error in story.errors), told
        # What the report says.
        assert story.half_way is not None, told
        assert "rescue mode" in story.half_way, told
    assert story.made.state == "RUNNING", told
    assert story.contents == {(COPY if story.finished else BEFORE) * MiB}, told
    assert len(story.made.disks) == 2, told
    assert story.rules == [], told
    # Once for the copy, and once for each look at what was put back.
    assert story.made.history.count("ENTER_RESCUE_MODE") <= (1 if story.finished else 3), told


@pytest.fixture(scope="module")
def lengths() -> dict[str, int]:
    """How many calls a migration makes at which nothing goes wrong."""
    found = {way: tell(way) for way in WAYS}
    assert all(story.succeeded for story in found.values())
    return {way: story.requests for way, story in found.items()}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", WAYS)
def test_faults_at_calls_all_along_the_way_end_well(way: str, lengths: dict[str, int]) -> None:
    """Each kind at a few places, and few places without one; the slow test leaves none out."""
    for nth in range(2, lengths[way] + 1, 4):
        judge(way, KINDS[nth // 4 % len(KINDS)], nth)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_every_fault_at_every_call_ends_well(way: str, kind: str, lengths: dict[str, int]) -> None:
    for nth in range(1, lengths[way] + 1):
        judge(way, kind, nth)


@pytest.mark.parametrize("state", ["DETACHING", "UNATTACHED"])
def test_a_disk_that_an_earlier_attempt_detached_is_not_detached_again(state: str) -> None:
    """Giving up ended between DetachDisks and its answer's use."""
    with cloud() as simulated:
        made = rig.cloud.add(simulated, system_disk=MiB, data_disks=[MiB])
        fill(made, BEFORE)
        notes: dict[str, str] = {}
        target = RescueTarget(instance(simulated, made), notes, wish=WISH)
        target.before_prepare()
        target.writing()
        fill(made, COPY)
        cvm = instance(simulated, made)
        cvm.leave_migration(start=False)
        (disk_id,) = [disk.disk_id for disk in cvm.describe().disks if disk.usage == "data"]
        cvm.client.detach_disks(made.instance_id, [disk_id])
        wait_for(lambda: len(made.disks) == 1 if state == "UNATTACHED" else True)

        report = target.on_abort()

        assert report.restored
        assert made.state == "RUNNING"
        assert [disk.path.read_bytes() for disk in made.disks] == [BEFORE * MiB] * 2
