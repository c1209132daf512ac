"""What a migration remembers across processes; the format is in ``docs/reference/state.md``."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import sys
import threading
from collections.abc import Generator, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from cvm_migrate.errors import (
    ConditionError,
    InvalidRequestError,
    NoRoomError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
)
from cvm_migrate.migration._steps import State
from cvm_migrate.model import ExtentMap

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


SCHEMA_VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE disks (
    disk INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    size INTEGER NOT NULL,
    touched BLOB NOT NULL,
    pending BLOB NOT NULL
);
CREATE TABLE passes (number INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE findings (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
"""


@attrs.frozen
class DiskIdentity:
    """What a disk is recognised by when a migration goes on.

    Attributes:
        path: As the caller named it.
        size: Bytes.
        serial: The device's serial number, where it has one; it decides.
        backing_file: Of a loop device.
    """

    path: str
    size: int
    serial: str | None = None
    backing_file: str | None = None

    def is_same(self, other: DiskIdentity) -> bool:
        """Whether both are the same disk, as far as can be told; names may change, serial numbers don't."""
        if self.size != other.size:
            return False
        if self.serial is not None and other.serial is not None:
            return self.serial == other.serial
        if self.backing_file is not None and other.backing_file is not None:
            return self.backing_file == other.backing_file
        return self.path == other.path


@attrs.frozen
class DiskRecord:
    """How far one disk is.

    Attributes:
        touched: Ranges that may have reached the target: compared when a new process goes on.
        pending: Ranges known to be on the way or to differ: sent without comparing.
    """

    disk: int
    source: DiskIdentity
    target: DiskIdentity
    touched: ExtentMap
    pending: ExtentMap

    def check(self) -> None:
        """Raise if it makes no sense.

        Raises:
            ValueError: It does not.
        """
        whole = ExtentMap.whole(self.source.size)
        if (self.touched | self.pending) - whole:
            raise ValueError(f"disk {self.disk} ends at {self.source.size}, its ranges later")


