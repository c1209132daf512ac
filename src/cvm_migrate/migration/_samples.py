"""A few places of a disk, digested before the first write, by which it is recognised once it has been put back.

A snapshot of a running instance is a little older than the sample: what its system wrote while it was shut down
differs. So most of a disk has to be the same, and its first block, with the partition table, all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Final

from cvm_migrate.errors import CvmMigrateError
from cvm_migrate.interfaces import Agent
from cvm_migrate.model import ExtentMap, OpenDisk
from cvm_migrate.units import KiB

_CHUNK: Final = 64 * KiB
_PLACES: Final = 128
# The one that every agent has.
_ALGORITHM: Final = "sha256"
_BLANK: Final = hashlib.sha256(bytes(_CHUNK)).hexdigest()


def take(agent: Agent, paths: Sequence[str]) -> str:
    """Digest a sample of each disk, which is read only.

    Args:
        agent: Where they are.
        paths: Of the disks.

    Returns:
        Text to be kept.

    Raises:
        CvmMigrateError: A disk cannot be read.
    """
    return json.dumps({path: _digests(agent, path) for path in paths})


def sampled(sample: str) -> tuple[str, ...]:
    """Return the paths that the disks had when the sample was taken."""
    return tuple(json.loads(sample))


def is_same(agent: Agent, sample: str, paths: Sequence[str]) -> bool:
    """Tell whether disks are again what they were when the sample was taken.

    Args:
        agent: Where they are.
        sample: What :func:`take` returned.
        paths: Of the same disks now, in the same order.

    Raises:
        CvmMigrateError: A disk cannot be read.
    """
    before: dict[str, dict[str, str]] = json.loads(sample)
    return all(
        _alike(digests, _digests(agent, path))
        for path, digests in zip(paths, before.values(), strict=True)
    )


def _alike(before: dict[str, str], now: dict[str, str]) -> bool:
    first = "0"
    if before.get(first) not in {None, _BLANK} and before.get(first) != now.get(first):
        return False
    # Blank places look the same on any disk.
    told = [place for place, digest in before.items() if digest != _BLANK]
    same = sum(before[place] == now.get(place) for place in told)
    return same * 2 >= len(told)


def _digests(agent: Agent, path: str) -> dict[str, str]:
    disk = agent.open_disk(path, mode="read")
    try:
        return _digests_of(agent, disk)
    finally:
        _close(agent, disk)


def _digests_of(agent: Agent, disk: OpenDisk) -> dict[str, str]:
    chunks = disk.size // _CHUNK
    step = max(1, chunks // _PLACES)
    places = [number * _CHUNK for number in range(0, chunks, step)]
    ranges = ExtentMap([(place, _CHUNK) for place in places])
    found: dict[str, str] = {}
    for offset, digests in agent.digest(disk, ranges, chunk=_CHUNK, algorithm=_ALGORITHM):
        for number, digest in enumerate(digests):
            found[str(offset + number * _CHUNK)] = digest.hex()
    return found


def _close(agent: Agent, disk: OpenDisk) -> None:
    try:
        agent.close_disk(disk)
    except CvmMigrateError:
        # A lost agent has let go of it; what failed is on its way already, or comes with the next call.
        return
