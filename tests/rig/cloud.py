"""The simulated cloud as the adapter's tests use it: short waits, short time-outs, every fault at every call."""

from __future__ import annotations

from typing import Any, Final

from cvm_migrate.cloud import CloudEndpoint, CvmInstance, RetryPolicy, StaticCredentials
from cvm_migrate.testing import SimulatedInstance, TencentCloud

REGION: Final = "ap-guangzhou"

# Faults after which everything still has to succeed; one of each kind that is treated differently.
PASSING: Final = (
    "throttle",
    "mutex",
    "internal-after-success",
    "http-502",
    "timeout",
    "timeout-after-success",
    "drop-before",
    "drop-after-success",
    "garbage",
    "truncated",
)

# Faults that end in an error.
LASTING: Final = ("unauthorized", "expired-token", "skew")

# Enough for any fault that strikes once or twice, and no test waits for it to be used up.
QUICK: Final = RetryPolicy(attempts=6, seconds=60.0, patience=60.0, first=0.01, longest=0.05)


def cloud() -> TencentCloud:
    """Return a cloud whose operations take a moment, to be entered."""
    return TencentCloud(operation_seconds=0.03)


def endpoint(simulated: TencentCloud, fault: str = "") -> CloudEndpoint:
    """Return how to reach it: giving up on an answer soon where *fault* keeps it from coming."""
    return CloudEndpoint(url=simulated.endpoint, timeout=0.5 if "timeout" in fault else 20.0)


def add(simulated: TencentCloud, **changes: Any) -> SimulatedInstance:
    """Make an instance whose rescue mode is a state only, with nothing to log in to."""
    changes.setdefault("rescue_system", "none")
    return simulated.add_instance(**changes)


def instance(
    simulated: TencentCloud, of: SimulatedInstance, fault: str = "", **changes: Any
) -> CvmInstance:
    """Return the adapter's view of an instance."""
    arguments: dict[str, Any] = {
        "region": of.region,
        "credentials": StaticCredentials(simulated.secret_id, simulated.secret_key),
        "endpoint": endpoint(simulated, fault),
        "policy": QUICK,
        "poll": 0.01,
        **changes,
    }
    return CvmInstance(of.instance_id, **arguments)
