"""A disk with a partition and a mounted ext4 that a real program keeps busy, and proof of its copy.

For the demo, the examples and callers' own tests. It needs root, ``losetup``, ``partx`` and ``mkfs.ext4``.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import attrs

from cvm_migrate.errors import ConditionError, PermissionDeniedError
from cvm_migrate.units import MiB

_PARTITION_START: Final = MiB
_SECTOR: Final = 512
# "Linux file system" in the partition table of a PC.
_TYPE_LINUX: Final = 0x83


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ConditionError(
            f"{' '.join(command)} failed with exit code {done.returncode}: {said}",
            remedy="Mend what it says, then start again",
        )
    return done.stdout


def _is_root() -> bool:
    if sys.platform == "linux":
        return os.geteuid() == 0
    else:  # noqa: RET505 - the form that mypy narrows for both platforms
        return False


@contextlib.contextmanager
def attached(file: Path) -> Generator[Path]:
    """Attach *file* as a loop device, with its partitions; detached afterwards.

    Raises:
        ConditionError: ``losetup`` or ``partx`` failed.
    """
    device = _run("losetup", "--find", "--show", str(file)).strip()
    try:
        # Direct to the file where its file system can: else each byte is cached twice.
        subprocess.run(["losetup", "--direct-io=on", device], check=False, capture_output=True)
        # Kernels without a partition parser for loop devices need to be told.
        subprocess.run(["partx", "--add", device], check=False, capture_output=True)
        yield Path(device)
    finally:
        subprocess.run(["partx", "--delete", device], check=False, capture_output=True)
        _run("losetup", "--detach", device)


@contextlib.contextmanager
def _mounted(partition: Path, at: Path) -> Generator[Path]:
    at.mkdir(parents=True, exist_ok=True)
    _run("mount", str(partition), str(at))
    try:
        yield at
    finally:
        _unmount(at)


def _unmount(at: Path) -> None:
    """Unmount; a program that was just killed may hold its files for a moment longer."""
    end = time.monotonic() + 15
    while True:
        done = subprocess.run(["umount", str(at)], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if time.monotonic() > end:
            raise ConditionError(f"umount {at}: {done.stderr.strip()}", device=str(at))
        time.sleep(0.05)


def first_partition(device: Path) -> Path:
    """Return the node of the first partition of *device*, such as ``/dev/loop0p1``."""
    infix = "p" if device.name[-1].isdigit() else ""
    return device.with_name(f"{device.name}{infix}1")


def write_partition_table(file: Path, size: int) -> None:
    """Write a PC partition table with one Linux partition from 1 MiB to the end into a file of *size* bytes."""
    start = _PARTITION_START // _SECTOR
    # Status "bootable", no cylinders (they have been ignored for decades), type, first sector, sectors.
    entry = struct.pack(
        "<B3sB3sII",
        0x80,
        b"\xfe\xff\xff",
        _TYPE_LINUX,
        b"\xfe\xff\xff",
        start,
        size // _SECTOR - start,
    )
    with file.open("r+b") as disk:
        disk.truncate(size)
        disk.seek(446)
        disk.write(entry.ljust(64, b"\0") + b"\x55\xaa")


@attrs.frozen
class Proof:
    """What was found on a copy.

    Attributes:
        clean: ``e2fsck`` found nothing to mend after the journal was replayed.
        integrity: What SQLite's ``integrity_check`` says; ``ok`` is good.
        last_transaction: Highest number in the copy's ledger.
        promised: Highest number acknowledged before the freeze; must not be above *last_transaction*.
        missing: Numbers that should be there and are not.
        files: Files in the copy.
    """

    clean: bool
    integrity: str
    last_transaction: int
    promised: int
    missing: int
    files: int

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong and nothing promised is missing."""
        return (
            self.clean
            and self.integrity == "ok"
            and self.missing == 0
            and self.last_transaction >= self.promised
        )


