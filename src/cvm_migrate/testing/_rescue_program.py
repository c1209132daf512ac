"""The program that is a rescue system: started by :mod:`cvm_migrate.testing._rescue`, never imported.

Two processes run it. The *supervisor* attaches the disks as loop devices, starts the *init* as process 1 of mount,
process and host-name namespaces of its own, and ends when its standard input does: the one who started it closes
that, or has died, however it died. The init makes a root of an overlay (the machine's files below, memory above:
nothing that is done in the rescue system reaches the machine), with a ``/dev`` and a ``/sys/block`` that know only
the disks it was given, runs sshd there, and ends when its own standard input does. Then the kernel kills what is left
in its namespace and takes the mounts away, and the loop devices, which are set to go with their last user, go.

Only the standard library is used, and what is imported is imported before the root changes.
"""

from __future__ import annotations

import contextlib
import encodings.idna
import fcntl
import json
import os
import re
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

assert sys.platform == "linux", "a rescue system needs Linux"  # noqa: S101 - what mypy understands

# Connecting needs it, when the machine's own library is out of sight.
_ = encodings.idna

# linux/loop.h
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_AUTOCLEAR: Final = 4
_LO_FLAGS_PARTSCAN: Final = 8
# struct loop_config: fd, block_size, struct loop_info64 (232 bytes; lo_flags at 52), eight reserved words.
_LOOP_CONFIG: Final = struct.Struct("=II52sI176s64s")

_PYTHON: Final = re.compile(r"(python[0-9.]*|pypy[0-9.]*|platform-python[0-9.]*)")
_PROGRAM_FOLDERS: Final = (
    "usr/bin",
    "usr/sbin",
    "bin",
    "sbin",
    "usr/local/bin",
    "usr/local/sbin",
    "usr/libexec",
)
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEVICES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_ATTRIBUTES: Final = (
    "alignment_offset",
    "dev",
    "discard_alignment",
    "ext_range",
    "hidden",
    "partition",
    "range",
    "removable",
    "ro",
    "size",
    "start",
)
# Seconds. New partitions appear in /dev after at most the first.
_TICK: Final = 0.03
_PATIENCE: Final = 30.0

_SSHD: Final = """\
ListenAddress {address}
Port {port}
HostKey /run/rescue/host_key
PidFile none
UsePAM no
PermitRootLogin yes
PasswordAuthentication yes
PubkeyAuthentication yes
KbdInteractiveAuthentication no
StrictModes no
UseDNS no
PrintMotd no
PrintLastLog no
X11Forwarding no
AllowTcpForwarding yes
MaxStartups 100
MaxSessions 100
MaxAuthTries 6
LoginGraceTime 60
Subsystem sftp internal-sftp
SetEnv PATH={path}
"""


class RescueError(Exception):
    """What the caller reads when the rescue system does not start."""


def _run(*command: str, said: str | None = None) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=said)
    if done.returncode:
        raise RescueError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


# The supervisor


def _attach(file: str) -> tuple[int, str]:
    """Attach a file as a loop device that goes with its last user; return a descriptor of it, and its name."""
    configuration = _LOOP_CONFIG.pack(
        0, 0, b"", _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_PARTSCAN, b"", b""
    )
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        end = time.monotonic() + _PATIENCE
        while True:
            name = f"loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device: int | None = None
            try:
                device = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
                fcntl.ioctl(
                    device, _LOOP_CONFIGURE, struct.pack("=I", backing) + configuration[4:]
                )
            except OSError as error:
                # Another process was faster, or the node is not there yet.
                if device is not None:
                    os.close(device)
                if time.monotonic() > end:
                    raise RescueError(f"{file} cannot be attached: {error}") from error
                time.sleep(0.02)
                continue
            return device, name
    finally:
        os.close(backing)
        os.close(control)


def _attached(name: str) -> bool:
    return Path(f"/sys/block/{name}/loop").exists()


def supervise() -> int:
    """Be the supervisor."""
    request: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    devices: list[tuple[int, str]] = []
    try:
        for disk in request["disks"]:
            # One after the other, so that those attached before a failure are let go.
            devices.append(_attach(disk["file"]))  # noqa: PERF401
        names = [name for _, name in devices]
        command = [
            *(["nsenter", f"--net={request['network']}"] if request["network"] else []),
            *("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child=KILL"),
            *(sys.executable, "-I", "-S", __file__, "init"),
        ]
        init = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert init.stdin is not None  # noqa: S101 - opened with a pipe
        try:
            init.stdin.write(json.dumps({**request, "devices": names}).encode() + b"\n")
            init.stdin.flush()
            while init.poll() is None and not _ended(0.2):
                pass
        except BrokenPipeError:
            init.wait(_PATIENCE)
        finally:
            with contextlib.suppress(BrokenPipeError):
                init.stdin.close()
            try:
                init.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                init.kill()
                init.wait()
    except (RescueError, OSError) as error:
        _say(error=str(error))
    finally:
        for device, _ in devices:
            os.fsync(device)
            os.close(device)
    end = time.monotonic() + _PATIENCE
    while any(_attached(name) for _, name in devices) and time.monotonic() < end:
        time.sleep(0.01)
    return 0


