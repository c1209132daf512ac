"""The tools users would run instead, as their users would run them."""

from __future__ import annotations

import contextlib
import getpass
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from benchmarks.rig import Disks, run


def shell(command: str) -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{command}: exit {done.returncode}: {done.stderr[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > end:
            raise RuntimeError(f"nothing listens on port {port}")
        time.sleep(0.05)


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[str]:
    """A private sshd on loopback; yields the ssh command that reaches it as ``tgt``."""
    port = free_port()
    for name in ("host", "user"):
        if not (folder / name).exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nUsePAM no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\nPasswordAuthentication no\n"
    )
    known = (folder / "host.pub").read_text().split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(known)}\n")
    client = folder / "ssh_config"
    client.write_text(
        f"Host tgt\nHostName 127.0.0.1\nPort {port}\nUser {getpass.getuser()}\n"
        f"IdentityFile {folder}/user\nUserKnownHostsFile {folder}/known\n"
        "Ciphers aes128-gcm@openssh.com\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(port)
        yield f"ssh -F {shlex.quote(str(client))}"
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def nbd_server(disks: Disks, folder: Path) -> Iterator[int]:
    """The target over NBD with TLS by a pre-shared key; yields the port."""
    port = free_port()
    psk = folder / "psk"
    psk.mkdir(exist_ok=True)
    if not (psk / "keys.psk").exists():
        run("psktool", "-u", "bench", "-p", str(psk / "keys.psk"))
    server = subprocess.Popen(
        [
            "nbdkit",
            "--foreground",
            f"--port={port}",
            "--ipaddr=127.0.0.1",
            "--tls=require",
            f"--tls-psk={psk}/keys.psk",
            "file",
            str(disks.target),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port)
        yield port
    finally:
        server.terminate()
        server.wait()


@attrs.frozen
class Peer:
    """A tool: what it is called, its passes, and whether its result is a disk or a repository."""

    name: str
    full: Callable[[Disks, Path], None]
    second: Callable[[Disks, Path], None] | None
    is_disk: bool = True
    needs: tuple[str, ...] = ()
    tls: bool = False

    @property
    def missing(self) -> str | None:
        return next((tool for tool in self.needs if shutil.which(tool) is None), None)


def _qemu_img(disks: Disks, folder: Path) -> None:
    with nbd_server(disks, folder) as port:
        shell(
            f"qemu-img convert -n -W -m 16 -T none --object "
            f"tls-creds-psk,id=t0,dir={folder}/psk,endpoint=client,username=bench -f raw "
            f"--target-image-opts {disks.source} driver=nbd,host=127.0.0.1,port={port},tls-creds=t0"
        )


def _nbdcopy(disks: Disks, folder: Path) -> None:
    with nbd_server(disks, folder) as port:
        uri = f"nbds://bench@127.0.0.1:{port}/?tls-psk-file={folder}/psk/keys.psk"
        shell(f"nbdcopy --flush {disks.source} {shlex.quote(uri)}")


def _rsync(options: str) -> Callable[[Disks, Path], None]:
    def work(disks: Disks, folder: Path) -> None:
        with sshd(folder) as ssh:
            shell(
                f"rsync {options} --copy-devices --write-devices --inplace -e {shlex.quote(ssh)} "
                f"{disks.source} tgt:{disks.target}"
            )

    return work


def _dd(filter_out: str, filter_in: str) -> Callable[[Disks, Path], None]:
    def work(disks: Disks, folder: Path) -> None:
        with sshd(folder) as ssh:
            shell(
                f"dd if={disks.source} bs=1M iflag=direct {filter_out} | {ssh} tgt "
                f"'{filter_in} dd of={disks.target} bs=1M oflag=direct iflag=fullblock conv=fsync'"
            )

    return work


def _borg(disks: Disks, folder: Path) -> None:
    with sshd(folder) as ssh:
        environment = (
            f"export BORG_RSH={shlex.quote(ssh)} BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes "
            f"BORG_BASE_DIR={folder}/borg-base;"
        )
        repository = f"ssh://tgt{folder}/borg"
        if not (folder / "borg").exists():
            shell(f"{environment} borg init -e none {repository}")
        shell(
            f"{environment} borg create --read-special --chunker-params=fixed,4194304 "
            f"{repository}::{time.time_ns()} {disks.source}"
        )


def _restic(disks: Disks, folder: Path) -> None:
    with sshd(folder) as ssh:
        prefix = (
            "RESTIC_PASSWORD=benchmark restic --no-cache -q "
            f"-o sftp.command={shlex.quote(ssh + ' tgt -s sftp')} -r sftp:tgt:{folder}/restic"
        )
        if not (folder / "restic").exists():
            shell(f"{prefix} init")
        shell(
            f"dd if={disks.source} bs=1M iflag=direct | {prefix} backup --stdin --stdin-filename d"
        )


PEERS = (
    Peer(
        "qemu-img over TLS",
        _qemu_img,
        _qemu_img,
        needs=("qemu-img", "nbdkit", "psktool"),
        tls=True,
    ),
    Peer("nbdcopy over TLS", _nbdcopy, _nbdcopy, needs=("nbdcopy", "nbdkit", "psktool"), tls=True),
    Peer(
        "rsync over ssh",
        _rsync("-W"),
        _rsync("--no-whole-file --block-size=65536"),
        needs=("rsync",),
    ),
    Peer("dd | ssh", _dd("", ""), None),
    Peer("dd | zstd -1 | ssh", _dd("| zstd -1 -T0", "zstd -d |"), None, needs=("zstd",)),
    Peer("borg", _borg, _borg, is_disk=False, needs=("borg",)),
    Peer("restic", _restic, _restic, is_disk=False, needs=("restic",)),
)
