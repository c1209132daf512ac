"""Hosts captured in tests/data/hosts, as facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cvm_migrate.model import HostFacts

DATA = Path(__file__).parent.parent / "data" / "hosts"

COMMON: dict[str, Any] = {
    "system": "Linux",
    "kernel": "6.1.0-18-amd64",
    "machine": "x86_64",
    "python": "3.11.2",
    "executable": "/usr/bin/python3",
    "hostname": "web-1",
    "boot_id": "6fa6c5a4-3f9d-4c38-9f0a-2f1f5a5f4b0e",
    "euid": 0,
    "time": 1732500000.0,
    "firmware": "bios",
    "memory": {"total": 1 << 32, "available": 1 << 31},
    "os_release": {"ID": "debian", "VERSION_ID": "12"},
    "legacy_release": None,
    "lockdown": "none",
    "dmi": {},
    "disks": [],
    "mounts": [],
    "swaps": [],
    "addresses": ["10.0.0.5"],
    "tracking": {"ebpf": None},
    "can_freeze": True,
    "tools": {},
    "services": [],
}


def wire(name: str | None = None, **changes: Any) -> dict[str, Any]:
    """What an agent would say of the host *name*."""
    captured: dict[str, Any] = {}
    if name is not None:
        captured = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return {**COMMON, **captured, **changes}


def host(name: str | None = None, **changes: Any) -> HostFacts:
    """The same as facts."""
    return HostFacts.from_wire(wire(name, **changes))