class BusyDisk:
    """A disk that a program is writing to: partition table, ext4, SQLite in WAL mode, file churn.

    A context manager; everything is taken away at the end.

    Args:
        folder: Where the backing file and the mount point are made.
        size: Bytes of the disk.

    Raises:
        PermissionDeniedError: Not root.
    """

    def __init__(self, folder: Path, *, size: int = 512 * MiB) -> None:
        if not _is_root():
            raise PermissionDeniedError(
                "a loop device and a mount need root",
                remedy="Run it as root, or use an image file",
            )
        self.file = folder / "source.img"
        self.mount_point = folder / "source"
        self.size = size
        self._stack = contextlib.ExitStack()
        self._acknowledged = 0
        self._writer: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._device: Path | None = None

    @property
    def device(self) -> Path:
        """The loop device."""
        if self._device is None:
            raise ConditionError("the busy disk is not open")
        return self._device

    @property
    def acknowledged(self) -> int:
        """Highest transaction whose commit has returned."""
        return self._acknowledged

    def __enter__(self) -> Self:
        """Make the disk and start the writer."""
        with contextlib.ExitStack() as stack:
            self.file.touch()
            stack.callback(self.file.unlink, missing_ok=True)
            write_partition_table(self.file, self.size)
            self._device = stack.enter_context(attached(self.file))
            partition = first_partition(self._device)
            _run("mkfs.ext4", "-q", "-F", str(partition))
            stack.enter_context(_mounted(partition, self.mount_point))
            # Half of it full, so that a full sync has something to do: half noise, half text.
            ballast = self.mount_point / "ballast"
            ballast.mkdir()
            for number in range(max(1, self.size // MiB // 32)):
                text = f"line {number} of an old log that nobody reads\n".encode() * 26000
                (ballast / f"log-{number}").write_bytes(text[: 8 * MiB])
                (ballast / f"photo-{number}").write_bytes(os.urandom(6 * MiB))
            stack.callback(self.stop_writer)
            self._start_writer()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the writer and take everything away."""
        self._stack.close()

    def _start_writer(self) -> None:
        command = [sys.executable, "-m", "cvm_migrate.testing._busy_writer", str(self.mount_point)]
        writer = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        self._writer = writer
        self._reader = threading.Thread(target=self._read, args=(writer,), daemon=True)
        self._reader.start()
        end = time.monotonic() + 30
        while self._acknowledged < 20:
            if writer.poll() is not None or time.monotonic() > end:
                raise ConditionError("the writer on the busy disk did not start writing")
            time.sleep(0.01)

    def _read(self, writer: subprocess.Popen[str]) -> None:
        assert writer.stdout is not None  # noqa: S101 - opened with a pipe
        for line in writer.stdout:
            self._acknowledged = int(line)

    def stop_writer(self) -> None:
        """End the writer; can be called more than once."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        assert writer.stdin is not None  # noqa: S101 - opened with a pipe
        writer.stdin.close()
        try:
            writer.wait(30)
        except subprocess.TimeoutExpired:
            writer.kill()
            writer.wait()
        if self._reader is not None:
            self._reader.join(10)
        if writer.stdout is not None:
            writer.stdout.close()


def prove_copy(copy: Path, folder: Path, *, promised: int) -> Proof:
    """Mount a copy of a :class:`BusyDisk` and say whether it is sound.

    Args:
        copy: The copy as a file, or as a block device whose partition has a node.
        folder: Where a mount point may be made.
        promised: Highest transaction acknowledged before the freeze.

    Raises:
        ConditionError: The copy cannot be attached or mounted.
    """
    with contextlib.ExitStack() as stack:
        device = copy if copy.is_block_device() else stack.enter_context(attached(copy))
        if copy.is_block_device():
            subprocess.run(["partx", "--add", str(device)], check=False, capture_output=True)
            stack.callback(
                subprocess.run,
                ["partx", "--delete", str(device)],
                check=False,
                capture_output=True,
            )
        partition = first_partition(device)
        with _mounted(partition, folder / "copy") as at:
            with contextlib.closing(sqlite3.connect(at / "ledger.sqlite")) as database:
                integrity = str(database.execute("PRAGMA integrity_check").fetchone()[0])
                low, high, count = database.execute(
                    "SELECT coalesce(min(number), 0), coalesce(max(number), 0), count(*) FROM ledger"
                ).fetchone()
            files = sum(1 for entry in at.rglob("*") if entry.is_file())
        clean = subprocess.run(
            ["e2fsck", "-f", "-n", str(partition)], check=False, capture_output=True
        )
    return Proof(
        clean=clean.returncode == 0,
        integrity=integrity,
        last_transaction=high,
        promised=promised,
        missing=(high - low + 1 - count) if count else 0,
        files=files,
    )
