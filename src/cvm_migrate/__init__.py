"""Moves a running server onto a Tencent Cloud CVM without stopping its services."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
