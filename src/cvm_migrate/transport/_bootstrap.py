"""How an agent comes to run behind a shell, which may be on another machine and which is all that is known there.

1. A script of one line, which any login shell passes on to ``/bin/sh``, becomes root by ``sudo`` if it must, looks
   for the best Python, and says ``MARK python PATH``: what shells print when they start stands before the mark.
2. That Python reads a small loader from standard input, and the loader the zip. It writes the zip to a file that has
   no name any more: whatever is killed then, nothing is left behind.
3. The loader becomes the agent: ``python /proc/PID/fd/N``. That path serves the agent's children too, as long
   as it runs itself.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Sequence
from typing import Final, Literal

from cvm_migrate.errors import (
    AgentLostError,
    PermissionDeniedError,
    ProtocolError,
    UnsupportedError,
)
from cvm_migrate.transport._bundle import agent_bundle
from cvm_migrate.transport._child import Child

PYTHONS: Final = (
    *(f"python3.{minor}" for minor in range(14, 5, -1)),
    "python3",
    "python2.7",
    "python",
    "python2",
    # Enterprise Linux 8 has this one where no python package is installed.
    "/usr/libexec/platform-python",
)
"""What is looked for, best first."""

# Shells' start files may print; one that prints for ever must not fill the memory.
_NOISE: Final = 256 << 10

# No single quote, line break or exclamation mark in these: csh and fish read them before sh does.
_FIND: Final = (
    'm=$1; shift; for p in "$@"; do '
    '"$p" -E -c "import sys;v=sys.version_info[:2];sys.exit(not(v==(2,7)or v>=(3,6)))" '
    "</dev/null >/dev/null 2>&1 && { "
    r'printf "\n%s python %s\n" "$m" "$p"; '
    'exec "$p" -E -s -B -c "import os;'
    "r=lambda n,s=bytes():s if len(s)==n else r(n,s+(os.read(0,n-len(s))or os._exit(9)));"
    'exec(r(int(r(8))))"; }; done; '
    r'printf "\n%s none\n" "$m"; exit 127'
)
_BECOME: Final = (
    'm=$1; if [ "$2" = always ] || { [ "$2" = auto ] && [ "$(id -u)" -ne 0 ]; }; then '
    "e=$(sudo -n /bin/sh -c : 2>&1 </dev/null) || "
    r'{ printf "\n%s sudo %s\n" "$m" "$e"; exit 126; }; '
    'shift 2; exec sudo -n /bin/sh -c "$0" sh "$m" "$@"; fi; '
    'shift 2; exec /bin/sh -c "$0" sh "$m" "$@"'
)

# Python 2.7 and 3.6 and later, by the interpreter that was found.
_LOADER: Final = """\
import os, sys

def read(length):
    parts = []
    while length:
        part = os.read(0, min(length, 1 << 16))
        if not part:
            sys.exit("the line was closed before the whole agent had come")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)

def hide(data):
    reasons = []
    for folder in ("/dev/shm", "/run", "/tmp", "/var/tmp"):
        name = "%s/.cvm-migrate-agent-%d" % (folder, os.getpid())
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.unlink(name)
            left = data
            while left:
                left = left[os.write(fd, left):]
            return fd
        except (IOError, OSError) as error:
            reasons.append("%s: %s" % (folder, error.strerror))
    sys.exit("no folder takes the agent: " + "; ".join(reasons))

def start():
    fd = hide(read(@LENGTH@))
    if hasattr(os, "set_inheritable"):
        os.set_inheritable(fd, True)
    python = sys.executable or @PYTHON@
    path = "/proc/%d/fd/%d" % (os.getpid(), fd)
    if not os.path.exists(path):
        sys.exit("/proc is not mounted: the agent cannot run")
    os.execv(python, [python, "-E", "-s", "-B", path] + @ARGUMENTS@)