class Checkpoint:
    """One state directory, held by one process at a time; or memory only, where there is no directory.

    Args:
        folder: Made if it does not exist; ``None`` remembers nothing beyond this process.

    Raises:
        InvalidRequestError: Another process holds it, or it is of another version.
        NoRoomError: Its file system is full.
        PermissionDeniedError: It cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock_fd: int | None = None
        # Agents' answers arrive in threads; one lock serves them all.
        self._mutex = threading.RLock()
        try:
            if folder is not None:
                _make(folder)
                self._lock_fd = _take_lock(folder)
            self._db = _open(folder)
        except BaseException:
            self._release_lock()
            raise
        self.notes: MutableMapping[str, str] = _Table(self, "notes")
        self._meta: MutableMapping[str, str] = _Table(self, "meta")

    @property
    def lasting(self) -> bool:
        """Whether it is there for another process, too."""
        return self._folder is not None

    @property
    def state(self) -> State:
        """What has been reached."""
        return State(self._meta.get("state", State.NEW.value))

    def set_state(self, state: State) -> None:
        """Remember what has been reached."""
        self._meta["state"] = state.value

    def get(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        """Return a remembered JSON value; ``None`` if there is none."""
        text = self._meta.get(name)
        return None if text is None else json.loads(text)

    def put(self, name: str, value: object) -> None:
        """Remember a JSON value."""
        self._meta[name] = json.dumps(value)

    def disks(self) -> list[DiskRecord]:
        """Return what is known of the disks, in order."""
        with self.guard() as db:
            rows = db.execute(
                "SELECT disk, source, target, touched, pending FROM disks ORDER BY disk"
            ).fetchall()
        return [
            DiskRecord(
                disk=disk,
                source=DiskIdentity(**json.loads(source)),
                target=DiskIdentity(**json.loads(target)),
                touched=ExtentMap.from_wire(touched),
                pending=ExtentMap.from_wire(pending),
            )
            for disk, source, target, touched, pending in rows
        ]

    def save_disks(self, records: Sequence[DiskRecord]) -> None:
        """Replace what is known of these disks, all or none."""
        with self.guard() as db, db:
            db.executemany(
                "INSERT OR REPLACE INTO disks (disk, source, target, size, touched, pending)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        record.disk,
                        json.dumps(attrs.asdict(record.source)),
                        json.dumps(attrs.asdict(record.target)),
                        record.source.size,
                        record.touched.to_wire(),
                        record.pending.to_wire(),
                    )
                    for record in records
                ],
            )

    def forget_disks(self) -> None:
        """Begin anew: nothing is known of any disk."""
        with self.guard() as db, db:
            db.execute("DELETE FROM disks")

    def records(self, table: Literal["passes", "findings"]) -> list[dict[str, Any]]:
        """Return the stored passes or findings, oldest first."""
        with self.guard() as db:
            rows = db.execute(f"SELECT record FROM {table} ORDER BY 1").fetchall()  # noqa: S608 - a literal
        return [json.loads(record) for (record,) in rows]

    def add_pass(self, number: int, record: dict[str, Any]) -> None:
        """Store a pass under its number."""
        with self.guard() as db, db:
            db.execute(
                "INSERT OR REPLACE INTO passes (number, record) VALUES (?, ?)",
                (number, json.dumps(record)),
            )

    def add_finding(self, record: dict[str, Any]) -> None:
        """Store a finding."""
        with self.guard() as db, db:
            db.execute("INSERT INTO findings (record) VALUES (?)", (json.dumps(record),))

    def close(self) -> None:
        """Let go; can be called more than once."""
        with self._mutex:
            self._db.close()
            self._release_lock()

    @contextlib.contextmanager
    def intact(self) -> Generator[None]:
        """Around the reading of what is stored: what makes no sense is damage.

        Raises:
            InvalidRequestError: Something did not.
        """
        try:
            yield
        except InvalidRequestError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, ProtocolError) as error:
            said = error.message if isinstance(error, ProtocolError) else error
            raise _damaged(self._folder, f"{type(error).__name__}: {said}") from error

    @contextlib.contextmanager
    def guard(self) -> Generator[sqlite3.Connection]:
        """One user of the database at a time, and its errors as ours."""
        with self._mutex:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise _translate(error, self._folder) from error
            except UnicodeDecodeError as error:
                # Of a message that quotes what is damaged.
                raise _damaged(self._folder, str(error)) from error

    def _release_lock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


class _Table(MutableMapping[str, str]):
    """A table of names and texts as a mapping; every change is on the disk when it returns."""

    def __init__(self, checkpoint: Checkpoint, name: Literal["meta", "notes"]) -> None:
        self._checkpoint = checkpoint
        self._select = f"SELECT value FROM {name} WHERE name = ?"  # noqa: S608 - a literal
        self._names = f"SELECT name FROM {name} ORDER BY name"  # noqa: S608
        self._replace = f"INSERT OR REPLACE INTO {name} (name, value) VALUES (?, ?)"  # noqa: S608
        self._delete = f"DELETE FROM {name} WHERE name = ?"  # noqa: S608

    def __getitem__(self, name: str) -> str:
        with self._checkpoint.guard() as db:
            row = db.execute(self._select, (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        text: str = row[0]
        return text

    def __setitem__(self, name: str, value: str) -> None:
        with self._checkpoint.guard() as db, db:
            db.execute(self._replace, (name, value))

    def __delitem__(self, name: str) -> None:
        with self._checkpoint.guard() as db, db:
            if db.execute(self._delete, (name,)).rowcount == 0:
                raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        with self._checkpoint.guard() as db:
            names = [name for (name,) in db.execute(self._names)]
        return iter(names)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _os_error(error, folder) from error


def _take_lock(folder: Path) -> int:
    """The kernel releases it when this process ends, however it ends."""
    try:
        # Python's descriptors are closed on exec, so no child keeps the lock.
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _os_error(error, folder) from error
    try:
        _lock(fd)
    except OSError as error:
        os.close(fd)
        raise InvalidRequestError(
            f"another process works with the state directory {folder}",
            remedy="Wait for it to end, or give this migration a state directory of its own",
            device=str(folder),
        ) from error
    return fd


def _open(folder: Path | None) -> sqlite3.Connection:
    name = ":memory:" if folder is None else str(folder / "state.sqlite3")
    try:
        db = sqlite3.connect(name, check_same_thread=False)
        try:
            # No memory-mapped file anywhere (so no write-ahead log, whose index is one): on a full or failing
            # disk that would be a SIGBUS instead of an error.
            db.execute("PRAGMA mmap_size = 0")
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute("PRAGMA synchronous = FULL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
            elif version != SCHEMA_VERSION:
                raise InvalidRequestError(  # noqa: TRY301 - closes the database on its way
                    f"the state in {folder} has format {version}, this version reads {SCHEMA_VERSION}",
                    remedy="Use the version of cvm_migrate that wrote it, or a new state directory",
                    device=str(folder),
                )
            else:
                found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise _damaged(folder, found)  # noqa: TRY301 - closes the database on its way
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise _translate(error, folder) from error
    except UnicodeDecodeError as error:
        raise _damaged(folder, str(error)) from error
    return db


def _translate(error: sqlite3.Error, folder: Path | None) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    # Where no file can be made any more, SQLite only says that it cannot open its journal.
    if primary == sqlite3.SQLITE_FULL or (
        primary == sqlite3.SQLITE_CANTOPEN and _has_no_room(folder)
    ):
        return NoRoomError(f"no room for the state in {folder}", device=str(folder))
    # Our statements are right, so that a general error is one of the tables; without a code a text is no text.
    damage = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR}
    if primary in damage or (primary is None and isinstance(error, sqlite3.OperationalError)):
        return _damaged(folder, str(error))
    if primary in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return PermissionDeniedError(
            f"the state in {folder} cannot be written: {error}",
            remedy="Give this process the right to write there, or use another state directory",
            device=str(folder),
        )
    return ConditionError(
        f"the state in {folder}: {error}",
        remedy="Look at that folder's disk and free space, then repeat the step",
        device=str(folder),
    )


def _damaged(folder: Path | None, evidence: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{folder}/state.sqlite3 is not a state of a migration, or it is damaged: {evidence:.200}",
        remedy="Remove it, or use another state directory; the first pass then compares instead of sending"
        " all, with Options(compare=True)",
        device=str(folder),
    )


def _has_no_room(folder: Path | None) -> bool:
    statvfs = getattr(os, "statvfs", None)
    if folder is None or statvfs is None:
        return False
    try:
        room = statvfs(folder)
    except OSError:
        return False
    # File systems without a table of inodes count none.
    return bool(room.f_bavail == 0 or (room.f_files > 0 and room.f_favail == 0))


def _os_error(error: OSError, folder: Path) -> Exception:
    message = f"the state directory {folder}: {error.strerror}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoRoomError(message, device=str(folder), errno=error.errno)
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return PermissionDeniedError(
            message, remedy="Give one that can be written", device=str(folder), errno=error.errno
        )
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}:
        return NotFoundError(
            message,
            remedy="Name a directory; the one above it must be there",
            device=str(folder),
            errno=error.errno,
        )
    return ConditionError(
        message,
        remedy="Look at its disk, or name another one",
        device=str(folder),
        errno=error.errno,
    )
