"""Disks that hang when they are told to, as one does that takes minutes to write what is in the cache."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Generator
from pathlib import Path

from rig import loopdev, processes

CAPABILITIES = ("root", "loop", "fuse", "nbdkit", "nbdfuse")
MiB = 1 << 20


class HangingDisk:
    """A loop device that can be told to hang: then whatever waits for it hangs too.

    Args:
        image: A file with a file system in it.
    """

    def __init__(self, image: Path) -> None:
        self._file = image.with_suffix(".fuse")
        self._control = image.with_suffix(".control")
        self._size = image.stat().st_size
        self._command = [
            # What the kernel asks of the file itself is answered from its cache: others' losetup must not hang, too.
            *("nbdfuse", "-o", "attr_timeout=86400", str(self._file)),
            *("--command", "nbdkit", "-s", "--filter=pause"),
            *("file", str(image), f"pause-control={self._control}"),
        ]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Path:
        self._file.touch()
        process = subprocess.Popen(self._command)
        self._stack.callback(process.wait, 60)
        self._stack.callback(process.terminate)
        self._stack.callback(loopdev.run, "fusermount3", "-u", str(self._file), check=False)
        processes.wait_until(
            lambda: self._file.stat().st_size == self._size, "nbdfuse shows the disk"
        )
        device = self._stack.enter_context(loopdev.loop_device(self._file, direct=False))
        self._stack.callback(self.tell, b"r")
        return device

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def tell(self, letter: bytes) -> None:
        """Have it hang (``p``) or go on (``r``)."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self._control))
            control.sendall(letter)
            control.shutdown(socket.SHUT_WR)
            assert control.recv(1) == letter.upper()


@contextlib.contextmanager
def hanging_mount(at: Path, size: int = 16 * MiB) -> Generator[tuple[HangingDisk, Path]]:
    """A mounted ext4 on a disk that can hang; it is thawed and goes on at the end, whatever was done to it."""
    image = at.with_suffix(".img")
    with loopdev.loop_device(image, size) as device:
        loopdev.make_file_system(device, "ext4")
    disk = HangingDisk(image)
    with disk as device, loopdev.mounted(device, at) as mount:
        try:
            yield disk, mount
        finally:
            disk.tell(b"r")
            loopdev.run("fsfreeze", "--unfreeze", str(mount), check=False)
