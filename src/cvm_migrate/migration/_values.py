"""How results are stored and shown: as JSON, and as a table where a notebook asks for one."""

from __future__ import annotations

import enum
import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import attrs

from cvm_migrate.model import ExtentMap
from cvm_migrate.units import format_rate, format_seconds, format_size


def to_plain(value: object) -> Any:  # noqa: ANN401, PLR0911 - JSON has no narrower type; one line a kind
    """Return *value* as what JSON knows: attrs values as objects, sets of ranges as their numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, ExtentMap):
        return {"bytes": value.total, "extents": len(value)}
    kind = type(value)
    if attrs.has(kind):
        fields = attrs.fields(kind)
        return {field.name: to_plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return {str(key): to_plain(item) for key, item in mapping.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    if isinstance(value, Iterable):
        return [to_plain(item) for item in cast("Iterable[object]", value)]
    raise TypeError(f"{type(value).__name__} has no JSON form")


class Result:
    """What every step's result can do."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dictionaries, lists, numbers and texts."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return it as JSON."""
        return json.dumps(self.to_dict(), indent=indent, sort_keys=False)

    def rows(self) -> Sequence[tuple[str, str]]:
        """Return what a person wants to see: names and values."""
        return [(name, str(value)) for name, value in self.to_dict().items()]

    def to_text(self) -> str:
        """Return it as lines for a terminal."""
        return as_text(self.rows())

    def to_html(self) -> str:
        """Return it as a page of its own."""
        return (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>cvm_migrate</title>"
            "<style>body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:2em}"
            "td,th{border:1px solid #ccc;padding:.3em .6em}caption{font-weight:bold;text-align:left}</style>"
            f"</head><body>{self._repr_html_()}</body></html>"
        )

    def _repr_html_(self) -> str:
        return as_table(type(self).__name__, self.rows())


def as_text(rows: Sequence[tuple[str, str]]) -> str:
    """Write names and values in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def as_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Write names and values as an HTML table."""
    body = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table><caption>{html.escape(title)}</caption><tbody>{body}</tbody></table>"


def size_or_unknown(count: float | None) -> str:
    """Write a number of bytes, which may not be known."""
    return "unknown" if count is None else format_size(count)


def seconds_or_unknown(seconds: float | None) -> str:
    """Write a duration, which may not be known."""
    return "unknown" if seconds is None else format_seconds(seconds)


def rate_or_unknown(rate: float | None) -> str:
    """Write a rate, which may not be known."""
    return "unknown" if rate is None else format_rate(rate)
