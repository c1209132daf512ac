"""How an action is declared: what it takes, and who answers it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import attrs

from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._world import Call, World

Answer = dict[str, Any]
_Item = TypeVar("_Item")


class Handler(Protocol):
    """Answers a call, or raises :class:`ApiError`."""

    def __call__(self, world: World, call: Call, /) -> Answer:
        """Answer."""
        ...


class OperationHandler(Protocol):
    """Begins an operation, which is to fail in the end if *fails*."""

    def __call__(self, world: World, call: Call, /, *, fails: bool) -> Answer:
        """Answer."""
        ...


@attrs.frozen
class Action:
    """An action.

    Attributes:
        handler: Who answers.
        shape: Names and types of the parameters; see :mod:`cvm_migrate.testing._parameters`.
        required: Parameters that must be there.
        regional: The header ``X-TC-Region`` must be there.
        failing: Who answers where the operation is to fail in the end.
    """

    handler: Handler
    shape: Mapping[str, Any]
    required: frozenset[str] = frozenset()
    regional: bool = attrs.field(default=True, kw_only=True)
    failing: Handler | None = attrs.field(default=None, kw_only=True)

    @classmethod
    def operation(
        cls, handler: OperationHandler, shape: Mapping[str, Any], *required: str
    ) -> Action:
        """Declare an action that begins an operation."""
        return cls(
            functools.partial(handler, fails=False),
            shape,
            frozenset(required),
            failing=functools.partial(handler, fails=True),
        )


def page(items: Sequence[_Item], params: Mapping[str, Any], *, most: int = 100) -> list[_Item]:
    """Return the part that ``Offset`` and ``Limit`` (20 unless said otherwise) name.

    Raises:
        ApiError: One of them is out of its range.
    """
    offset, limit = int(params.get("Offset") or 0), int(params.get("Limit") or 20)
    if offset < 0 or not 1 <= limit <= most:
        raise ApiError(
            "InvalidParameterValue.Range", f"Offset must be 0 or more, Limit 1 to {most}."
        )
    return list(items[offset : offset + limit])


def filtered(
    items: Sequence[_Item],
    params: Mapping[str, Any],
    known: Mapping[str, Callable[[_Item], Sequence[str]]],
) -> list[_Item]:
    """Return what ``Filters`` let through: all of them, any of the values of each.

    Raises:
        ApiError: A filter is not known, or there are too many.
    """
    filters: list[dict[str, Any]] = params.get("Filters") or []
    if len(filters) > 10 or any(len(one.get("Values") or []) > 100 for one in filters):
        raise ApiError("InvalidFilterValue.LimitExceeded", "At most 10 filters.")
    found = list(items)
    for one in filters:
        read = known.get(one.get("Name", ""))
        if read is None:
            raise ApiError("InvalidFilter", f"The filter `{one.get('Name')}` is not supported.")
        wanted = set(one.get("Values") or [])
        found = [item for item in found if wanted.intersection(read(item))]
    return found
