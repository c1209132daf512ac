"""The rescue system of an instance, as the simulated cloud starts and ends it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cvm_migrate.errors import (
    ConditionError,
    InvalidRequestError,
    PermissionDeniedError,
    UnsupportedError,
)

_log: Final = logging.getLogger("cvm_migrate.testing")

_PROGRAM: Final = Path(__file__).with_name("_rescue_program.py")
_NEEDED: Final = ("sshd", "unshare", "mount", "umount", "pivot_root", "chpasswd")
# Seconds until the supervisor, which has patience of its own, is killed.
_PATIENCE: Final = 90.0
_NAME: Final = re.compile(r"(?:vd|sd|hd|xvd)[a-z]")
# As many characters of a serial number does virtio show.
_SERIAL: Final = 20


@attrs.frozen
class RescueDisk:
    """A disk of an instance as its rescue system is given it."""

    path: Path
    disk_id: str


@attrs.frozen
class Shown:
    """How a rescue system shows disks.

    Attributes:
        names: Of the instance's disks, the system disk's first; those beyond take the first ones free from ``vda`` on.
        serials: Whether an instance's disk has its id as the serial number.
        own: Disks of the rescue system's own by their names, which have no serial number.

    Raises:
        InvalidRequestError: A name is no disk's, or given twice.
    """

    names: tuple[str, ...] = ()
    serials: bool = True
    own: Mapping[str, Path] = attrs.Factory(dict[str, Path])

    def __attrs_post_init__(self) -> None:
        """Look at the names."""
        given = [*self.names, *self.own]
        for name in given:
            if not _NAME.fullmatch(name):
                raise InvalidRequestError(
                    f"{name!r} is no disk's name", remedy="Write it as vdb, or sda"
                )
        if len(set(given)) != len(given):
            raise InvalidRequestError(
                f"not a name for each disk: {', '.join(given)}", remedy="Give each name once"
            )

    def arrange(self, disks: Sequence[RescueDisk]) -> list[dict[str, str | None]]:
        """Return the file, the name and the serial number of each disk."""
        names = list(self.names)
        taken = {*names, *self.own}
        names += [
            name for name in (f"vd{chr(number)}" for number in range(97, 123)) if name not in taken
        ]
        arranged: list[dict[str, str | None]] = [
            {
                "file": str(disk.path),
                "name": name,
                "serial": disk.disk_id[:_SERIAL] if self.serials else None,
            }
            for disk, name in zip(disks, names, strict=False)
        ]
        arranged += [
            {"file": str(path), "name": name, "serial": None} for name, path in self.own.items()
        ]
        return arranged


class RescueSystem:
    """A real sshd in namespaces of its own, in which ``/dev/vda`` is the instance's system disk, unless told otherwise.

    Args:
        address: Where sshd listens.
        port: Its port; 0: one of its own, which nothing else takes while this object lives.
        folder: Where its log lies.
        python: The only interpreter there; ``None``: the machine's own.
        network: A file such as ``/run/netns/target``; ``None``: this process's network.
        shown: How it shows disks; can be changed until it is started.
        simulated: Nothing is started; the state is all there is.
    """

    def __init__(
        self,
        *,
        address: str,
        port: int,
        folder: Path,
        python: Path | None,
        network: Path | None,
        shown: Shown,
        simulated: bool,
    ) -> None:
        self.address = address
        self.shown = shown
        self._folder = folder
        self._python = python
        self._network = network
        self._simulated = simulated
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._last: tuple[str, tuple[RescueDisk, ...], str] | None = None
        self._place: socket.socket | None = None
        self.host_key: str | None = None
        if port == 0 and network is None:
            # Bound, but not listening: connections are refused, and no other program is given the port. sshd can
            # bind it as well, because both say SO_REUSEADDR and only one listens.
            self._place = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._place.bind((address, 0))
            port = int(self._place.getsockname()[1])
        self.port = port or 22

    @property
    def log(self) -> Path:
        """What sshd says."""
        return self._folder / f"rescue-{self.port}.log"

    def start(self, password: str, disks: Sequence[RescueDisk]) -> None:
        """Start it, with a new host key; return when sshd answers.

        Raises:
            PermissionDeniedError: Not root.
            UnsupportedError: This machine lacks something that it needs.
            ConditionError: It did not start; the message says why.
        """
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
        self._start(password, tuple(disks), private)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        self.host_key = public.decode()

    def restart(self) -> None:
        """End it and start it again with the same password and host key.

        Raises:
            ConditionError: As for :meth:`start`.
        """
        with self._lock:
            last = self._last
            self.stop()
            if last is not None:
                self._start(*last)

    def stop(self) -> None:
        """End it, and everything that runs in it; its disks are ordinary files again."""
        with self._lock:
            process, self._process = self._process, None
            self._last = None
            if process is not None:
                _end(process)

    def close(self) -> None:
        """End it and give its port back."""
        self.stop()
        if self._place is not None:
            self._place.close()
            self._place = None

    def _start(self, password: str, disks: tuple[RescueDisk, ...], host_key: str) -> None:
        with self._lock:
            self.stop()
            self._last = password, disks, host_key
            if self._simulated:
                return
            _check_machine()
            request = {
                "address": self.address,
                "port": self.port,
                "password": password,
                "host_key": host_key,
                "disks": self.shown.arrange(disks),
                "python": None if self._python is None else str(self._python),
                "network": None if self._network is None else str(self._network),
            }
            self._process = self._launch(request)

    def _launch(self, request: dict[str, Any]) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self.log.open("ab"))
            failure = stack.enter_context(contextlib.ExitStack())
            # Mounted upon in the rescue system's namespace only: here it stays empty, and can be removed at the end.
            folder = Path(tempfile.mkdtemp(prefix="rescue-", dir=self._folder))
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), "supervise"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
            failure.callback(_end, process)
            assert process.stdin is not None  # noqa: S101 - opened with a pipe
            assert process.stdout is not None  # noqa: S101 - opened with a pipe
            line = b""
            with contextlib.suppress(BrokenPipeError):
                said = json.dumps({**request, "folder": str(folder)}).encode() + b"\n"
                process.stdin.write(said)
                process.stdin.flush()
                line = process.stdout.readline()
            answer: dict[str, Any] = json.loads(line) if line else {}
            if not answer.get("ready"):
                why = answer.get("error") or f"it ended without a word: see {self.log}"
                raise ConditionError(f"the rescue system did not start: {why}")
            failure.pop_all()
            return process


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None  # noqa: S101 - opened with a pipe
    assert process.stdout is not None  # noqa: S101 - opened with a pipe
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        _log.warning("the rescue system's supervisor %d does not end: killed", process.pid)
        process.kill()
        process.wait()
    process.stdout.close()


def _is_root() -> bool:
    if sys.platform == "linux":
        return os.geteuid() == 0
    else:  # noqa: RET505 - the form that mypy narrows for both platforms
        return False


def _check_machine() -> None:
    if platform.system() != "Linux":
        raise UnsupportedError(
            "a rescue system needs Linux", remedy="Use rescue_system='none' for the states alone"
        )
    if not _is_root():
        raise PermissionDeniedError(
            "a rescue system's disks and namespaces need root",
            remedy="Run it as root, or use rescue_system='none' for the states alone",
        )
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in _NEEDED if shutil.which(name, path=path) is None]
    if missing:
        raise UnsupportedError(
            f"a rescue system needs {', '.join(missing)}",
            remedy="Install openssh-server, util-linux and passwd",
        )
