"""Sizes, rates and durations, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvm_migrate.units import (
    GiB,
    KiB,
    MiB,
    TiB,
    format_rate,
    format_seconds,
    format_size,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 64 * KiB),
        ("50M", 50 * MiB),
        ("50MB", 50 * MiB),
        ("50MiB", 50 * MiB),
        ("1.5GiB", 3 * GiB // 2),
        (" 16 t ", 16 * TiB),
        ("0.1K", 102),
        ("9007199254740993", (1 << 53) + 1),
        ("0.5", 0),
    ],
)
def test_sizes_are_read_exactly(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "K", "-1", "1e3", "12X", "1.K", ".5M", "0x10", "1 2", "inf", "nan"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 50M"):
        parse_size(text)


@given(st.integers(0, 1 << 70))
def test_a_plain_number_is_itself(count: int) -> None:
    assert parse_size(str(count)) == count


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (41.2 * MiB, "41.2 MiB"),
        (9.996 * MiB, "10.0 MiB"),
        (99.96 * MiB, "100 MiB"),
        (999.7 * MiB, "0.98 GiB"),
        (16 * TiB, "16.0 TiB"),
        (5000 * TiB, "5000 TiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_sizes_are_written_with_three_digits(count: float, expected: str) -> None:
    assert format_size(count) == expected


@given(st.floats(0, 999.4 * TiB))
def test_what_is_written_is_close_to_the_number(count: float) -> None:
    number, unit = format_size(count).split()
    written = float(number) * {"B": 1, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB}[unit]

    assert written == pytest.approx(count, rel=0.006, abs=0.5)
    assert len(number.replace(".", "")) <= 3


def test_rates_are_sizes_a_second() -> None:
    assert format_rate(50 * MiB) == "50.0 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.00 s"),
        (0.27, "0.27 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (12.4, "12.4 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (100 * 3600, "100 h 00 min"),
        (float("inf"), "for ever"),
    ],
)
def test_durations_are_written_for_people(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected
