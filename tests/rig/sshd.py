"""A real sshd, on a loopback port or in a network of its own, with a file system view of its own.

It runs in its own mount namespace: ``/etc/passwd``, ``/etc/shadow``, ``/dev/shm`` and root's home are its own, so that
nothing of this machine is changed and what a login leaves behind can be seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from pathlib import Path

import attrs

from cvm_migrate.transport import SshTarget
from rig import loopdev

_SSHD = "/usr/sbin/sshd"

_CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication {password}
KbdInteractiveAuthentication no
PrintMotd no
UseDNS no
MaxStartups 100
SetEnv PATH={path} HOME={folder}/home
{settings}
"""

# Private mounts, then sshd under the same process number.
_START = """\
set -e
mount --make-rprivate /
# The disks of tests that run beside this one: our copies of their mounts would keep them busy for as long as we live.
mounts=$(cat /proc/mounts)
while read -r device at rest; do
    case $device in /dev/loop*) ;; *) continue ;; esac
    case $at in "$3"/*) ;; *) umount --lazy "$at" || true ;; esac
done <<END
$mounts
END
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/shadow" /etc/shadow
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
exec "$2" -D -e -f "$1/sshd_config"
"""


@attrs.frozen
class Sshd:
    """An sshd that runs.

    Attributes:
        folder: Its configuration, keys and log.
        port: Its port.
        pid: Its process, whose mount namespace logins see.
        path: The only folder where logins find programs.
        address: Where it listens.
    """

    folder: Path
    port: int
    pid: int
    path: Path
    address: str = "127.0.0.1"

    @property
    def target(self) -> SshTarget:
        """How the one who may log in reaches it."""
        return SshTarget(
            f"root@{self.address}",
            port=self.port,
            config=self.folder / "ssh_config",
            identity=self.folder / "user_key",
            known_hosts=self.folder / "known_hosts",
        )

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text(errors="replace")

    def memory(self) -> list[str]:
        """Names of the files in its ``/dev/shm``."""
        return sorted(entry.name for entry in Path(f"/proc/{self.pid}/root/dev/shm").iterdir())

    def sessions(self) -> list[int]:
        """Numbers of all processes in its mount namespace, but for itself."""
        own = Path(f"/proc/{self.pid}/ns/mnt").readlink()
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                with contextlib.suppress(OSError):
                    if (entry / "ns" / "mnt").readlink() == own:
                        found.append(int(entry.name))
        return sorted(found)


def programs(folder: Path, links: Mapping[str, Path | str]) -> Path:
    """Make a folder for a ``PATH``: links to programs, or scripts where the text begins with ``#!``."""
    folder.mkdir(parents=True)
    for name, what in links.items():
        at = folder / name
        if isinstance(what, str):
            at.write_text(what)
            at.chmod(0o755)
        else:
            at.symlink_to(what)
    return folder


def system_program(name: str) -> Path:
    """Where this machine has a program."""
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return Path(found)


def _key(at: Path) -> str:
    loopdev.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(at))
    return at.with_name(at.name + ".pub").read_text()


def _hashed(password: str | None) -> str:
    if password is None:
        return "*"
    # By standard input: tests look for the password in the arguments of all processes.
    done = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"],
        check=True,
        capture_output=True,
        text=True,
        input=password + "\n",
    )
    return done.stdout.strip()


@contextlib.contextmanager
def sshd(
    folder: Path,
    *,
    path: Path,
    password: str | None = None,
    login: str = "/bin/sh",
    start_file: str = "",
    address: str = "127.0.0.1",
    network: int | None = None,
    settings: str = "",
) -> Generator[Sshd]:
    """An sshd for root.

    Args:
        folder: Where its files go.
        path: The ``PATH`` of its logins.
        password: Root's; without one a key is needed.
        login: Root's login shell.
        start_file: Content of root's ``.bashrc``.
        address: Where it listens.
        network: A process whose network it has; ``None``: this machine's.
        settings: More lines of its configuration.
    """
    (folder / "home").mkdir(parents=True)
    (folder / "home" / ".bashrc").write_text(start_file)
    folder.chmod(0o755)
    host_key = _key(folder / "host_key")
    (folder / "authorized_keys").write_text(_key(folder / "user_key"))
    hashed = _hashed(password)
    (folder / "shadow").write_text(f"root:{hashed}:19000:0:99999:7:::\nsshd:!:19000::::::\n")
    (folder / "passwd").write_text(
        f"root:x:0:0:root:{folder}/home:{login}\nsshd:x:102:65534::/run/sshd:/usr/sbin/nologin\n"
    )
    (folder / "ssh_config").write_text("")
    # Debian's sshd wants it for its unprivileged part; its service would make it.
    Path("/run/sshd").mkdir(exist_ok=True, mode=0o755)
    config = _CONFIG.format(
        port="{port}",
        folder=folder,
        path=path,
        password="yes" if password else "no",
        address=address,
        settings=settings,
    )
    process, port = _start(folder, config, network)
    note = loopdev.note_process(process.pid)
    (folder / "known_hosts").write_text(f"[{address}]:{port} {host_key}")
    running = Sshd(folder, port, process.pid, path, address)
    try:
        yield running
    finally:
        left = running.sessions() if process.poll() is None else []
        process.terminate()
        process.wait(15)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        note.unlink(missing_ok=True)


def _own_folder(folder: Path) -> Path:
    """The folder that this run of tests, or this worker of it, has to itself."""
    for parent in folder.parents:
        if re.match(r"pytest-\d+$|popen-", parent.name):
            return parent
    return folder


def _start(folder: Path, config: str, network: int | None) -> tuple[subprocess.Popen[bytes], int]:
    own = str(_own_folder(folder))
    enter = [] if network is None else ["nsenter", f"--net=/proc/{network}/ns/net"]
    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        (folder / "sshd_config").write_text(config.replace("{port}", str(port)))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *enter,
                    "unshare",
                    "--mount",
                    "/bin/sh",
                    "-c",
                    _START,
                    "sh",
                    str(folder),
                    _SSHD,
                    own,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < end:
            if "Server listening" in (folder / "log").read_text(errors="replace"):
                return process, port
            time.sleep(0.02)
        process.kill()
        process.wait()
        # Between the probe and sshd somebody else may have taken the port.
        if "in use" not in (folder / "log").read_text(errors="replace"):
            break
    raise RuntimeError(f"sshd did not start: {(folder / 'log').read_text(errors='replace')}")
