"""Disks that were put back are recognised by a sample of what they were."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvm_migrate.interfaces import Agent
from cvm_migrate.migration._samples import is_same, sampled, take
from cvm_migrate.transport import start_local_agent
from cvm_migrate.units import KiB, MiB

SIZE = 16 * MiB


@pytest.fixture
def agent() -> Iterator[Agent]:
    with start_local_agent() as running:
        yield running


def unchanged(content: bytearray) -> None:
    del content


def some_files(content: bytearray) -> None:
    """As a system writes while it is shut down."""
    content[3 * MiB : 6 * MiB] = os.urandom(3 * MiB)


def another_table(content: bytearray) -> None:
    content[440:512] = os.urandom(72)


def another_system(content: bytearray) -> None:
    content[:] = os.urandom(len(content))


def cleared(content: bytearray) -> None:
    content[:] = bytes(len(content))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (unchanged, True),
        (some_files, True),
        (another_table, False),
        (another_system, False),
        (cleared, False),
    ],
)
def test_a_disk_is_recognised_unless_another_system_is_on_it(
    agent: Agent,
    tmp_path: Path,
    change: Callable[[bytearray], None],
    same: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    disks = [tmp_path / name for name in ("system", "data")]
    content = bytearray(os.urandom(SIZE))
    for disk in disks:
        disk.write_bytes(content)
    sample = take(agent, [str(disk) for disk in disks])

    change(content)
    disks[1].write_bytes(content)

    # Under another name: what counts is the order.
    moved = disks[1].rename(tmp_path / "moved")
    assert sampled(sample) == tuple(str(disk) for disk in disks)
    assert is_same(agent, sample, [str(disks[0]), str(moved)]) is same


@pytest.mark.parametrize("size", [0, 512, 64 * KiB + 512])
def test_a_blank_or_tiny_disk_is_its_own(agent: Agent, tmp_path: Path, size: int) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(size))

    assert is_same(agent, take(agent, [str(disk)]), [str(disk)])
