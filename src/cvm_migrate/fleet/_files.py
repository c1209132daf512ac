"""Plan files: read, checked key by key, turned into plans. Errors name file, table and key."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tomllib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final, Never, cast

import attrs

from cvm_migrate.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from cvm_migrate.fleet._plan import (
    SETTINGS,
    Place,
    Plan,
    Setting,
    check_setting,
    refuse_conflicts,
)
from cvm_migrate.fleet._words import or_rather
from cvm_migrate.migration import Options
from cvm_migrate.units import MiB, parse_size

_LARGEST: Final = 16 * MiB

_PLAN_KEYS: Final = ("name", "source", "target", "force", "options")
_DEFAULT_KEYS: Final = ("source", "target", "force", "options")

# Which options are sizes, that may be written as "50M"; the others are checked by Options itself.
_SIZES: Final = frozenset({"chunk", "bandwidth", "read_limit", "block", "batch"})


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a file that holds one plan.

    Args:
        path: Of a TOML or JSON file.

    Raises:
        InvalidRequestError: It is not a plan file, holds several, or something in it is wrong; the message names
            file, table and key.
        NotFoundError: There is no such file.
        PermissionDeniedError: It cannot be read.
    """
    plans = load_plans(path)
    if len(plans) != 1:
        raise InvalidRequestError(
            f"{os.fspath(path)} holds {len(plans)} plans",
            remedy="Use load_plans(), or a file for each plan",
            device=os.fspath(path),
        )
    return plans[0]


def load_plans(path: str | os.PathLike[str]) -> tuple[Plan, ...]:
    """Read a file that holds one plan, or many with what they share.

    Args:
        path: Of a TOML or JSON file.

    Raises:
        InvalidRequestError: It is not a plan file, or something in it is wrong; the message names file, table and key.
        NotFoundError: There is no such file.
        PermissionDeniedError: It cannot be read.
    """
    file = Path(path)
    top = _Table(file, "", _parse(file, _read(file)))
    if "migrations" not in top.values:
        if "defaults" in top.values:
            top.refuse("defaults", "there are no migrations for it", "Write [[migrations]] tables")
        return (_plan(top, None, name=file.stem),)
    top.only(("defaults", "migrations"))
    defaults = top.table("defaults") if "defaults" in top.values else None
    if defaults is not None:
        defaults.only(_DEFAULT_KEYS)
    tables = top.tables("migrations")
    if not tables:
        top.refuse("migrations", "it is empty", "Write at least one [[migrations]] table")
    plans = tuple(_plan(table, defaults) for table in tables)
    try:
        refuse_conflicts(plans)
    except InvalidRequestError as error:
        raise InvalidRequestError(
            f"{file}: {error.message}", remedy=error.remedy, device=str(file)
        ) from error
    return plans


def _read(file: Path) -> str:
    try:
        if file.is_dir():
            raise InvalidRequestError(
                f"{file} is a directory, not a plan file",
                remedy="Name a file in it, ending in .toml or .json",
                device=str(file),
            )
        if file.exists() and not file.is_file():
            raise InvalidRequestError(
                f"{file} is not a file", remedy="Name a TOML or JSON file", device=str(file)
            )
        with file.open("rb") as opened:
            data = opened.read(_LARGEST + 1)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no plan file {file}", remedy="Look at its path", device=str(file)
        ) from error
    except OSError as error:
        message = f"the plan file {file} cannot be read: {error.strerror}"
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise PermissionDeniedError(
                message, remedy="Give this user the right to read it", device=str(file)
            ) from error
        raise InvalidRequestError(
            message, remedy="Name a file that can be read", device=str(file), errno=error.errno
        ) from error
    if len(data) > _LARGEST:
        raise InvalidRequestError(
            f"{file} is larger than 16 MiB, which no plan is",
            remedy="Name a TOML or JSON file",
            device=str(file),
        )
    try:
        # Editors of Windows put a mark first.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidRequestError(
            f"{file} is not UTF-8: byte {data[error.start]:#04x} in line {line}",
            remedy="Save it as UTF-8",
            device=str(file),
        ) from error


