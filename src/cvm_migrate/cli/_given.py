"""What a migration was called with, kept beside its checkpoint, so that giving up needs the directory only.

No secret is among the words: places carry none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from cvm_migrate.errors import InvalidRequestError, NoRoomError, PermissionDeniedError

_FILE: Final = "command.json"
_WORDS: Final = ("source", "target")
_PATHS: Final = ("ssh_config", "identity")


def keep(state: Path, parsed: argparse.Namespace) -> None:
    """Write down the words; the state directory is there, and held by this process.

    Raises:
        NoRoomError: There is no room.
        PermissionDeniedError: It cannot be written.
    """
    words: dict[str, str | None] = {name: getattr(parsed, name) for name in _WORDS}
    for name in _PATHS:
        path: Path | None = getattr(parsed, name)
        words[name] = None if path is None else str(path.absolute())
    new = state / f"{_FILE}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(words, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(state / _FILE)
    except PermissionError as error:
        raise PermissionDeniedError(
            f"{state} cannot be written",
            remedy="Give this process the right to write there, or use another state directory",
            device=str(state),
        ) from error
    except OSError as error:
        raise NoRoomError(f"{state} cannot be written: {error}", device=str(state)) from error


def complete(state: Path, parsed: argparse.Namespace) -> None:
    """Fill in the words that were not given this time.

    Raises:
        InvalidRequestError: There is no such directory, or it does not know them.
        PermissionDeniedError: It cannot be looked into.
    """
    try:
        known = stat.S_ISREG((state / "state.sqlite3").stat().st_mode)
    except PermissionError as error:
        raise PermissionDeniedError(
            f"the state directory {state} cannot be read: {error.strerror}",
            remedy="Call it as the user who ran the migration, or as root",
            device=str(state),
        ) from error
    except OSError:
        known = False
    if not known:
        raise InvalidRequestError(
            f"{state} is no state directory of a migration",
            remedy="Give the same --state as when it was run",
            device=str(state),
        )
    missing = [name for name in _WORDS if getattr(parsed, name) is None]
    if not missing:
        return
    words = _read(state)
    for name in missing:
        setattr(parsed, name, words[name])
    for name in _PATHS:
        path = words[name]
        if getattr(parsed, name) is None and path is not None:
            setattr(parsed, name, Path(path))


def _read(state: Path) -> dict[str, str | None]:
    ask = "Give --source and --target as when it was run"
    try:
        read: Any = json.loads((state / _FILE).read_text(encoding="utf-8"))
        words: dict[str, str | None] = {name: read[name] for name in (*_WORDS, *_PATHS)}
    except (KeyError, TypeError, ValueError, FileNotFoundError):
        words = {}
    except OSError as error:
        raise InvalidRequestError(
            f"{state / _FILE} cannot be read: {error}", remedy=ask, device=str(state)
        ) from error
    if not all(isinstance(words.get(name), str) for name in _WORDS):
        raise InvalidRequestError(
            f"{state} does not say what its migration was called with",
            remedy=ask,
            device=str(state),
        )
    return words
