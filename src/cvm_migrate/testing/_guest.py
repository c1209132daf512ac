"""An instance's own system: its disks, booted under QEMU in software emulation."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cvm_migrate.errors import ConditionError, UnsupportedError

_log: Final = logging.getLogger("cvm_migrate.testing")

_LIFELINE: Final = Path(__file__).with_name("_lifeline.py")
_QEMU: Final = "qemu-system-x86_64"
# Seconds.
_SOFT: Final = 60.0
_PATIENCE: Final = 30.0


class Guest:
    """What runs while the instance is ``RUNNING``.

    Args:
        address: Where its port 22 can be reached.
        port: The port there.
        folder: Where its console's log lies.
        memory: Bytes.
        network: A file such as ``/run/netns/target``; ``None``: this process's network.
        simulated: Nothing is booted; the state is all there is.
    """

    def __init__(
        self,
        *,
        address: str,
        port: int,
        folder: Path,
        memory: int,
        network: Path | None,
        simulated: bool,
    ) -> None:
        self._address = address
        self._port = port
        self._memory = memory
        self._network = network
        self._simulated = simulated
        self.console = folder / f"console-{port}.log"
        # The path of a Unix socket must be short.
        self._monitor = folder / f"q{port}"
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, disks: Sequence[Path]) -> None:
        """Power it on; whether a system answers is another question.

        Raises:
            UnsupportedError: QEMU is not installed.
            ConditionError: QEMU ended at once; the message says why.
        """
        if self._simulated:
            return
        program = shutil.which(_QEMU)
        if program is None:
            raise UnsupportedError(
                f"{_QEMU} is not installed", remedy="Install qemu-system-x86, or use boot='none'"
            )
        with self._lock:
            self.stop(soft=False)
            self._monitor.unlink(missing_ok=True)
            enter = ["nsenter", f"--net={self._network}"] if self._network else []
            command = [*enter, program, *self._options(disks)]
            with self.console.with_suffix(".qemu").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_LIFELINE), *command],
                    stdin=subprocess.PIPE,
                    stderr=log,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
            self._process = process
            end = time.monotonic() + _PATIENCE
            while not self._monitor.exists():
                if process.poll() is not None or time.monotonic() > end:
                    self.stop(soft=False)
                    said = self.console.with_suffix(".qemu").read_text().strip()
                    raise ConditionError(f"QEMU did not start: {said or 'no reason given'}")
                time.sleep(0.02)

    def _options(self, disks: Sequence[Path]) -> list[str]:
        forward = f"hostfwd=tcp:{self._address}:{self._port}-:22"
        options = [
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
            *(
                "-m",
                f"{self._memory >> 20}M",
                "-display",
                "none",
                "-no-user-config",
                "-nodefaults",
            ),
            *("-vga", "none", "-serial", f"file:{self.console}"),
            *("-qmp", f"unix:{self._monitor},server=on,wait=off"),
            *("-netdev", f"user,id=net0,{forward}"),
            # Without its boot ROM, which is another package.
            *("-device", "virtio-net-pci,netdev=net0,romfile="),
        ]
        for index, disk in enumerate(disks):
            options += [
                "-drive",
                f"file={disk},format=raw,if=virtio,index={index},cache=writeback",
            ]
        return options

    def restart(self, disks: Sequence[Path], *, soft: bool) -> None:
        """Power it off and on.

        Raises:
            ConditionError: As for :meth:`start`.
        """
        self.stop(soft=soft)
        self.start(disks)

    def stop(self, *, soft: bool) -> None:
        """Power it off: *soft* asks its system first, and waits a while for it."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            if soft and process.poll() is None:
                self._ask_to_power_down()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_SOFT)
            if process.stdin is not None:
                process.stdin.close()
            process.wait()

    def _ask_to_power_down(self) -> None:
        if sys.platform != "win32":
            try:
                with socket.socket(socket.AF_UNIX) as monitor:
                    monitor.settimeout(_PATIENCE)
                    monitor.connect(str(self._monitor))
                    _power_down(monitor)
            except (OSError, ValueError) as error:
                _log.debug("the guest cannot be asked to power down: %s", error)


def _power_down(monitor: socket.socket) -> None:
    """Say it in QEMU's monitor protocol, and wait until it is understood."""
    with monitor.makefile("rb") as reader:
        reader.readline()
        for name in ("qmp_capabilities", "system_powerdown"):
            monitor.sendall(json.dumps({"execute": name}).encode() + b"\n")
            answer: dict[str, Any] = {}
            while "return" not in answer and "error" not in answer:
                answer = json.loads(reader.readline())
