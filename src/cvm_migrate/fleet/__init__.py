"""Many migrations: described in files, done side by side, continued as a whole.

The format of plan files is in ``docs/reference/plan-files.md``.
"""

from __future__ import annotations

from cvm_migrate.fleet._files import load_plan, load_plans
from cvm_migrate.fleet._many import FleetHook, FleetObserver, check_many, migrate_many
from cvm_migrate.fleet._plan import Place, Plan
from cvm_migrate.fleet._report import Failure, FleetReport, Outcome

__all__ = [
    "Failure",
    "FleetHook",
    "FleetObserver",
    "FleetReport",
    "Outcome",
    "Place",
    "Plan",
    "check_many",
    "load_plan",
    "load_plans",
    "migrate_many",
]
