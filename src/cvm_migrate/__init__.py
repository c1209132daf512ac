"""Moves a running server onto a Tencent Cloud CVM without stopping its services.

The facade's names stand here; the parts are in the packages below. Names are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvm_migrate import errors, events
    from cvm_migrate.cloud import CvmInstance
    from cvm_migrate.events import Event, Observer
    from cvm_migrate.migration import (
        CheckReport,
        CutoverResult,
        CvmTarget,
        Endpoint,
        ImageFile,
        LocalHost,
        Migration,
        Options,
        Prepared,
        Report,
        SshHost,
        State,
        Status,
        Step,
        SyncResult,
        parse_endpoint,
    )
    from cvm_migrate.model import Finding, Severity

__version__ = "0.1.0.dev0"

__all__ = [
    "CheckReport",
    "CutoverResult",
    "CvmInstance",
    "CvmTarget",
    "Endpoint",
    "Event",
    "Finding",
    "ImageFile",
    "LocalHost",
    "Migration",
    "Observer",
    "Options",
    "Prepared",
    "Report",
    "Severity",
    "SshHost",
    "State",
    "Status",
    "Step",
    "SyncResult",
    "__version__",
    "errors",
    "events",
    "parse_endpoint",
]

_MODULES = ("errors", "events")
_PLACES = {
    "CvmInstance": "cvm_migrate.cloud",
    "Event": "cvm_migrate.events",
    "Observer": "cvm_migrate.events",
    "Finding": "cvm_migrate.model",
    "Severity": "cvm_migrate.model",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import a public name; the agent's bundle and tools that want only a part don't pay for the rest."""
    if name in _MODULES:
        return importlib.import_module(f"cvm_migrate.{name}")
    if name in __all__:
        return getattr(importlib.import_module(_PLACES.get(name, "cvm_migrate.migration")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
