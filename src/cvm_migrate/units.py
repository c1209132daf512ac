"""Sizes and rates: the constants and how they are read and printed.

Binary units throughout: a mebibyte is 2**20 bytes. ``50M`` on the command line means 50 MiB.
"""

from __future__ import annotations

import re
from typing import Final

KiB: Final = 1 << 10
MiB: Final = 1 << 20
GiB: Final = 1 << 30
TiB: Final = 1 << 40

_FACTORS: Final = {"": 1, "K": KiB, "M": MiB, "G": GiB, "T": TiB}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Read a size such as ``64K``, ``50M``, ``1.5GiB`` or ``4096``.

    Args:
        text: A number with an optional unit; units are binary (``K`` is 1024 bytes).

    Returns:
        The size in bytes, rounded down.

    Raises:
        ValueError: The text is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {text!r}; write a number with K, M, G or T, such as 50M")
    return int(float(match[1]) * _FACTORS[match[2].upper()])


def format_size(count: float) -> str:
    """Write a number of bytes with three significant digits, such as ``41.2 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1000 or unit == "TiB":
            break
        value /= 1024
    else:  # pragma: no cover - the loop always breaks at TiB
        unit = "TiB"
    if unit == "B":
        return f"{value:.0f} B"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}"


def format_rate(bytes_per_second: float) -> str:
    """Write a rate in bytes per second, such as ``41.2 MiB/s``."""
    return f"{format_size(bytes_per_second)}/s"


def format_seconds(seconds: float) -> str:
    """Write a duration: ``0.27 s``, ``12.4 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
