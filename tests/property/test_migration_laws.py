"""Whatever fails, whenever: what a migration calls proven is the frozen source, byte for byte."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvm_migrate import Migration, Options
from cvm_migrate.errors import (
    NotConvergingError,
    StepOrderError,
    TargetWriteError,
    TransientError,
    VerificationError,
)
from cvm_migrate.migration import TRANSITIONS, State, Step
from rig.memory_hosts import CrashError, World

KiB = 1 << 10
# More would mean that it never ends.
_MOST_STEPS = 400
# Every change of the state is synced to its disk, which costs more than all the rest.
_MEMORY = Path("/dev/shm")


class _Driver:
    """Calls steps, again after each failure, in a new Migration after each crash, until the migration is finished."""

    def __init__(self, world: World, state: Path, options: Options) -> None:
        self.world = world
        self.state = state
        self.options = options
        self.identical: list[bool] = []
        self._left = _MOST_STEPS

    def run(self) -> None:
        finished = False
        while not finished:
            with Migration(
                self.world.endpoint("source"),
                self.world.endpoint("target"),
                state=self.state,
                options=self.options,
            ) as migration:
                try:
                    finished = self._until_finished(migration)
                except CrashError:
                    self._crash()

    def _until_finished(self, migration: Migration) -> bool:
        while migration.status().state != State.FINISHED.value:
            self._left -= 1
            assert self._left, f"not finished: {self.world.log[-20:]}"
            try:
                self._step(migration)
            except (TransientError, TargetWriteError, VerificationError):
                # Faults become rare, so that it ends.
                self.world.faults *= 0.97
        assert migration.report().proven
        return True

    def _step(self, migration: Migration) -> None:
        chance = self.world.random.random()
        match State(migration.status().state):
            case State.NEW:
                migration.prepare()
            case State.PREPARED:
                migration.full_sync()
            case State.SYNCED if chance < 0.6:
                migration.delta_sync()
            case State.SYNCED:
                migration.cutover(force=True, on_proven=self._compare)
            case State.CUT_OVER if chance < 0.3:
                migration.delta_sync()
            case _:
                migration.finish()

    def _compare(self) -> None:
        self.identical.append(self.world.source == self.world.target)

    def _crash(self) -> None:
        """As the kernel does it when the caller is gone: pipes end, agents end, the watchdog thaws."""
        self.world.faults *= 0.97
        for agent in self.world.agents.values():
            if agent is not None:
                agent.die()
        for _ in range(5):
            self.world.write_some()


_PROOFS: list[Literal["running", "frozen", "sent"]] = ["sent", "sent", "sent", "running", "frozen"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=100, derandomize=True)
@given(
    seed=st.integers(0, 1 << 32),
    faults=st.sampled_from([0.0, 3.0, 10.0, 30.0]),
    tracked=st.sampled_from([True, True, True, False]),
    sizes=st.lists(st.integers(1, 600).map(lambda n: n * 512), min_size=1, max_size=2),
    options=st.builds(
        Options,
        # Comparisons find what was missed before: most runs do without them.
        prove=st.sampled_from(_PROOFS),
        compare=st.booleans(),
        chunk=st.just(64 * KiB),
        batch=st.just(4096 * KiB),
    ),
)
def test_what_is_called_proven_is_identical(
    *, seed: int, faults: float, tracked: bool, sizes: list[int], options: Options
) -> None:
    """With agents lost, calls failing, bits flipping, events lost and the caller crashing at any call."""
    world = World(seed, sizes=sizes, faults=faults, tracked=tracked)
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        driver = _Driver(world, Path(folder), options)
        driver.run()

    # Each of them held while it was frozen, also those of cutovers that failed afterwards.
    assert driver.identical
    assert all(driver.identical), world.log


@settings(max_examples=40, derandomize=True)
@given(steps=st.lists(st.sampled_from(list(Step)), max_size=12))
def test_any_order_of_steps_ends_in_a_legal_state(steps: list[Step]) -> None:
    """A step is done and leads where the table says, or is refused and changes nothing."""
    world = World(1, sizes=[64 * KiB], faults=0, tracked=True)
    with Migration(
        world.endpoint("source"), world.endpoint("target"), options=Options(prove="sent")
    ) as migration:
        for step in steps:
            before = State(migration.status().state)
            call = getattr(migration, step.value)
            try:
                if step is Step.HOLD:
                    call(until=lambda: True)
                else:
                    call()
            except StepOrderError:
                assert before not in TRANSITIONS[step]
                assert migration.status().state == before.value
            except NotConvergingError:
                assert step is Step.CUTOVER
            else:
                assert migration.status().state == TRANSITIONS[step][before].value
            assert set(migration.status().next_steps) == {
                one.value for one in Step if State(migration.status().state) in TRANSITIONS[one]
            }


def test_a_target_that_keeps_something_else_is_a_verification_error() -> None:
    """A disk that gives back other bytes than were written, twice, is named with its range."""
    world = World(3, sizes=[256 * KiB], faults=0, tracked=True)
    world.always_flips = True
    with Migration(
        world.endpoint("source"), world.endpoint("target"), options=Options(chunk=64 * KiB)
    ) as migration:
        migration.prepare()
        with pytest.raises(VerificationError) as error:
            migration.full_sync()
        assert migration.status().state == "prepared"
        world.always_flips = False
        migration.full_sync()
        identical: list[bool] = []
        migration.cutover(on_proven=lambda: identical.append(world.source == world.target))

    assert identical == [True]
    assert error.value.device == "/dev/vda"
    assert error.value.offset == 0
