"""What an action takes, as a table, and how what came is held against it.

A shape is a type (``str``, ``int``, ``float``, ``bool``), a list of one shape, or a mapping of names to shapes.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any, cast

from cvm_migrate.testing._api_errors import ApiError

Shape = type | list[Any] | Mapping[str, Any]


def check(
    params: Mapping[str, Any], shape: Mapping[str, Any], required: frozenset[str], *, text: bool
) -> dict[str, Any]:
    """Return the parameters of a call as they are meant.

    Args:
        params: What came.
        shape: What there is.
        required: What must be there.
        text: Everything came as text, as in a query.

    Raises:
        ApiError: One is missing, unknown or of another type.
    """
    checked = _mapping(params, shape, "", text=text)
    for name in sorted(required):
        if name not in checked:
            raise ApiError(
                "MissingParameter", f"The request is missing the required parameter `{name}`."
            )
    return checked


def _mapping(
    value: Mapping[str, Any], shape: Mapping[str, Any], path: str, *, text: bool
) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, item in value.items():
        full = f"{path}{name}"
        if name not in shape:
            raise ApiError("UnknownParameter", f"The parameter `{full}` is not recognized.")
        if item is not None:
            checked[name] = _value(item, shape[name], full, text=text)
    return checked


def _value(value: object, shape: Shape, path: str, *, text: bool) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise _type_error(path, "an array")
        items = cast("list[object]", value)
        return [
            _value(item, shape[0], f"{path}.{index}", text=text)
            for index, item in enumerate(items)
        ]
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            raise _type_error(path, "an object")
        return _mapping(cast("Mapping[str, Any]", value), shape, f"{path}.", text=text)
    if text and isinstance(value, str):
        value = _from_text(value, shape, path)
    good = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
    if not good and not (shape is float and isinstance(value, int)):
        raise _type_error(path, shape.__name__)
    return value


def _from_text(value: str, shape: type, path: str) -> object:
    try:
        if shape is bool:
            return {"true": True, "false": False, "1": True, "0": False}[value.lower()]
        return shape(value)
    except (KeyError, ValueError):
        raise _type_error(path, shape.__name__) from None


def _type_error(path: str, wanted: str) -> ApiError:
    return ApiError("InvalidParameter", f"The parameter `{path}` must be {wanted}.")


def from_query(query: str) -> dict[str, Any]:
    """Return the nested parameters of ``InstanceIds.0=...&Filters.0.Name=...``."""
    root: dict[str, Any] = {}
    for name, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        place = root
        *path, last = name.split(".")
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise _type_error(name, "an object")
            place = cast("dict[str, Any]", inner)
        place[last] = value
    return cast("dict[str, Any]", _lists(root))


def _lists(value: object) -> object:
    if not isinstance(value, dict):
        return value
    items = cast("dict[str, object]", value)
    if items and all(key.isdigit() for key in items):
        return [_lists(items[key]) for key in sorted(items, key=int)]
    return {key: _lists(item) for key, item in items.items()}
