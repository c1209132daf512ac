"""A migration as a value: where from, where to, how. It pickles, so that it can go to another process."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import attrs

from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.events import Observer
from cvm_migrate.fleet._words import or_rather
from cvm_migrate.migration import (
    CvmTarget,
    Endpoint,
    ImageFile,
    LocalHost,
    Migration,
    Options,
    SshHost,
    parse_cvm,
    parse_endpoint,
)

Setting = str | int | bool | Path

_DATA: Final[Mapping[str, type]] = {"data_host": str, "data_port": int}
_CVM: Final[Mapping[str, type]] = {
    **_DATA,
    "config": Path,
    "drop_snapshots": bool,
    "endpoint": str,
    "jump": str,
    "ledger": str,
    "snapshots": bool,
    "source": str,
    "take_over": bool,
}

# What can be said of a place beside where it is, by its kind; the same names as the endpoints' own.
SETTINGS: Final[Mapping[str, Mapping[str, type]]] = {
    "local": {**_DATA, "python": str, "sudo": bool},
    "image": {**_DATA, "python": str},
    "ssh": {
        **_DATA,
        "config": Path,
        "identity": Path,
        "jump": str,
        "known_hosts": Path,
        "pin_on_first_use": Path,
        "port": int,
        "python": str,
        "sudo": bool,
    },
    "cvm": _CVM,
}

# It names a folder, on whatever file system the state lies.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_SECRETS: Final = {"password", "secret_id", "secret_key", "token", "passphrase"}


def _pairs(
    value: Mapping[str, Setting] | tuple[tuple[str, Setting], ...],
) -> tuple[tuple[str, Setting], ...]:
    # Pairs, so that equal values have one form and a hash.
    settings = dict(value)
    return tuple((name, settings[name]) for name in sorted(settings))


@attrs.frozen
class Place:
    """One side of a migration, as text and settings.

    Attributes:
        at: As the command line writes it: ``local:/dev/sdb``, ``image:/path/file.img``,
            ``ssh://root@host/dev/sda``, ``cvm:REGION/INSTANCE``.
        settings: More about it, by the names of the endpoint's own fields, such as ``identity``.

    Raises:
        InvalidRequestError: There is no such kind of place, or no such setting.
    """

    at: str
    settings: tuple[tuple[str, Setting], ...] = attrs.field(default=(), converter=_pairs)

    def __attrs_post_init__(self) -> None:
        """Refuse now what would fail in a worker later."""
        self.endpoint()

    @property
    def kind(self) -> str:
        """``local``, ``image``, ``ssh`` or ``cvm``."""
        return self.at.partition(":")[0]

    @property
    def identity(self) -> str:
        """What must not change between two runs with the same state."""
        return self.at.partition("?")[0]

    def endpoint(self) -> Endpoint:
        """Return it as an endpoint; nothing is started.

        Raises:
            InvalidRequestError: There is no such kind of place, or no such setting.
        """
        settings: dict[str, Any] = dict(self.settings)
        known = SETTINGS.get(self.kind)
        if known is not None:
            for name, value in settings.items():
                check_setting(name, value, known, self.kind)
        if self.kind == "cvm":
            config = settings.pop("config", None)
            return parse_cvm(
                _with_query(self.at, settings), config=None if config is None else Path(config)
            )
        endpoint = parse_endpoint(self.at)
        if isinstance(endpoint, LocalHost | ImageFile | SshHost):
            return attrs.evolve(endpoint, **settings)
        raise InvalidRequestError(
            f"{self.at!r} cannot stand in a plan", remedy="Write local:, image:, ssh:// or cvm:"
        )

    def disks(self) -> tuple[tuple[str, str], ...]:
        """Return what no two migrations may write to: a machine and a disk of it, each."""
        endpoint = self.endpoint()
        if isinstance(endpoint, CvmTarget):
            # A CVM that waits for migration is in one migration's hands, whatever its disks.
            return ((f"cvm:{endpoint.instance.instance_id}", "all"),)
        if isinstance(endpoint, SshHost):
            # Whoever logs in, it is the same machine; its aliases are known to ssh alone.
            host = endpoint.address.rpartition("@")[2].lower()
            machine = f"ssh://{host}:{endpoint.port or 22}"
            return tuple((machine, os.path.normpath(path)) for path in endpoint.disks)
        # A disk has many names in /dev/disk.
        return tuple(("this machine", os.path.realpath(path)) for path in endpoint.disks)


def check_setting(name: str, value: object, known: Mapping[str, type], kind: str) -> None:
    """Check one setting of a place.

    Raises:
        InvalidRequestError: There is none of that name for this kind of place, or its type is another.
    """
    if name in _SECRETS:
        raise InvalidRequestError(
            f"{name} stands in a plan, which holds no secrets",
            remedy="Use keys or an agent for ssh, and the environment or a profile file for the cloud's keys",
        )
    if name not in known:
        raise InvalidRequestError(
            f"{kind} has no setting {name!r}", remedy=or_rather(name, sorted(known))
        )
    wanted = known[name]
    allowed: tuple[type, ...] = (str, Path) if wanted is Path else (wanted,)
    # bool is an int to Python; nobody means it.
    if not isinstance(value, allowed) or (wanted is int and isinstance(value, bool)):
        what = {
            str: "a text",
            Path: "a path as text",
            int: "a whole number",
            bool: "true or false",
        }
        raise InvalidRequestError(
            f"{name} is {value!r}, but must be {what[wanted]}", remedy=f"Write {what[wanted]}"
        )


def _with_query(at: str, settings: Mapping[str, Setting]) -> str:
    if not settings:
        return at
    words = {
        name: ("yes" if value else "no") if isinstance(value, bool) else str(value)
        for name, value in settings.items()
    }
    return f"{at}{'&' if '?' in at else '?'}{urlencode(words)}"


def _place(value: str | Place) -> Place:
    return Place(value) if isinstance(value, str) else value


def _valid_name(_: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise InvalidRequestError(
            f"{attribute.name} is {value!r}, which cannot name a folder",
            remedy="Use up to 100 letters, digits, dots, hyphens and underscores, a letter or digit first",
        )


@attrs.frozen(kw_only=True)
class Plan:
    """A migration as a value.

    Attributes:
        name: Of its state's folder, and of it in reports.
        source: Where the disks are; a text is read as :attr:`Place.at`.
        target: Where they go.
        options: Limits and choices.
        force: Cut over whatever downtime is predicted, once passes do not help.

    Raises:
        InvalidRequestError: The name is no folder's, or a place is none.
    """

    name: str = attrs.field(validator=_valid_name)
    source: Place = attrs.field(converter=_place)
    target: Place = attrs.field(converter=_place)
    options: Options = attrs.field(factory=Options)
    force: bool = False

    def __attrs_post_init__(self) -> None:
        """Refuse a source that cannot be one."""
        if self.source.kind == "cvm":
            raise InvalidRequestError(
                f"the source of {self.name} is a CVM in waiting for migration, which cannot be one",
                remedy="Name a running one as ssh://root@host/dev/vda",
            )

    def to_migration(
        self,
        *,
        state: str | os.PathLike[str] | None = None,
        observer: Observer | None = None,
    ) -> Migration:
        """Return the migration; nothing is started.

        Args:
            state: Its own state directory; ``None``: what has been reached ends with the object.
                :func:`migrate_many` takes the folder of the plan's name below a given one.
            observer: Called with every event.
        """
        return Migration(
            self.source.endpoint(),
            self.target.endpoint(),
            state=state,
            options=self.options,
            observer=observer,
        )


def refuse_conflicts(plans: Sequence[Plan]) -> None:
    """Refuse plans that would get into each other's way.

    Raises:
        InvalidRequestError: Two have one name or one target, or one writes to what another reads.
    """
    names: dict[str, str] = {}
    writers: dict[tuple[str, str], str] = {}
    for plan in plans:
        # Not every file system tells WEB from web.
        folded = plan.name.casefold()
        if folded in names:
            raise InvalidRequestError(
                f"two plans are named {plan.name}",
                remedy="Give each a name of its own: it names the folder of its state",
            )
        names[folded] = plan.name
        for disk in plan.target.disks():
            if disk in writers:
                raise InvalidRequestError(
                    f"{writers[disk]} and {plan.name} have the same target, {plan.target.identity}",
                    remedy="Give each plan a target of its own",
                )
            writers[disk] = plan.name
    for plan in plans:
        for disk in plan.source.disks():
            if disk in writers:
                raise InvalidRequestError(
                    f"the source of {plan.name}, {plan.source.identity}, is a target of {writers[disk]}",
                    remedy="Give another source or target; what builds on a finished copy belongs in a"
                    " later call, with plans of its own",
                )
