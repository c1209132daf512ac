"""Parameters: missing, unknown, of another type, and those of a query."""

from __future__ import annotations

from typing import Any

import pytest

from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._parameters import check, from_query

_SHAPE: dict[str, Any] = {
    "InstanceIds": [str],
    "Limit": int,
    "ForceStop": bool,
    "Ratio": float,
    "Filters": [{"Name": str, "Values": [str]}],
}


def _check(params: dict[str, Any], *required: str, text: bool = False) -> dict[str, Any]:
    return check(params, _SHAPE, frozenset(required), text=text)


def test_what_is_right_is_taken_as_it_is() -> None:
    params = {"InstanceIds": ["a"], "Limit": 1, "Filters": [{"Name": "zone", "Values": ["z"]}]}

    assert _check(params, "InstanceIds") == params


def test_null_is_as_if_it_were_not_there() -> None:
    assert _check({"Limit": None}) == {}


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({}, "MissingParameter", "InstanceIds"),
        ({"InstanceIds": None}, "MissingParameter", "InstanceIds"),
        ({"InstanceIds": [], "Colour": "red"}, "UnknownParameter", "Colour"),
        ({"InstanceIds": "a"}, "InvalidParameter", "InstanceIds"),
        ({"InstanceIds": [1]}, "InvalidParameter", "InstanceIds.0"),
        ({"InstanceIds": [], "Limit": "1"}, "InvalidParameter", "Limit"),
        ({"InstanceIds": [], "Limit": True}, "InvalidParameter", "Limit"),
        ({"InstanceIds": [], "ForceStop": 1}, "InvalidParameter", "ForceStop"),
        ({"InstanceIds": [], "Filters": [{"Key": "x"}]}, "UnknownParameter", "Filters.0.Key"),
        ({"InstanceIds": [], "Filters": ["x"]}, "InvalidParameter", "Filters.0"),
    ],
)
def test_what_is_wrong_is_named(params: dict[str, Any], code: str, named: str) -> None:
    with pytest.raises(ApiError, match=f"`{named}`") as caught:
        _check(params, "InstanceIds")

    assert caught.value.code == code


def test_a_whole_number_will_do_for_a_fraction() -> None:
    assert _check({"Ratio": 1}) == {"Ratio": 1}


def test_a_query_is_read_as_the_sdk_flattens_it() -> None:
    query = "InstanceIds.0=a&InstanceIds.1=b&Limit=5&ForceStop=true&Filters.0.Name=zone&Filters.0.Values.0=z"

    assert _check(from_query(query), text=True) == {
        "InstanceIds": ["a", "b"],
        "Limit": 5,
        "ForceStop": True,
        "Filters": [{"Name": "zone", "Values": ["z"]}],
    }


def test_text_that_is_no_number_is_refused_in_a_query() -> None:
    with pytest.raises(ApiError, match="`Limit`"):
        _check(from_query("Limit=five"), text=True)
