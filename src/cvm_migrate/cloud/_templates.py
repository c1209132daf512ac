"""Parameter templates: addresses or services under one name, which rules of security groups name instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs

from cvm_migrate.cloud._calls import InstanceCalls
from cvm_migrate.cloud._client import CloudClient
from cvm_migrate.cloud._json import JsonObject, children, texts
from cvm_migrate.cloud._notation import Span, tcp_ports
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import NotFoundError, UnsupportedError

# Filters of VPC's calls take so many values.
_AT_ONCE: Final = 5


@attrs.frozen
class _Kind:
    """How the API calls what belongs to one kind of template.

    Attributes:
        name: Begins the names of its fields, and is that of a member that has a remark.
        group: Begins the ids of groups of it.
        parse: Refuses a member that is not understood.
        templates: The call that describes them by id.
        groups: The call that describes groups of them.
    """

    name: str
    group: str
    parse: Callable[[str], object]
    templates: Callable[[CloudClient, Sequence[str]], JsonObject]
    groups: Callable[[CloudClient, Sequence[str]], JsonObject]


_ADDRESSES: Final = _Kind(
    "Address",
    "ipmg-",
    Span.parse,
    CloudClient.describe_address_templates,
    CloudClient.describe_address_template_groups,
)
_SERVICES: Final = _Kind(
    "Service",
    "ppmg-",
    tcp_ports,
    CloudClient.describe_service_templates,
    CloudClient.describe_service_template_groups,
)


class Templates:
    """The templates of an account.

    Args:
        instance: Who asks.
        deadline: Ends the attempts.
        cancel: Ends the waits.
    """

    def __init__(
        self,
        instance: InstanceCalls,
        *,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._instance = instance
        self._deadline = deadline
        self._cancel = cancel

    def addresses(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return the addresses, networks and ranges of templates and of groups of them.

        Raises:
            NotFoundError: One is gone.
            PermissionDeniedError: The account may not look at it.
            UnsupportedError: It says what is not understood here, or nothing.
        """
        return self._members(_ADDRESSES, ids)

    def services(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return the services of templates and of groups of them, such as ``tcp:443``.

        Raises:
            NotFoundError: One is gone.
            PermissionDeniedError: The account may not look at it.
            UnsupportedError: It says what is not understood here, or nothing.
        """
        return self._members(_SERVICES, ids)

    def _members(self, kind: _Kind, ids: Sequence[str]) -> tuple[str, ...]:
        named: list[str] = []
        for one in ids:
            if one.startswith(kind.group):
                (group,) = self._described(f"{kind.name}TemplateGroup", [one], kind.groups)
                named += texts(group, f"{kind.name}TemplateIdSet")
            else:
                named.append(one)
        found: list[str] = []
        for at in range(0, len(named), _AT_ONCE):
            some = named[at : at + _AT_ONCE]
            for template in self._described(f"{kind.name}Template", some, kind.templates):
                found += _said(kind, template)
        if not found:
            raise UnsupportedError(f"the templates {', '.join(ids)} say nothing")
        return tuple(dict.fromkeys(found))

    def _described(
        self,
        what: str,
        ids: Sequence[str],
        call: Callable[[CloudClient, Sequence[str]], JsonObject],
    ) -> list[JsonObject]:
        answer = self._instance.read(
            partial(call, self._instance.client, ids),
            doing=f"looking at {', '.join(ids)}",
            deadline=self._deadline,
            cancel=self._cancel,
        )
        found = {str(one.get(f"{what}Id")): one for one in children(answer, f"{what}Set")}
        for one in ids:
            if one not in found:
                raise NotFoundError(f"there is no template {one}", device=one)
        return [found[one] for one in ids]


def _said(kind: _Kind, template: JsonObject) -> list[str]:
    """Return the members of a template, all of which are understood."""
    name = str(template.get(f"{kind.name}TemplateId"))
    plain = texts(template, f"{kind.name}Set")
    remarked = [
        str(one.get(kind.name) or "") for one in children(template, f"{kind.name}ExtraSet")
    ]
    members = [text.strip() for text in (*plain, *remarked) if text.strip()]
    if not members:
        raise UnsupportedError(f"the template {name} says nothing", device=name)
    for text in members:
        try:
            kind.parse(text)
        except ValueError as error:
            raise UnsupportedError(
                f"the template {name} says {text!r}, which is not understood", device=name
            ) from error
    return members