def _parse(file: Path, text: str) -> dict[str, Any]:
    suffix = file.suffix.lower()
    if suffix not in {".toml", ".json"}:
        raise InvalidRequestError(
            f"{file} ends in neither .toml nor .json",
            remedy="Name the file after what is in it",
            device=str(file),
        )
    kind = "TOML" if suffix == ".toml" else "JSON"
    parsed: object
    try:
        if kind == "TOML":
            # TOML's lines end in \n or \r\n, as those of all editors do.
            parsed = tomllib.loads(text)
        else:
            parsed = json.loads(
                text, object_pairs_hook=_no_key_twice, parse_constant=_no_such_number
            )
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidRequestError(
            f"{file} is not {kind}: {why}",
            remedy="Mend it there; docs/reference/plan-files.md has examples",
            device=str(file),
        ) from error
    if not isinstance(parsed, dict):
        raise InvalidRequestError(
            f"{file} holds no object at the top",
            remedy='Write {"source": ..., "target": ...}',
            device=str(file),
        )
    return cast("dict[str, Any]", parsed)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} stands twice in one object")
        found[name] = value
    return found


def _no_such_number(text: str) -> Never:
    raise ValueError(f"{text} is no number of JSON")


@attrs.frozen
class _Table:
    """A table of a file, and where it is."""

    file: Path
    where: str
    values: Mapping[str, Any]

    def refuse(self, key: str, problem: str, remedy: str | None) -> Never:
        """Raise, with file, table and key."""
        place = f"{self.file}: {self.where}: {key}" if self.where else f"{self.file}: {key}"
        raise InvalidRequestError(f"{place}: {problem}", remedy=remedy, device=str(self.file))

    @contextlib.contextmanager
    def about(self, key: str) -> Generator[None]:
        """Let errors within name file, table and *key*."""
        try:
            yield
        except InvalidRequestError as error:
            self.refuse(key, error.message, error.remedy)

    def only(self, known: tuple[str, ...]) -> None:
        """Refuse keys that mean nothing."""
        for key in self.values:
            if key not in known:
                self.refuse(key, "there is no such key here", or_rather(key, known))

    def table(self, key: str) -> _Table:
        """Return a table within this one."""
        value: object = self.values[key]
        if not isinstance(value, dict):
            self.refuse(key, f"it is {_kind(value)}, but must be a table", f"Write [{key}]")
        where = f"{self.where}: {key}" if self.where else key
        return _Table(self.file, where, cast("dict[str, Any]", value))

    def tables(self, key: str) -> list[_Table]:
        """Return the tables of a list."""
        value: object = self.values[key]
        if not isinstance(value, list):
            self.refuse(
                key, f"it is {_kind(value)}, but must be a list of tables", f"Write [[{key}]]"
            )
        found: list[_Table] = []
        for number, item in enumerate(cast("list[object]", value), 1):
            if not isinstance(item, dict):
                self.refuse(f"{key} {number}", f"it is {_kind(item)}, but must be a table", None)
            table = cast("dict[str, Any]", item)
            name = table.get("name")
            named = f" ({name})" if isinstance(name, str) else ""
            found.append(_Table(self.file, f"{key} {number}{named}", table))
        return found

    def flag(self, key: str) -> bool:
        """Return a value that is true or false."""
        value: object = self.values[key]
        if not isinstance(value, bool):
            self.refuse(
                key, f"it is {_kind(value)}, but must be true or false", "Write true or false"
            )
        return value


def _kind(value: object) -> str:
    names: tuple[tuple[type, str], ...] = (
        (bool, "true or false"),
        (str, "a text"),
        (int, "a number"),
        (float, "a number"),
        (list, "a list"),
        (dict, "a table"),
    )
    for kind, name in names:
        if isinstance(value, kind):
            return name
    return "null" if value is None else "a date or time"


