"""A host's disks: what lies on them, and whether one may be overwritten. Facts in, values out."""

from __future__ import annotations

from cvm_migrate.disk._inventory import (
    find_disk,
    missing_remedy,
    mounts_on,
    ranges_on,
    reachable,
    refuse_partition,
    swaps_on,
    unfreezable,
)
from cvm_migrate.disk._target import Place, check_target, refuse_unsafe, uneven
from cvm_migrate.disk._usage import Usage, used_on

__all__ = [
    "Place",
    "Usage",
    "check_target",
    "find_disk",
    "missing_remedy",
    "mounts_on",
    "ranges_on",
    "reachable",
    "refuse_partition",
    "refuse_unsafe",
    "swaps_on",
    "uneven",
    "unfreezable",
    "used_on",
]
