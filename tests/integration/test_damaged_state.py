"""A state directory that was damaged: refused with what to do, and let go of, before anything is written."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from pathlib import Path

import pytest

from cvm_migrate import ImageFile, Migration
from cvm_migrate.errors import CvmMigrateError, InvalidRequestError

MiB = 1 << 20


class _Begun:
    """A migration that has made its first pass, and its state file."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target = folder / "source.img", folder / "target.img"
        self.source.write_bytes(os.urandom(2 * MiB))
        self.folder = folder / "state"
        self.file = self.folder / "state.sqlite3"
        with self.open() as migration:
            migration.prepare()
            migration.full_sync()
        self.good = self.file.read_bytes()

    def open(self) -> Migration:
        return Migration(ImageFile(self.source), ImageFile(self.target), state=self.folder)


@pytest.fixture
def begun(tmp_path: Path) -> _Begun:
    return _Begun(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE disks",
        "UPDATE disks SET touched = x'0102'",
        "UPDATE disks SET pending = 'words'",
        "UPDATE disks SET pending = x'00000000010000000000000000000200'",
        "UPDATE disks SET source = '{'",
        """UPDATE disks SET source = '{"x": 1}'""",
        "UPDATE meta SET value = 'dancing' WHERE name = 'state'",
        "UPDATE meta SET value = '{' WHERE name <> 'state'",
        "UPDATE meta SET value = CAST(x'ff' AS TEXT)",
        "UPDATE passes SET record = '{}'",
        "INSERT INTO findings (record) VALUES ('[]')",
        """INSERT INTO meta VALUES ('cutover', '{"at": 1}')""",
        """INSERT INTO meta VALUES ('tracking', '7')""",
    ],
)
def test_what_makes_no_sense_is_named_as_damage_and_the_directory_is_let_go_of(
    damage: str, begun: _Begun
) -> None:
    with contextlib.closing(sqlite3.connect(begun.file)) as database:
        database.execute(damage)
        database.commit()
    with pytest.raises(InvalidRequestError, match="damaged"):
        begun.open()

    begun.file.write_bytes(begun.good)
    with begun.open() as migration:
        assert migration.status().state == "synced"


def test_a_state_of_a_newer_version_is_refused_and_let_go_of(begun: _Begun) -> None:
    with contextlib.closing(sqlite3.connect(begun.file)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(InvalidRequestError, match="format 99"):
        begun.open()

    begun.file.write_bytes(begun.good)
    begun.open().close()


def test_whatever_bytes_are_wrong_it_is_refused_or_the_copy_is_identical(begun: _Begun) -> None:
    choose = random.Random(7)
    refused = 0
    for _ in range(25):
        content = bytearray(begun.good)
        for _ in range(30):
            content[choose.randrange(len(content))] = choose.randrange(256)
        begun.file.write_bytes(content)
        begun.file.with_name("state.sqlite3-journal").unlink(missing_ok=True)
        try:
            with begun.open() as migration:
                if migration.run().proven:
                    assert begun.target.read_bytes() == begun.source.read_bytes()
        except CvmMigrateError:
            refused += 1

    assert refused