def _plan(table: _Table, defaults: _Table | None, *, name: str | None = None) -> Plan:
    table.only(_PLAN_KEYS)
    if "name" not in table.values and name is None:
        table.refuse(
            "name",
            "it is missing",
            'Write name = "web-1", or whatever the folder of its state is to be called',
        )
    force = False
    for one in (defaults, table):
        if one is not None and "force" in one.values:
            force = one.flag("force")
    source = _place(table, defaults, "source")
    target = _place(table, defaults, "target")
    options = _options(table, defaults)
    # A value that is no name is refused as such; its type is the plan's to check.
    given = cast("str", table.values.get("name", name))
    with table.about("source" if source.kind == "cvm" else "name"):
        return Plan(name=given, source=source, target=target, options=options, force=force)


def _place(table: _Table, defaults: _Table | None, key: str) -> Place:
    if key not in table.values:
        example = "ssh://root@host/dev/sda" if key == "source" else "cvm:ap-guangzhou/ins-0a1b2c3d"
        table.refuse(key, "it is missing", f'Write {key} = "{example}"')
    value: object = table.values[key]
    if isinstance(value, str):
        at, own = value, None
    elif isinstance(value, dict):
        own = table.table(key)
        found: object = own.values.get("at")
        if not isinstance(found, str):
            own.refuse("at", "a text is missing here", 'Write at = "ssh://root@host/dev/sda"')
        at = found
    else:
        table.refuse(
            key,
            f"it is {_kind(value)}, but must be a text or a table",
            f'Write {key} = "local:/dev/sdb"',
        )
    shared = None
    if defaults is not None and key in defaults.values:
        shared = defaults.table(key)
        if "at" in shared.values:
            shared.refuse("at", "each migration has a place of its own", "Move it there")
    kind = at.partition(":")[0]
    settings: dict[str, Setting] = {}
    for one in (shared, own):
        if one is not None:
            settings.update(_settings(one, kind))
    where = table if own is None else own
    with where.about(key if own is None else "at"):
        return Place(at, settings)


def _settings(table: _Table, kind: str) -> dict[str, Setting]:
    known = SETTINGS.get(kind, {})
    found: dict[str, Setting] = {}
    for name, value in table.values.items():
        if name == "at":
            continue
        if known:
            # One at a time, so that the message names the key.
            with table.about(name):
                check_setting(name, value, known, kind)
        if known.get(name) is Path:
            # As seen from the file, not from wherever this process was started.
            found[name] = table.file.absolute().parent / Path(value).expanduser()
        else:
            found[name] = value
    return found


def _options(table: _Table, defaults: _Table | None) -> Options:
    known = tuple(field.name for field in attrs.fields(Options))
    given: dict[str, Any] = {}
    for one in (defaults, table):
        if one is None or "options" not in one.values:
            continue
        within = one.table("options")
        within.only(known)
        for name in within.values:
            value = _option(within, name)
            # One at a time, so that the message names the key.
            with within.about(name):
                _ = Options(**{name: value})
            given[name] = value
    return Options(**given)


def _option(table: _Table, name: str) -> Any:  # noqa: ANN401 - the option's type
    value: object = table.values[name]
    if name in _SIZES:
        if isinstance(value, str):
            try:
                return parse_size(value)
            except ValueError:
                table.refuse(
                    name,
                    f"{value!r} is no size",
                    'Write a number with K, M, G or T, such as "50M", or a number of bytes',
                )
        if type(value) is not int:
            table.refuse(
                name,
                f"it is {_kind(value)}, but must be a size",
                'Write "50M", or a whole number of bytes',
            )
    if name == "compare":
        return table.flag(name)
    if name == "rungs":
        return _texts(table, name)
    if isinstance(value, list | dict):
        table.refuse(name, f"it is {_kind(cast('object', value))}, but must be one value", None)
    return value


def _texts(table: _Table, name: str) -> tuple[str, ...]:
    value: object = table.values[name]
    kind = _kind(value)
    words = cast("list[object]", value) if isinstance(value, list) else [value]
    texts = tuple(word for word in words if isinstance(word, str))
    if not isinstance(value, list) or len(texts) != len(words):
        table.refuse(
            name,
            f"it is {kind}, but must be a list of texts",
            'Write ["ebpf", "tracefs"]',
        )
    return texts
