"""The command ``cvm-migrate``: a thin layer over the public API."""

from __future__ import annotations

from cvm_migrate.cli._main import main

__all__ = ["main"]