def _ended(seconds: float) -> bool:
    """Wait for the end of standard input; nothing more is ever said there."""
    readable, _, _ = select.select([0], [], [], seconds)
    return bool(readable)


# The init


class _Disks:
    """``/dev`` and ``/sys/block`` of the rescue system, kept in step with the kernel's partitions."""

    def __init__(self, disks: list[dict[str, Any]], devices: list[str]) -> None:
        # Where the kernel has them; that part of sysfs stays as it is.
        self._real = {
            disk["name"]: Path(f"/sys/devices/virtual/block/{device}")
            for disk, device in zip(disks, devices, strict=True)
        }
        self._serials: dict[str, str | None] = {disk["name"]: disk["serial"] for disk in disks}
        self._partitions: dict[str, str] = {}

    def make(self) -> None:
        """Make the disks, in a root that has been changed to."""
        for folder in ("/sys/block", "/sys/class/block", "/sys/dev/block"):
            _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
        for name, real in self._real.items():
            place = Path("/sys/block", name)
            self._describe(place, real, "disk")
            serial = self._serials[name]
            if serial is not None:
                # Where the kernel has that of a virtio disk.
                (place / "serial").write_text(f"{serial}\n")
            for part in ("queue", "holders"):
                (place / part).mkdir()
                _run("mount", "--bind", str(real / part), str(place / part))
            (place / "slaves").mkdir()
        self.follow()

    def _describe(self, place: Path, real: Path, kind: str) -> None:
        place.mkdir()
        for attribute in _ATTRIBUTES:
            with contextlib.suppress(FileNotFoundError):
                (place / attribute).write_text((real / attribute).read_text())
        number = (real / "dev").read_text().strip()
        major, minor = number.split(":")
        (place / "uevent").write_text(
            f"MAJOR={major}\nMINOR={minor}\nDEVNAME={place.name}\nDEVTYPE={kind}\n"
        )
        (place / "subsystem").symlink_to("/sys/class/block")
        Path("/sys/class/block", place.name).symlink_to(place)
        Path("/sys/dev/block", number).symlink_to(place)
        node = Path("/dev", place.name)
        os.mknod(node, stat.S_IFBLK | 0o660, os.makedev(int(major), int(minor)))

    def follow(self) -> None:
        """Make and remove what the kernel has made and removed since."""
        now: dict[str, tuple[Path, str, Path]] = {}
        for name, real in self._real.items():
            prefix = f"{real.name}p"
            for entry in real.glob(f"{prefix}*"):
                partition = f"{name}{entry.name.removeprefix(prefix)}"
                with contextlib.suppress(OSError):
                    facts = "".join((entry / one).read_text() for one in ("dev", "start", "size"))
                    now[partition] = Path("/sys/block", name, partition), facts, entry
        for partition, facts in list(self._partitions.items()):
            if partition not in now or now[partition][1] != facts:
                self._remove(partition, facts.split()[0])
                del self._partitions[partition]
        for partition, (place, facts, real) in now.items():
            if partition not in self._partitions:
                with contextlib.suppress(FileNotFoundError):
                    self._describe(place, real, "partition")
                    (place / "holders").mkdir()
                self._partitions[partition] = facts

    @staticmethod
    def _remove(partition: str, number: str) -> None:
        Path("/dev", partition).unlink(missing_ok=True)
        Path("/sys/dev/block", number).unlink(missing_ok=True)
        link = Path("/sys/class/block", partition)
        with contextlib.suppress(OSError):
            shutil.rmtree(link.readlink())
        link.unlink(missing_ok=True)


