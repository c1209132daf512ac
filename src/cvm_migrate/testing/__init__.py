"""What callers test their own automation with: a Tencent Cloud on this machine, and a busy disk.

Shipped with the library; needs nothing but it. The cloud's rescue mode and the busy disk need Linux and root.
"""

from __future__ import annotations

from cvm_migrate.testing._busy_disk import BusyDisk, Proof, prove_copy
from cvm_migrate.testing._cloud import (
    Credentials,
    SimulatedDisk,
    SimulatedInstance,
    TencentCloud,
)
from cvm_migrate.testing._faults import Fault
from cvm_migrate.testing._server import RecordedRequest

__all__ = [
    "BusyDisk",
    "Credentials",
    "Fault",
    "Proof",
    "RecordedRequest",
    "SimulatedDisk",
    "SimulatedInstance",
    "TencentCloud",
    "prove_copy",
]
