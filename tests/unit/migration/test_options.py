"""Options are checked when they are made, whatever is given: no value of a wrong kind gets as far as a disk."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from cvm_migrate import Options
from cvm_migrate.errors import InvalidRequestError

_NUMBERS = (
    "max_downtime",
    "freeze_limit",
    "streams",
    "chunk",
    "level",
    "bandwidth",
    "read_limit",
    "block",
    "max_passes",
    "max_bytes",
    "patience",
    "batch",
    "attempts",
    "data_port",
)
_WHOLE = set(_NUMBERS) - {"max_downtime", "freeze_limit", "max_bytes", "patience"}


def _make(name: str, value: Any) -> Options:
    given: dict[str, Any] = {name: value}
    return Options(**given)


@pytest.mark.parametrize("name", _NUMBERS)
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -1, "5", "50M", True, [], {}, b"1", 1e30, 1j]
)
def test_what_is_no_number_in_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"option {name} is"):
        _make(name, value)


@pytest.mark.parametrize("name", sorted(_WHOLE))
def test_what_is_counted_is_whole(name: str) -> None:
    good: Any = getattr(Options(), name) or 1 << 20
    with pytest.raises(InvalidRequestError, match=f"option {name} is"):
        _make(name, float(good) + 0.5)
    with pytest.raises(InvalidRequestError, match=f"option {name} is"):
        _make(name, float(good))


@pytest.mark.parametrize("name", ["codec", "prove", "route"])
@pytest.mark.parametrize("value", [None, "", "fast", 1, ["auto"]])
def test_a_choice_is_one_of_those_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"option {name} is .* must be one of"):
        _make(name, value)


@pytest.mark.parametrize("value", [None, 5, "digests", ["ebpf", "blktrace"], [["ebpf"]], [None]])
def test_rungs_are_those_there_are(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="option rungs names"):
        Options(rungs=value)


@pytest.mark.parametrize("value", [None, "no", 0, 1])
def test_a_yes_or_no_is_one(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="option compare is"):
        Options(compare=value)


def test_one_rung_may_be_given_as_a_text_and_several_in_any_sequence() -> None:
    text: Any = "ebpf"
    several: Any = ["tracefs", "ebpf"]

    assert Options(rungs=text).rungs == ("ebpf",)
    assert Options(rungs=several).rungs == ("tracefs", "ebpf")


def test_the_defaults_pass_their_own_checks() -> None:
    given: dict[str, Any] = attrs.asdict(Options())

    assert Options(**given) == Options()
