"""Reading the API's JSON, in which a field that is a list or an object may be null or missing."""

from __future__ import annotations

from typing import Any, cast

JsonObject = dict[str, Any]


def child(of: JsonObject, name: str) -> JsonObject:
    """Return an object; an empty one where there is none."""
    value: object = of.get(name)
    return cast("JsonObject", value) if isinstance(value, dict) else {}


def children(of: JsonObject, name: str) -> list[JsonObject]:
    """Return the objects of a list; none where there is no list."""
    value: object = of.get(name)
    if not isinstance(value, list):
        return []
    items = cast("list[object]", value)
    return [cast("JsonObject", item) for item in items if isinstance(item, dict)]


def texts(of: JsonObject, name: str) -> tuple[str, ...]:
    """Return the texts of a list; none where there is no list."""
    value: object = of.get(name)
    if not isinstance(value, list):
        return ()
    return tuple(str(item) for item in cast("list[object]", value))
