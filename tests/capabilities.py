"""What this machine can do, found by trying. Skips read it; in CI a missing capability is a failure."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.pythons import interpreters

REQUIRED = os.environ.get("CI") == "true"


def _tool(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"{name} is not installed"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _loop() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    done = subprocess.run(["losetup", "--find"], check=False, capture_output=True, text=True)
    return None if done.returncode == 0 else f"no loop device: {done.stderr.strip()}"


def _tracefs() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    at = Path("/sys/kernel/tracing")
    if not (at / "events").is_dir():
        subprocess.run(
            ["mount", "-t", "tracefs", "tracefs", str(at)], check=False, capture_output=True
        )
    return None if (at / "instances").is_dir() else "no tracefs"


def _namespaces() -> str | None:
    done = subprocess.run(
        ["unshare", "--net", "--mount", "true"], check=False, capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"no namespaces: {done.stderr.strip()}"


def _user_namespaces() -> str | None:
    done = subprocess.run(
        ["unshare", "--user", "true"], check=False, capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"no user namespaces: {done.stderr.strip()}"


def _bridge() -> str | None:
    make = "ip link add one type bridge && ip link add two type veth peer name three"
    done = subprocess.run(
        ["unshare", "--net", "/bin/sh", "-c", make], check=False, capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"no bridge between namespaces: {done.stderr.strip()}"


def _ipv4() -> str | None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
    return None


def _tls13() -> str | None:
    return None if ssl.HAS_TLSv1_3 else "this Python's OpenSSL has no TLS 1.3"


def _zram() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    return None if Path("/sys/class/zram-control").is_dir() else "this kernel has no zram"


def roomy_folder() -> Path:
    """Where large sparse files have the best chances: ext4 has none beyond 16 TiB, a memory file system has."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def _sparse_16_tib() -> str | None:
    with tempfile.TemporaryFile(dir=roomy_folder()) as file:
        try:
            file.truncate(16 << 40)
        except OSError as error:
            return f"no sparse file of 16 TiB in {roomy_folder()}: {error}"
    return None


def _bpf_stats() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    with contextlib.suppress(OSError):
        switch.write_text(switch.read_text())
        return None
    return "this kernel does not count the time in eBPF programs"


def _module(name: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(name) else f"{name} cannot be imported"


def _python(version: str) -> str | None:
    return None if version in interpreters() else f"pyenv has no Python {version}"


PROBES: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "loop": _loop,
    "tracefs": _tracefs,
    "namespaces": _namespaces,
    "bridge": _bridge,
    "user namespaces": _user_namespaces,
    "loopback": _ipv4,
    "ipv6": lambda: None if Path("/proc/net/if_inet6").exists() else "this kernel has no IPv6",
    "tls13": _tls13,
    "pyenv": _tool("pyenv"),
    "zram": _zram,
    "fuse": lambda: None if Path("/dev/fuse").exists() else "there is no /dev/fuse",
    "sparse 16 TiB": _sparse_16_tib,
    "bpf stats": _bpf_stats,
    "distributed": _module("distributed"),
    "sshd": lambda: None if Path("/usr/sbin/sshd").exists() else "openssh-server is missing",
    **{
        name: _tool(name)
        for name in (
            "mkfs.ext2",
            "mkfs.ext4",
            "mkfs.xfs",
            "mkfs.btrfs",
            "nbdkit",
            "nbdfuse",
            "partx",
            "qemu-img",
            "qemu-system-x86_64",
            "sshpass",
            "blkdiscard",
            "fstrim",
        )
    },
}


@functools.cache
def missing(name: str) -> str | None:
    """Why *name* cannot be used here, or None; ``python 2.7`` and the like are the interpreters of pyenv."""
    kind, _, version = name.partition(" ")
    return _python(version) if kind == "python" else PROBES[name]()


def require(*names: str) -> None:
    """Skip the test where a capability is missing; in CI, fail it."""
    for name in names:
        reason = missing(name)
        if reason is None:
            continue
        if REQUIRED:
            pytest.fail(f"CI must be able to {name}: {reason}")
        pytest.skip(f"{name}: {reason}")


def python(version: str) -> Path:
    """Return that interpreter of pyenv, or skip the test; in CI, fail it."""
    require(f"python {version}")
    return interpreters()[version]