def _make_root(base: Path, python: str | None) -> Path:
    """Make the root: an overlay whose changes stay in memory."""
    _run("mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", str(base))
    for name in ("upper", "work", "root"):
        (base / name).mkdir(mode=0o755)
    root = base / "root"
    layers = f"lowerdir=/,upperdir={base / 'upper'},workdir={base / 'work'}"
    _run("mount", "-t", "overlay", "-o", layers, "overlay", str(root))
    for name, mode in (
        ("dev", "755"),
        ("run", "755"),
        ("tmp", "1777"),
        ("root", "700"),
        ("mnt", "755"),
    ):
        (root / name).mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", str(root / name))
    for name, kind in (("proc", "proc"), ("sys", "sysfs")):
        (root / name).mkdir(exist_ok=True)
        _run("mount", "-t", kind, kind, str(root / name))
    _make_devices(root / "dev")
    if python is not None:
        _only_python(root, python)
    (root / "run/sshd").mkdir(mode=0o755)
    (root / "run/rescue").mkdir(mode=0o700)
    return root


def _make_devices(folder: Path) -> None:
    for name, (major, minor) in _DEVICES.items():
        os.mknod(folder / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (folder / name).chmod(0o666)
    for name in ("pts", "shm"):
        (folder / name).mkdir()
    options = "newinstance,ptmxmode=0666,mode=620"
    _run("mount", "-t", "devpts", "-o", options, "devpts", str(folder / "pts"))
    _run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(folder / "shm"))
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd"}
    links |= {name: f"/proc/self/fd/{fd}" for fd, name in enumerate(("stdin", "stdout", "stderr"))}
    for name, target in links.items():
        (folder / name).symlink_to(target)


def _only_python(root: Path, python: str) -> None:
    """Leave no other interpreter than *python*, under the names that it has on a machine of its time."""
    program = "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"
    version = _run(python, "-E", "-s", "-c", program)
    binary = Path(python).resolve()
    for folder in _PROGRAM_FOLDERS:
        place = root / folder
        for entry in list(place.iterdir()) if place.is_dir() else []:
            if _PYTHON.fullmatch(entry.name) and Path("/", folder, entry.name).resolve() != binary:
                entry.unlink(missing_ok=True)
    prefix = binary.parent.parent
    if prefix not in {Path("/"), Path("/usr"), Path("/usr/local")}:
        target = root / prefix.relative_to("/")
        target.mkdir(parents=True, exist_ok=True)
        # An overlay and not a bind mount: that would name the machine's own disk, perhaps /dev/vda, as mounted.
        nothing = root.with_name("nothing")
        nothing.mkdir()
        layers = f"lowerdir={prefix}:{nothing}"
        _run("mount", "-t", "overlay", "-o", layers, "overlay", str(target))
    names = [f"python{version}", f"python{version[0]}"]
    if version.startswith("2"):
        names.append("python")
    for name in names:
        place = root / "usr/bin" / name
        if not place.is_symlink() and not place.exists():
            place.symlink_to(binary)


def init() -> int:
    """Be process 1 of the rescue system."""
    request: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    try:
        sshd, disks = _boot(request)
    except (RescueError, OSError) as error:
        _say(error=str(error))
        return 1
    _say(ready=True)
    while not _ended(_TICK):
        disks.follow()
        if _reap(sshd.pid):
            return 1
    return 0


def _reap(sshd: int) -> bool:
    """Take leave of ended processes, whoever's they were; return whether sshd is among them."""
    lost = False
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            lost = lost or pid == sshd
    return lost


def _boot(request: dict[str, Any]) -> tuple[subprocess.Popen[bytes], _Disks]:
    root = _make_root(Path(request["folder"]), request["python"])
    disks = _Disks(request["disks"], request["devices"])
    key = root / "run/rescue/host_key"
    key.touch(mode=0o600)
    key.write_text(request["host_key"])
    (root / "run/rescue/sshd_config").write_text(
        _SSHD.format(address=request["address"], port=request["port"], path=_PATH)
    )
    (root / ".machine").mkdir()
    _run("pivot_root", str(root), str(root / ".machine"))
    os.chdir("/")
    os.environ.clear()
    os.environ["PATH"] = _PATH
    _run("umount", "--lazy", "/.machine")
    Path("/.machine").rmdir()
    socket.sethostname("rescue")
    disks.make()
    _run("chpasswd", "-c", "SHA512", said=f"root:{request['password']}\n")
    program = shutil.which("sshd", path=_PATH)
    if program is None:
        raise RescueError("sshd is not installed")
    sshd = subprocess.Popen(
        [program, "-D", "-e", "-f", "/run/rescue/sshd_config"],
        stdin=subprocess.DEVNULL,
        stdout=2,
    )
    end = time.monotonic() + _PATIENCE
    while not _answers(request["address"], request["port"]):
        if sshd.poll() is not None or time.monotonic() > end:
            raise RescueError("sshd does not answer: see the rescue system's log")
        time.sleep(0.02)
    return sshd, disks


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit({"supervise": supervise, "init": init}[sys.argv[1]]())
