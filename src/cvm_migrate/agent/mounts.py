"""What is mounted, as ``/proc`` tells it."""

from __future__ import absolute_import

import os
import re
import sys

from cvm_migrate.agent import names

assert sys.platform != "win32", "the agent runs on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    Mount = Dict[str, Any]


def mounts():
    # type: () -> List[Mount]
    """Return what is mounted in this process's namespace, in the order it was mounted."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return _by_mountinfo(file.read())
    except EnvironmentError:
        # Kernels before 2.6.26, such as CentOS 5's.
        return _by_mounts()


def _by_mountinfo(data):
    # type: (bytes) -> List[Mount]
    found = []  # type: List[Mount]
    for line in data.splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        rest = after.split(b" ")
        if len(fields) < 6 or len(rest) < 2:
            continue
        found.append(
            {
                "id": int(fields[0]),
                "parent": int(fields[1]),
                "number": names.to_text(fields[2]),
                "root": names.unescape(fields[3]),
                "mount_point": names.unescape(fields[4]),
                "fs_type": names.to_text(rest[0]),
                "source": names.unescape(rest[1]),
                "options": names.to_text(fields[5]),
            }
        )
    return found


def _by_mounts():
    # type: () -> List[Mount]
    found = []  # type: List[Mount]
    try:
        with open("/proc/mounts", "rb") as file:
            lines = file.read().splitlines()
    except EnvironmentError:
        return found
    for index, line in enumerate(lines):
        fields = line.split(b" ")
        if len(fields) < 4:
            continue
        number = "0:0"
        if re.match(b"/dev/", fields[0]):
            try:
                device = os.stat(names.to_bytes(names.unescape(fields[0]))).st_rdev
                number = "%d:%d" % (os.major(device), os.minor(device))
            except EnvironmentError:
                pass
        found.append(
            {
                "id": index + 1,
                "parent": 0,
                "number": number,
                "root": "/",
                "mount_point": names.unescape(fields[1]),
                "fs_type": names.to_text(fields[2]),
                "source": names.unescape(fields[0]),
                "options": names.to_text(fields[3]),
            }
        )
    return found
