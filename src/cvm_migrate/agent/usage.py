"""How much mounted file systems hold and use, asked only of those whose answer cannot hang.

A dead NFS server stops whoever asks it, or walks through its mount to something local, for good.
"""

from __future__ import absolute_import

import os

from cvm_migrate.agent import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence, Set, Text

    from cvm_migrate.agent.mounts import Mount

# These lie on block devices of this host and answer for themselves: neither a cluster nor a process does it for them.
_LOCAL = frozenset(
    [
        "bcachefs",
        "btrfs",
        "exfat",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "hfs",
        "hfsplus",
        "jfs",
        "minix",
        "msdos",
        "nilfs2",
        "ntfs",
        "ntfs3",
        "reiserfs",
        "udf",
        "vfat",
        "xfs",
    ]
)
# The way to a mount may lead through these as well.
_HARMLESS = _LOCAL | frozenset(
    [
        "aufs",
        "cgroup",
        "cgroup2",
        "devtmpfs",
        "iso9660",
        "overlay",
        "proc",
        "ramfs",
        "rootfs",
        "squashfs",
        "sysfs",
        "tmpfs",
    ]
)


def reachable(path, mounts):
    # type: (Text, Sequence[Mount]) -> bool
    """Tell whether all file systems on the way to a path answer for themselves.

    Args:
        path: Which.
        mounts: All there are.
    """
    here = path.rstrip("/") + "/"
    return all(
        mount["fs_type"] in _HARMLESS
        for mount in mounts
        # What is mounted at the same place may lie over it.
        if here.startswith(mount["mount_point"].rstrip("/") + "/")
    )


def answers(mount, mounts, devices):
    # type: (Mount, Sequence[Mount], Set[Text]) -> bool
    """Tell whether a file system can be asked: it lies on block devices, and so does all on the way to it.

    Args:
        mount: Which.
        mounts: All there are.
        devices: The numbers of the host's block devices.
    """
    numbers = mount.get("devices") or [mount["number"]]
    if mount["fs_type"] not in _LOCAL or not devices.issuperset(numbers):
        return False
    return reachable(mount["mount_point"], mounts)


def measure(mounts, devices):
    # type: (Sequence[Mount], Set[Text]) -> None
    """Add `size` and `used` in bytes to the mounts whose file system can be asked, and answers."""
    for mount in mounts:
        if not answers(mount, mounts, devices):
            continue
        path = names.to_bytes(mount["mount_point"])
        try:
            device = os.stat(path).st_dev
            found = os.statvfs(path)
        except EnvironmentError:
            continue
        # Something else may be mounted over it. Subvolumes of btrfs have numbers of their own.
        number = "%d:%d" % (os.major(device), os.minor(device))
        if number != mount["number"] and mount["fs_type"] != "btrfs":
            continue
        # Old kernels know one size of blocks only.
        block = found.f_frsize or found.f_bsize
        mount["size"] = found.f_blocks * block
        mount["used"] = (found.f_blocks - found.f_bfree) * block