start()
"""

Sudo = Literal["auto", "always", "never"]


class Bootstrap:
    """One start of an agent behind a shell.

    Args:
        sudo: Whether to become root: ``auto`` where the login is another user's.
        python: The only interpreter that will do; ``None``: the best of :data:`PYTHONS`.
        arguments: What the agent is started with.
    """

    def __init__(self, *, sudo: Sudo, python: str | None, arguments: Sequence[str]) -> None:
        self._mark = f"cvm-migrate-{secrets.token_hex(16)}"
        self._sudo = sudo
        self._candidates = PYTHONS if python is None else (python,)
        self._arguments = list(arguments)
        self.python = ""

    @property
    def arguments(self) -> list[str]:
        """What ``/bin/sh`` is called with."""
        return ["-c", _BECOME, _FIND, self._mark, self._sudo, *self._candidates]

    @property
    def command(self) -> str:
        """One line for a login shell of whatever kind."""
        return shlex.join(["exec", "/bin/sh", *self.arguments])

    def perform(self, child: Child, *, description: str, patience: float) -> bytes:
        """Bring the agent to *child*, and return what it has said already.

        Args:
            child: The shell, or what leads to it.
            description: What messages call the agent.
            patience: Seconds that it may take.

        Raises:
            UnsupportedError: There is no Python that will do.
            PermissionDeniedError: ``sudo`` asks for a password, or refuses.
            AgentLostError: The shell ended, or nothing came in time.
            ProtocolError: Only noise came.
        """
        end = time.monotonic() + patience
        mark = f"\n{self._mark} ".encode()
        received = b""
        start = -1
        while start < 0 or b"\n" not in received[start:]:
            received += self._more(child, end, description, patience)
            found = received.find(mark)
            start = found + len(mark) if found >= 0 else -1
            if len(received) > _NOISE:
                raise ProtocolError(
                    f"{description}: only noise came, beginning with {received[:80]!r}",
                    remedy="Make the start files of the login shell there silent",
                )
        line, _, rest = received[start:].partition(b"\n")
        what, _, detail = line.decode("utf-8", "replace").partition(" ")
        if what == "none":
            raise UnsupportedError(
                f"{description}: no Python 2.7 or 3.6 and later was found; "
                f"looked for {', '.join(self._candidates)}",
                remedy="Install one of them there, or name the interpreter with python=",
            )
        if what == "sudo":
            raise PermissionDeniedError(
                f"{description}: sudo refuses: {detail}",
                remedy="Log in as root, or allow this user sudo without a password (NOPASSWD in sudoers)",
            )
        if what != "python":
            raise ProtocolError(f"{description}: unknown word {what!r:.40} of the start script")
        self.python = detail
        self._send(child, end, description, patience)
        return rest

    def _more(self, child: Child, end: float, description: str, patience: float) -> bytes:
        left = end - time.monotonic()
        if left <= 0:
            raise AgentLostError(
                f"{description}: the login gave no answer within {patience:g} s", seconds=patience
            )
        _, data = child.exchange(None, min(left, 1.0))
        if not data and not child.output_open:
            child.wait(2.0)
            raise AgentLostError(
                f"{description}: the login ended with exit status {child.returncode}"
            )
        return data

    def _send(self, child: Child, end: float, description: str, patience: float) -> None:
        bundle = agent_bundle()
        loader = (
            _LOADER.replace("@LENGTH@", str(len(bundle)))
            .replace("@PYTHON@", ascii(self.python))
            .replace("@ARGUMENTS@", ascii(self._arguments))
            .encode()
        )
        left = memoryview(b"%08d%b%b" % (len(loader), loader, bundle))
        while left:
            if time.monotonic() > end:
                raise AgentLostError(
                    f"{description}: it did not take its program within {patience:g} s",
                    seconds=patience,
                )
            written, data = child.exchange(left, 1.0)
            left = left[written:]
            if data:
                raise ProtocolError(f"{description}: {data[:80]!r} came before its greeting")
            if not child.output_open:
                child.wait(2.0)
                raise AgentLostError(
                    f"{description}: it ended with exit status {child.returncode}"
                )
