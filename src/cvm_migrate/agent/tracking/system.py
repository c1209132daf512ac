"""System calls that Python 2.7 has no functions for, and what /sys and /proc say about devices and processes."""

from __future__ import absolute_import

import ctypes
import errno
import os
import platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Set, Text, Tuple

_libc = ctypes.CDLL(None, use_errno=True)

# arch/*/entry/syscalls/*.tbl and include/uapi/asm-generic/unistd.h: bpf, membarrier. A 32-bit Python on a
# 64-bit kernel uses the 32-bit table of that machine.
_NUMBERS = {
    ("x86_64", 8): (321, 324),
    ("x86_64", 4): (357, 375),
    ("aarch64", 8): (280, 283),
    ("aarch64", 4): (386, 389),
    ("riscv64", 8): (280, 283),
}
_MEMBARRIER_ONLY = {"i386": 375, "i486": 375, "i586": 375, "i686": 375, "armv7l": 389}
_MEMBARRIER_CMD_GLOBAL = 1
_MNT_DETACH = 2
# MS_NOSUID | MS_NODEV | MS_NOEXEC
_PLAIN_MOUNT = 2 | 4 | 8


def bpf_number():
    # type: () -> Optional[int]
    """Return the number of bpf(2), or None on a machine that no program is written for."""
    numbers = _NUMBERS.get((platform.machine(), ctypes.sizeof(ctypes.c_void_p)))
    return numbers[0] if numbers else None


def syscall(number, *args):
    # type: (int, object) -> int
    """Make a system call.

    Raises:
        OSError: With the kernel's number.
    """
    result = _libc.syscall(ctypes.c_long(number), *args)  # type: int
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def wait_for_tracepoints():
    # type: () -> bool
    """Wait until every tracepoint handler that runs now has ended; return False if the kernel can't say when.

    membarrier(2), MEMBARRIER_CMD_GLOBAL (Linux 4.3) is synchronize_rcu(); a kernel with nohz_full CPUs refuses it.
    """
    key = (platform.machine(), ctypes.sizeof(ctypes.c_void_p))
    number = _NUMBERS[key][1] if key in _NUMBERS else _MEMBARRIER_ONLY.get(key[0])
    if number is None:
        return False
    try:
        syscall(
            number,
            ctypes.c_int(_MEMBARRIER_CMD_GLOBAL),
            ctypes.c_uint(0),
            ctypes.c_int(0),
        )
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            return False
        raise
    return True


class Tracefs(object):
    """The root of tracefs, reached through an open directory.

    Where it isn't mounted it is mounted, opened and detached again: the descriptor alone holds it then.
    """

    def __init__(self):
        # type: () -> None
        self._fd = _open_tracefs()
        self.path = "/proc/self/fd/%d" % self._fd

    def close(self):
        # type: () -> None
        """Let go of it; a detached mount ends with that."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self):
        # type: () -> Tracefs
        return self

    def __exit__(self, *exc_info):
        # type: (object) -> None
        self.close()


def _open_tracefs():
    # type: () -> int
    with open("/proc/self/mounts") as mounts:
        lines = [line.split() for line in mounts]
    places = [line[1] for line in lines if line[2] == "tracefs"]
    # Before Linux 4.1 it was a directory of debugfs.
    places += [line[1] + "/tracing" for line in lines if line[2] == "debugfs"]
    for place in places:
        # A mount can be hidden under a later one: only what has instances is it.
        if os.path.isdir(place + "/instances"):
            return os.open(place, os.O_RDONLY)
    kinds = (("tracefs", "/sys/kernel/tracing", ""), ("debugfs", "/sys/kernel/debug", "/tracing"))
    problem = OSError(errno.ENODEV, "this kernel has no tracing file system")
    for kind, place, inside in kinds:
        if not os.path.isdir(place):
            continue
        target = place.encode()
        name = kind.encode()
        if _libc.mount(name, target, name, ctypes.c_ulong(_PLAIN_MOUNT), None) < 0:
            number = ctypes.get_errno()
            problem = OSError(number, "mounting %s: %s" % (kind, os.strerror(number)))
            continue
        try:
            if not os.path.isdir(place + inside + "/instances"):
                problem = OSError(errno.ENOENT, "this kernel has no tracing instances")
                continue
            return os.open(place + inside, os.O_RDONLY)
        finally:
            _libc.umount2(target, _MNT_DETACH)
    raise problem


def start_time(pid):
    # type: (int) -> Optional[int]
    """Return when a process started, in clock ticks since boot; None if there is no such process."""
    try:
        with open("/proc/%d/stat" % pid) as stat:
            text = stat.read()
    except EnvironmentError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return None
        raise
    # proc(5), /proc/pid/stat: the name in parentheses can hold anything; starttime is field 22.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_partition(major, minor):
    # type: (int, int) -> bool
    """Say whether a block device is a part of another."""
    return os.path.exists("/sys/dev/block/%d:%d/partition" % (major, minor))


def numbers_of(major, minor):
    # type: (int, int) -> Set[Tuple[int, int]]
    """Return the numbers of a disk and of its partitions."""
    found = {(major, minor)}
    top = "/sys/dev/block/%d:%d" % (major, minor)
    names = os.listdir(top) if os.path.isdir(top) else []
    for name in names:
        try:
            with open("%s/%s/dev" % (top, name)) as file:
                parts = file.read().strip().split(":")
        except EnvironmentError as error:
            # Not a partition, or one that went away meanwhile.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV):
                continue
            raise
        found.add((int(parts[0]), int(parts[1])))
    return found


def writes_in_flight(major, minor):
    # type: (int, int) -> int
    """Return how many writes and discards of a disk the kernel has begun and not completed; 0 if it doesn't say."""
    try:
        with open("/sys/dev/block/%d:%d/inflight" % (major, minor)) as file:
            return int(file.read().split()[1])
    except EnvironmentError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return 0
        raise


def reason_of(error):
    # type: (BaseException) -> Text
    """Return one line that says what went wrong."""
    if isinstance(error, EnvironmentError) and error.errno and error.strerror:
        where = ": %s" % error.filename if error.filename else ""
        return "%s%s" % (error.strerror, where)
    return str(error) or type(error).__name__


def possible_cpus(per_cpu):
    # type: (str) -> List[int]
    """Return the CPUs that a tracing instance has rings for."""
    return sorted(int(name[3:]) for name in os.listdir(per_cpu) if name.startswith("cpu"))
