"""The facade: endpoints, options, steps and their results."""

from __future__ import annotations

from cvm_migrate.migration._cvm import CvmTarget, parse_cvm
from cvm_migrate.migration._endpoints import (
    Endpoint,
    Host,
    ImageFile,
    LocalHost,
    SshHost,
    parse_endpoint,
)
from cvm_migrate.migration._migration import Decision, Migration
from cvm_migrate.migration._options import Options
from cvm_migrate.migration._results import (
    CheckReport,
    CutoverResult,
    DiskPair,
    DiskPass,
    Prepared,
    Report,
    Status,
    SyncResult,
)
from cvm_migrate.migration._routes import DirectRoute, Route, SshRoute
from cvm_migrate.migration._steps import TRANSITIONS, State, Step
from cvm_migrate.migration._values import Result

__all__ = [
    "TRANSITIONS",
    "CheckReport",
    "CutoverResult",
    "CvmTarget",
    "Decision",
    "DirectRoute",
    "DiskPair",
    "DiskPass",
    "Endpoint",
    "Host",
    "ImageFile",
    "LocalHost",
    "Migration",
    "Options",
    "Prepared",
    "Report",
    "Result",
    "Route",
    "SshHost",
    "SshRoute",
    "State",
    "Status",
    "Step",
    "SyncResult",
    "parse_cvm",
    "parse_endpoint",
]
