"""A password for OpenSSH's client, which takes one only from a terminal or from a program that it starts.

That program is a script in memory, and the password lies in memory too: both are files without a name of this
process, which no other user can open, and which are gone with it. Nothing of it is on a disk, on a command line or
in an environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from cvm_migrate.closing import Closing
from cvm_migrate.errors import InvalidRequestError, UnsupportedError

# $1 is the question. Only that client gets an answer which this process itself started: the client that OpenSSH starts
# for a jump host has the same environment, but must not learn this password; questions about host keys and
# passphrases get none.
_SCRIPT: Final = """\
#!/bin/sh
case $1 in
*[Pp]assword*) ;;
*) exit 1 ;;
esac
stat=
read -r stat < "/proc/$PPID/stat"
set -- ${stat##*) }
[ "$2" = "@CALLER@" ] || exit 1
answer=
IFS= read -r answer < "/proc/@CALLER@/fd/@SECRET@"
printf "%s\\n" "$answer"
"""


class PasswordHelper(Closing):
    """What makes OpenSSH's client know a password while this context is open.

    Args:
        password: The password; ``None``: nothing is done.

    Raises:
        InvalidRequestError: It has a line break.
        UnsupportedError: This system has no files in memory.
    """

    def __init__(self, password: str | None) -> None:
        self._fds: list[int] = []
        self.environment: dict[str, str] = {}
        if password is None:
            return
        if "\n" in password or "\0" in password or not password:
            raise InvalidRequestError(
                "a password for SSH is one line, and not empty",
                remedy="Give another one, or None to log in with a key",
            )
        secret = self._memory("secret", password.encode() + b"\n", 0o600)
        script = _SCRIPT.replace("@CALLER@", str(os.getpid())).replace("@SECRET@", str(secret))
        program = self._memory("askpass", script.encode(), 0o700)
        self.environment = {
            "SSH_ASKPASS": f"/proc/{os.getpid()}/fd/{program}",
            "SSH_ASKPASS_REQUIRE": "force",
            # Before OpenSSH 8.4 the helper is used where there is a display and no terminal.
            "DISPLAY": os.environ.get("DISPLAY", ":0"),
        }

    def _memory(self, name: str, content: bytes, mode: int) -> int:
        memfd_create: Callable[[str], int] | None = getattr(os, "memfd_create", None)
        if memfd_create is None:
            raise UnsupportedError(
                f"a password for SSH cannot be handed over on {sys.platform}",
                remedy="Use a key, or run this on Linux",
            )
        fd = memfd_create(f"cvm-migrate-{name}")
        self._fds.append(fd)
        os.chmod(fd, mode)  # noqa: PTH101 - it has no path
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(content)
        return fd

    def close(self) -> None:
        """Forget the password."""
        while self._fds:
            os.close(self._fds.pop())
