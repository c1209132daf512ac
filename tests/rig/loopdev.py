"""Loop devices and mounts that are gone afterwards, also when a test is killed.

Each is registered in a ledger folder named after this process; `sweep()` (conftest calls it at the start
and at the end of a run) takes away what processes that no longer live have left.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

_LEDGER = Path(tempfile.gettempdir()) / "cvm-migrate-tests"


def run(*command: str, check: bool = True) -> str:
    """Run a program of the system and return what it printed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _note(kind: str, name: str, backing: str | None = None) -> Path:
    _LEDGER.mkdir(exist_ok=True)
    note = _LEDGER / f"{os.getpid()}-{time.monotonic_ns()}.json"
    # Whole or not at all: other workers read it.
    draft = note.with_suffix(".draft")
    draft.write_text(
        json.dumps({"pid": os.getpid(), "kind": kind, "name": name, "backing": backing})
    )
    draft.rename(note)
    return note


def backing_file(device: str) -> str | None:
    """What a loop device lies on now. Its number alone says nothing: others take it as soon as it is free."""
    try:
        return Path("/sys/block", Path(device).name, "loop", "backing_file").read_text().strip()
    except OSError:
        return None


@contextlib.contextmanager
def loop_device(
    backing: Path, size: int | None = None, *, sector: int = 512, direct: bool = True
) -> Generator[Path]:
    """A loop device over *backing* (a sparse file of *size* bytes is made if it does not exist)."""
    if size is not None:
        with backing.open("ab") as file:
            file.truncate(size)
    options = [f"--sector-size={sector}"] if sector != 512 else []
    device = run("losetup", "--find", "--show", *options, str(backing)).strip()
    attached = backing_file(device)
    note = _note("loop", device, attached)
    try:
        if direct:
            # tmpfs and some sector sizes refuse direct I/O to the backing file: nothing depends on it.
            subprocess.run(["losetup", "--direct-io=on", device], check=False, capture_output=True)
        yield Path(device)
    finally:
        detach(device, attached)
        note.unlink(missing_ok=True)


def detach(device: str, attached: str | None = None) -> None:
    """Detach and wait until the kernel has really let go.

    *attached* is what :func:`backing_file` said: when it says something else, the device is another's by now.
    """
    attached = attached or backing_file(device)
    if attached is None or backing_file(device) != attached:
        return
    run("losetup", "--detach", device, check=False)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        # The name of a deleted file changes, but what is attached is still ours.
        if backing_file(device) not in {attached, f"{attached} (deleted)"}:
            return
        time.sleep(0.02)
    raise RuntimeError(f"{device} is still attached: something holds it open")


def make_file_system(device: Path, kind: str) -> None:
    """Make an ext2, ext3, ext4, xfs or btrfs on *device*."""
    options = {
        "xfs": ["-q", "-f"],
        "btrfs": ["-q", "-f"],
    }.get(kind, ["-q", "-F"])
    run(f"mkfs.{kind}", *options, str(device))


@contextlib.contextmanager
def mounted(device: Path, at: Path, *options: str, kind: str | None = None) -> Generator[Path]:
    """*device* mounted at *at* (made if needed), unmounted afterwards."""
    at.mkdir(parents=True, exist_ok=True)
    extra = ["-o", ",".join(options)] if options else []
    if kind is not None:
        extra += ["-t", kind]
    run("mount", *extra, str(device), str(at))
    note = _note("mount", str(at))
    try:
        yield at
    finally:
        unmount(at)
        note.unlink(missing_ok=True)


def unmount(at: Path) -> None:
    """Unmount, waiting for those who still have files open."""
    end = time.monotonic() + 30
    while True:
        done = subprocess.run(["umount", str(at)], check=False, capture_output=True, text=True)
        if done.returncode == 0 or not os.path.ismount(at):
            return
        if time.monotonic() > end:
            raise RuntimeError(f"umount {at}: {done.stderr.strip()}")
        time.sleep(0.05)


def _started(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks: with its number it names one process for ever."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Processes end while one looks.
            with contextlib.suppress(OSError, IndexError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def note_process(pid: int) -> Path:
    """Have a process and its descendants killed, if it still runs when this one lives no more.

    Remove the note when it has ended.
    """
    return _note("process", f"{pid}:{_started(pid)}")


def _kill(noted: str) -> list[str]:
    """Kill a process that was noted, and its descendants, if it is still the same one."""
    pid, _, started = noted.partition(":")
    if _started(int(pid)) != started:
        return []
    for member in _family(int(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    return [f"process {pid}"]


def sweep() -> list[str]:
    """Take away what processes that no longer live have left; return what it was."""
    left: list[str] = []
    if not _LEDGER.is_dir():
        return left
    notes: list[tuple[Path, dict[str, Any]]] = []
    for note in sorted(_LEDGER.glob("*.json")):
        # Other workers take their own away at any moment.
        with contextlib.suppress(FileNotFoundError):
            notes.append((note, json.loads(note.read_text())))
    for kind in ("process", "mount", "loop"):
        for note, entry in notes:
            if entry["kind"] != kind or Path(f"/proc/{entry['pid']}").exists():
                continue
            name = entry["name"]
            if kind == "process":
                left += _kill(name)
            if kind == "mount" and os.path.ismount(name):
                subprocess.run(["fsfreeze", "--unfreeze", name], check=False, capture_output=True)
                run("umount", "--lazy", name, check=False)
                left.append(f"mount {name}")
            backing = entry.get("backing")
            if kind == "loop" and backing and backing_file(name) == backing:
                run("losetup", "--detach", name, check=False)
                left.append(f"loop device {name}")
            note.unlink(missing_ok=True)
    return left


def read_direct(device: Path, offset: int = 0, length: int | None = None) -> bytes:
    """Read with O_DIRECT what is really on the device (offset and length on 4096-byte multiples)."""
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        end = size if length is None else offset + length
        parts: list[bytes] = []
        with mmap.mmap(-1, 1 << 20) as buffer:
            while offset < end:
                count = os.preadv(fd, [memoryview(buffer)[: min(1 << 20, end - offset)]], offset)
                if count == 0:
                    break
                parts.append(buffer[:count])
                offset += count
        return b"".join(parts)
    finally:
        os.close(fd)


def first_difference(one: Path, other: Path) -> int | None:
    """Offset of the first byte that differs between two devices, read with O_DIRECT; None if none does."""
    with contextlib.ExitStack() as stack:
        fds: list[int] = []
        for path in (one, other):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            stack.callback(os.close, fd)
            fds.append(fd)
        size = min(os.lseek(fd, 0, os.SEEK_END) for fd in fds)
        buffers = [stack.enter_context(mmap.mmap(-1, 1 << 20)) for _ in fds]
        offset = 0
        while offset < size:
            counts = [os.preadv(fd, [b], offset) for fd, b in zip(fds, buffers, strict=True)]
            count = min(*counts, size - offset)
            if count <= 0:
                raise RuntimeError(f"short read at {offset}")
            left, right = (bytes(b[:count]) for b in buffers)
            if left != right:
                return offset + next(i for i in range(count) if left[i] != right[i])
            offset += count
    return None


def write_out(inside: Path) -> None:
    """Write out the one file system that *inside* lies on.

    Not ``sync()``: that waits for every disk of the machine, those that another test has stall among them.
    """
    run("sync", "--file-system", str(inside))
