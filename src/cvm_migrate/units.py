"""Sizes and rates: the constants and how they are read and printed.

Binary units throughout: a mebibyte is 2**20 bytes. ``50M`` on the command line means 50 MiB.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
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
    # Not by way of float, which does not hold every number of bytes.
    return int(Fraction(match[1]) * _FACTORS[match[2].upper()])


def format_size(count: float) -> str:
    """Write a number of bytes with three significant digits, such as ``41.2 MiB``."""
    value = float(count)
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1024, larger
    if unit == "B":
        return f"{value:.0f} B"
    # 9.996 is written 10.0: the digits are counted after rounding.
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def format_rate(bytes_per_second: float) -> str:
    """Write a rate in bytes per second, such as ``41.2 MiB/s``."""
    return f"{format_size(bytes_per_second)}/s"


def format_seconds(seconds: float) -> str:
    """Write a duration: ``0.27 s``, ``12.4 s``, ``3 min 05 s``, ``2 h 10 min``; without an end, ``for ever``."""
    if not math.isfinite(seconds):
        return "for ever"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
