"""Programs that keep a mounted file system busy, and what must be found in a copy of it.

Run as ``python writers.py FOLDER PAUSE``: random 16 KiB overwrites of a large file, file churn, and numbered SQLite
transactions in WAL mode; the number of each is printed once its commit has returned. It ends when standard input does.

As ``python writers.py steady FILE RATE``: random 16 KiB overwrites of a file at so many bytes per second. At its end it
prints when it had to wait long between two of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import attrs

_FILE = 16 << 20
_BLOCK = 16 << 10
# Between two writes at 5 MB/s lie 3 ms.
_LONG_GAP = 0.02


def write(folder: Path, *, pause: float) -> None:
    """Write until standard input ends."""
    random_ = random.Random(os.getpid())
    churned = folder / "churn"
    churned.mkdir(exist_ok=True)
    large = os.open(folder / "large", os.O_RDWR | os.O_CREAT)
    os.ftruncate(large, _FILE)
    database = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE IF NOT EXISTS ledger (number INTEGER PRIMARY KEY, body BLOB)")
    number = 0
    while not select.select([sys.stdin], [], [], pause)[0]:
        number += 1
        os.pwrite(large, random_.randbytes(_BLOCK), random_.randrange(_FILE // _BLOCK) * _BLOCK)
        _churn(churned, random_)
        if number % 4 == 0:
            database.execute("INSERT INTO ledger VALUES (?, ?)", (number, random_.randbytes(1500)))
            database.execute("DELETE FROM ledger WHERE number < ?", (number - 2000,))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
    database.close()
    os.close(large)


def _churn(folder: Path, random_: random.Random) -> None:
    file = folder / f"file-{random_.randrange(30):02d}"
    what = random_.randrange(8)
    if what <= 2:
        file.write_bytes(random_.randbytes(random_.randrange(1, 64 << 10)))
    elif what == 3 and file.exists():
        file.rename(folder / f"file-{random_.randrange(30):02d}")
    elif what == 4 and file.exists():
        os.truncate(file, file.stat().st_size // 2)
    elif what == 5 and file.exists():
        file.unlink()


class Writer:
    """A running writer."""

    def __init__(self, folder: Path, *, pause: float) -> None:
        self.acknowledged = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder), str(pause)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.acknowledged = int(line)

    def wait_for(self, number: int) -> None:
        """Wait until that transaction has been acknowledged."""
        end = time.monotonic() + 60
        while self.acknowledged < number:
            assert self._process.poll() is None, "the writer ended"
            assert time.monotonic() < end, "the writer makes no progress"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it; can be called more than once."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def writing(folder: Path, *, pause: float = 0.005) -> Generator[Writer]:
    """A writer that writes about ``1 / pause`` times a second while the block runs."""
    writer = Writer(folder, pause=pause)
    try:
        writer.wait_for(8)
        yield writer
    finally:
        writer.stop()


def ledger(folder: Path) -> tuple[str, int]:
    """What SQLite says of a copy's database: its integrity check, and the highest number in it."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as database:
        integrity = str(database.execute("PRAGMA integrity_check").fetchone()[0])
        highest = database.execute("SELECT coalesce(max(number), 0) FROM ledger").fetchone()[0]
    return integrity, highest


def write_steadily(file: Path, *, rate: float) -> None:
    """Overwrite random blocks until standard input ends; then print how many, and the long gaps, as JSON."""
    random_ = random.Random(3)
    blocks = file.stat().st_size // _BLOCK
    gaps: list[tuple[float, float]] = []
    count = 0
    fd = os.open(file, os.O_WRONLY)
    sys.stdout.write("started\n")
    sys.stdout.flush()
    began = last = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, began + count * _BLOCK / rate - last))[
        0
    ]:
        os.pwrite(fd, random_.randbytes(_BLOCK), random_.randrange(blocks) * _BLOCK)
        count += 1
        if count % 64 == 0:
            os.fdatasync(fd)
        now = time.monotonic()
        if now - last > _LONG_GAP:
            gaps.append((last, now))
        last = now
    os.close(fd)
    sys.stdout.write(json.dumps({"count": count, "seconds": last - began, "gaps": gaps}) + "\n")


@attrs.define
class SteadyWriter:
    """What a steady writer did, once it has ended; moments are of ``time.monotonic``, which all processes share."""

    written: int = 0
    seconds: float = 0.0
    gaps: list[tuple[float, float]] = attrs.field(factory=list[tuple[float, float]])

    def pause_at(self, moment: float) -> float:
        """Seconds between the last write before *moment* and the first one after it; 0 for a usual gap."""
        return max(
            (end - begin for begin, end in self.gaps if begin <= moment <= end), default=0.0
        )


@contextlib.contextmanager
def writing_steadily(file: Path, *, rate: float) -> Generator[SteadyWriter]:
    """Random 16 KiB writes into *file* at *rate* bytes per second while the block runs."""
    result = SteadyWriter()
    process = subprocess.Popen(
        [sys.executable, __file__, "steady", str(file), str(rate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "started\n"
        yield result
        out, _ = process.communicate(timeout=60)
        told = json.loads(out)
        result.written = told["count"] * _BLOCK
        result.seconds = told["seconds"]
        result.gaps = [(begin, end) for begin, end in told["gaps"]]
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    if sys.argv[1] == "steady":
        write_steadily(Path(sys.argv[2]), rate=float(sys.argv[3]))
    else:
        write(Path(sys.argv[1]), pause=float(sys.argv[2]))
