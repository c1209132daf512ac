"""Machines on one network, each in a network namespace, whose paths can be cut one by one.

A namespace lives as long as the process that holds it, and the kernel takes the links away with it. That process ends
some time after its standard input: also after a kill of the test nothing is left, once all others have ended in order.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Literal, TypeVar

import attrs

from rig import loopdev

_Result = TypeVar("_Result")

Paths = Literal["data", "control", "both"]
_CLONE_NEWNET = 0x40000000
# Of the test's own; nothing outside of the namespaces sees it.
_NETWORK = "10.99.7"


@attrs.frozen
class Machine:
    """One machine.

    Attributes:
        name: What it is called.
        holder: The process that holds its network.
        address: Its address.
    """

    name: str
    holder: int
    address: str

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Return what *work* returns in a thread that has this machine's network; threads it starts have it too."""
        results: list[_Result] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                _enter(self.holder)
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
                errors.append(error)

        thread = threading.Thread(target=inside, name=f"on {self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def ip(self, *words: str) -> None:
        """Change its network with ``ip``."""
        _in(self.holder, "ip", *words)

    def carried(self) -> int:
        """Bytes that have gone in and out of it."""
        table = _in(self.holder, "cat", "/proc/net/dev")
        line = next(line for line in table.splitlines() if line.strip().startswith("eth0:"))
        numbers = line.partition(":")[2].split()
        return int(numbers[0]) + int(numbers[8])


@attrs.frozen
class Lan:
    """A caller, a source and a target on one bridge."""

    bridge: int
    caller: Machine
    source: Machine
    target: Machine

    def cut(self, paths: Paths) -> None:
        """Cut the path between source and target, that of the caller to both, or both."""
        if paths != "control":
            # Both still reach the caller, but not each other.
            for port in ("source", "target"):
                self._set(port, "type", "bridge_slave", "isolated", "on")
        if paths != "data":
            self._set("caller", "down")

    def swallow(self, size: int) -> None:
        """Have the network lose packets to the target that are larger than *size*, and tell nobody."""
        # What is not cut into packets yet would pass whatever its size.
        self.source.ip("link", "set", "dev", "eth0", "gso_max_segs", "1")
        self._set("target", "mtu", str(size))

    def mend(self) -> None:
        """Restore everything."""
        for port in ("source", "target"):
            self._set(port, "type", "bridge_slave", "isolated", "off")
        self._set("caller", "up")

    def _set(self, port: str, *what: str) -> None:
        _in(self.bridge, "ip", "link", "set", "dev", port, *what)


def _enter(holder: int) -> None:
    # os.setns is there from Python 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{holder}/ns/net").open("rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _in(holder: int, *command: str) -> str:
    return loopdev.run("nsenter", f"--net=/proc/{holder}/ns/net", *command)


@contextlib.contextmanager
def _namespace() -> Generator[int]:
    """A network namespace with nothing but loopback; the number of the process that holds it."""
    own = Path("/proc/self/ns/net").readlink()
    holder = subprocess.Popen(
        ["unshare", "--net", "/bin/sh", "-c", "cat; exec sleep 30"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    note = loopdev.note_process(holder.pid)
    try:
        end = time.monotonic() + 30
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
            assert holder.poll() is None, "no network namespace can be made"
            assert time.monotonic() < end
            time.sleep(0.01)
        _in(holder.pid, "ip", "link", "set", "dev", "lo", "up")
        yield holder.pid
    finally:
        with holder:
            holder.kill()
        note.unlink(missing_ok=True)


@contextlib.contextmanager
def lan() -> Generator[Lan]:
    """Three machines on one network."""
    with contextlib.ExitStack() as stack:
        bridge = stack.enter_context(_namespace())
        _in(bridge, "ip", "link", "add", "bridge", "type", "bridge")
        _in(bridge, "ip", "link", "set", "dev", "bridge", "up")
        machines: list[Machine] = []
        for number, name in enumerate(("caller", "source", "target"), start=1):
            holder = stack.enter_context(_namespace())
            peer = ("peer", "name", "eth0", "netns", str(holder))
            _in(bridge, "ip", "link", "add", name, "type", "veth", *peer)
            _in(bridge, "ip", "link", "set", "dev", name, "master", "bridge", "up")
            address = f"{_NETWORK}.{number}"
            _in(holder, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            _in(holder, "ip", "link", "set", "dev", "eth0", "up")
            machines.append(Machine(name, holder, address))
        yield Lan(bridge, *machines)
