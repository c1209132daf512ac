"""Processes of a test, found by a mark in their environment or by their parent."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

MARK = "CVM_MIGRATE_TEST_MARK"


def marked(mark: str) -> dict[int, str]:
    """Number and command line of every live process that inherited *mark*, this one left out."""
    wanted = f"{MARK}={mark}".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # Processes end while one looks.
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if command:
                    found[int(entry.name)] = command
    return found


def tracers(mark: str) -> list[int]:
    """Numbers of the live processes with *mark* that trace a disk."""
    return [pid for pid, command in marked(mark).items() if "import tracer" in command]


def instances(makers: Iterable[int]) -> list[str]:
    """Names of the tracing instances that these processes made and that are still there."""
    folder = Path("/sys/kernel/tracing/instances")
    return [one.name for pid in makers for one in folder.glob(f"cvm_migrate_{pid}_*")]


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def runs(pid: int) -> bool:
    """Whether a process lives: a zombie, which waits for its parent alone, does not."""
    stat = _stat(pid)
    return bool(stat) and stat[0] != "Z"


def children(parent: int, word: str = "") -> list[int]:
    """Numbers of the children of a process whose command line has *word*; without a word, zombies too."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if int(_stat(int(entry.name))[1]) == parent and word in command:
                found.append(int(entry.name))
    return found


def kill(pid: int) -> bool:
    """Kill one process; whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Wait for a condition; fail, saying *what* was waited for, if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
