"""Disks with a mounted ext4, what was really written to them, and what a tool cost."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

MiB = 1 << 20
GiB = 1 << 30
BUSY = "written-meanwhile"
BUSY_SIZE = 64 * MiB
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=True, capture_output=True, text=True, **options)


@attrs.frozen
class Disks:
    """The source (mounted) and the target, both loop devices over sparse files of one size."""

    source: Path
    target: Path
    mount: Path
    size: int
    folder: Path

    def new_target(self) -> None:
        """Make the target all zeroes again, as new disks are."""
        run("blkdiscard", "--force", str(self.target))


@contextlib.contextmanager
def disks(folder: Path, size: int) -> Iterator[Disks]:
    """Make both; the source's ext4 is half full: half noise, half text."""
    with contextlib.ExitStack() as stack:
        devices = []
        for name in ("source", "target"):
            file = folder / f"{name}.img"
            with file.open("wb") as handle:
                handle.truncate(size)
            stack.callback(file.unlink)
            device = run("losetup", "--find", "--show", str(file)).stdout.strip()
            stack.callback(run, "losetup", "--detach", device)
            run("losetup", "--direct-io=on", device)
            devices.append(Path(device))
        source, target = devices
        run("mkfs.ext4", "-q", "-F", str(source))
        mount = folder / "mounted"
        mount.mkdir()
        run("mount", str(source), str(mount))
        stack.callback(run, "umount", str(mount))
        _fill(mount, size)
        run("sync", "--file-system", str(mount))
        yield Disks(source, target, mount, size, folder)


def _fill(mount: Path, size: int) -> None:
    # What programs write to while a copy is made; there for every tool, as it costs bytes.
    (mount / BUSY).write_bytes(os.urandom(BUSY_SIZE))
    piece = 16 * MiB
    words = [f"{n:x}-word".encode() for n in range(5000)]
    rng = random.Random(7)
    text = b" ".join(rng.choice(words) for _ in range(piece // 6))[:piece]
    for number in range(size // 4 // piece):
        (mount / f"noise-{number}").write_bytes(os.urandom(piece))
        (mount / f"text-{number}").write_bytes(text[number * 64 :] + text[: number * 64])


def mutate(mount: Path, size: int) -> int:
    """Rewrite about 1 % of the disk through the file system, 64 KiB at a time; return bytes."""
    rng = random.Random(time.time_ns())
    files = sorted(mount.glob("noise-*"))
    count = size // 100 // 65536
    for _ in range(count):
        with rng.choice(files).open("r+b") as file:
            file.seek(rng.randrange(16 * MiB // 65536) * 65536)
            file.write(os.urandom(65536))
    run("sync", "--file-system", str(mount))
    return count * 65536


@contextlib.contextmanager
def frozen(mount: Path) -> Iterator[None]:
    fd = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, FITHAW, 0)
    finally:
        os.close(fd)


def wrong_bytes(one: Path, other: Path, size: int) -> int:
    """Bytes in 4096-byte blocks that differ, read with O_DIRECT."""
    wrong = 0
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in (one, other)]
    try:
        with mmap.mmap(-1, 4 * MiB) as left, mmap.mmap(-1, 4 * MiB) as right:
            offset = 0
            while offset < size:
                a = os.preadv(fds[0], [left], offset)
                b = os.preadv(fds[1], [right], offset)
                count = min(a, b, size - offset)
                if count <= 0:
                    raise RuntimeError(f"short read at {offset}")
                x, y = left[:count], right[:count]
                if x != y:
                    wrong += sum(
                        4096
                        for at in range(0, count, 4096)
                        if x[at : at + 4096] != y[at : at + 4096]
                    )
                offset += count
    finally:
        for fd in fds:
            os.close(fd)
    return wrong


@attrs.frozen
class Cost:
    """What a pass cost: seconds, processor seconds, bytes on the wire, largest process in bytes."""

    seconds: float
    cpu: float
    wire: int
    memory: int


def _loopback() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            return int(rest.split()[0])
    raise RuntimeError("no loopback interface")


class _Memory(threading.Thread):
    """Largest resident size of any process below this one, sampled."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest = 0
        self._done = threading.Event()

    def run(self) -> None:
        mine = os.getpid()
        while not self._done.wait(0.1):
            parents = {}
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        parents[int(entry.name)] = int(
                            (entry / "stat").read_text().rpartition(")")[2].split()[1]
                        )
            for pid in parents:
                above = pid
                while above in parents and above != mine:
                    above = parents[above]
                if above == mine and pid != mine:
                    with contextlib.suppress(OSError, IndexError):
                        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                        self.largest = max(self.largest, pages * 4096)

    def stop(self) -> None:
        self._done.set()
        self.join()


@contextlib.contextmanager
def measured() -> Iterator[list[Cost]]:
    """Measure what runs inside; the list holds the cost afterwards. Children must have ended by then."""
    result: list[Cost] = []
    memory = _Memory()
    memory.start()
    wire, cpu, start = _loopback(), _busy(), time.monotonic()
    try:
        yield result
    finally:
        seconds = time.monotonic() - start
        spent = _busy() - cpu
        memory.stop()
        result.append(Cost(seconds, spent, _loopback() - wire, memory.largest))


def _busy() -> float:
    """Processor seconds of the whole machine, kernel included: nothing else runs beside a benchmark."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
