"""A program that keeps a file system busy: numbered SQLite transactions and file churn.

Run as ``python -m cvm_migrate.testing._busy_writer FOLDER``. It prints the number of each transaction after its
commit returned: what it printed has been promised to a client, and must be found in any copy made later. It
ends when its standard input does, with the database closed.
"""

from __future__ import annotations

import os
import random
import select
import sqlite3
import sys
import time
from pathlib import Path

_FILES = 40
_PAUSE = 0.004  # about a hundred commits a second: a small shop's database


def _churn(folder: Path, random_: random.Random, step: int) -> None:
    """Create, overwrite, rename, truncate and delete files, so that metadata changes as well as data."""
    file = folder / f"file-{random_.randrange(_FILES):02d}"
    what = random_.randrange(6)
    if what <= 2:
        file.write_bytes(random_.randbytes(random_.randrange(1, 96 << 10)))
    elif what == 3 and file.exists():
        file.rename(folder / f"file-{random_.randrange(_FILES):02d}")
    elif what == 4 and file.exists():
        os.truncate(file, file.stat().st_size // 2)
    elif file.exists():
        file.unlink()
    if step % 50 == 0:
        (folder / f"directory-{step % 7}").mkdir(exist_ok=True)


def main(folder: Path) -> int:
    """Write until standard input ends; return the exit code."""
    random_ = random.Random(1)  # noqa: S311 - test data
    churned = folder / "churn"
    churned.mkdir(exist_ok=True)
    database = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE IF NOT EXISTS ledger (number INTEGER PRIMARY KEY, body BLOB)")
    number = database.execute("SELECT coalesce(max(number), 0) FROM ledger").fetchone()[0]
    while not select.select([sys.stdin], [], [], 0)[0]:
        number += 1
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO ledger VALUES (?, ?)", (number, random_.randbytes(2048)))
        database.execute("DELETE FROM ledger WHERE number < ?", (number - 2000,))
        database.execute("COMMIT")
        print(number, flush=True)
        _churn(churned, random_, number)
        time.sleep(_PAUSE)
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
