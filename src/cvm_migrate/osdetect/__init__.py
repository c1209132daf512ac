"""Which operating system a host runs, and what is to be expected of it. Evidence in, values out."""

from __future__ import annotations

from cvm_migrate.osdetect._guest import GuestInfo, inspect_host, platform_of
from cvm_migrate.osdetect._support import (
    SUPPORT,
    Support,
    SupportRow,
    support_for,
    support_table,
)

__all__ = [
    "SUPPORT",
    "GuestInfo",
    "Support",
    "SupportRow",
    "inspect_host",
    "platform_of",
    "support_for",
    "support_table",
]
