"""Plain frozen values: what the parts of the library tell one another and the caller."""

from __future__ import annotations

from cvm_migrate.model._extents import Extent, ExtentMap
from cvm_migrate.model._findings import Finding, Severity
from cvm_migrate.model._hosts import (
    DiskFacts,
    HostFacts,
    MountFacts,
    PartitionFacts,
    TrackingFacts,
)
from cvm_migrate.model._transfer import (
    Changes,
    FreezeResult,
    Listening,
    Marked,
    Measured,
    OpenDisk,
    Reach,
    ReadBack,
    Streamed,
    ThawResult,
    TlsIdentity,
    TrackingStart,
)

__all__ = [
    "Changes",
    "DiskFacts",
    "Extent",
    "ExtentMap",
    "Finding",
    "FreezeResult",
    "HostFacts",
    "Listening",
    "Marked",
    "Measured",
    "MountFacts",
    "OpenDisk",
    "PartitionFacts",
    "Reach",
    "ReadBack",
    "Severity",
    "Streamed",
    "ThawResult",
    "TlsIdentity",
    "TrackingFacts",
    "TrackingStart",
]
