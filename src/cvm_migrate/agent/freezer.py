"""The system's own calls for freezing: ioctls on open mount points, and memory that stays in memory."""

from __future__ import absolute_import

import ctypes
import errno
import fcntl
import os
import sys
import threading

from cvm_migrate.agent import names

assert sys.platform != "win32", "freezing is Linux's"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Text

# From linux/fs.h: _IOWR('X', 119, int) and 120, the same on every architecture that the agent meets.
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
# From asm-generic/mman.h.
_MCL_CURRENT = 1
_MCL_FUTURE = 2

# A thaw waits for a freeze of the same file system that is still under way; the others must not wait with it.
_PATIENCE = 0.5


def open_mount(mount_point):
    # type: (Text) -> int
    """Open a mounted file system for :func:`freeze` and :func:`thaw`."""
    fd = os.open(names.to_bytes(mount_point), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return fd


def freeze(fd):
    # type: (int) -> None
    """Write a file system out and block its writers. Can take as long as writing takes."""
    fcntl.ioctl(fd, FIFREEZE, 0)


def thaw(fd):
    # type: (int) -> bool
    """Let the writers go on; return False if the file system was not frozen."""
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except EnvironmentError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def thaw_all(fds):
    # type: (List[int]) -> None
    """Thaw file systems, the last one first, without waiting long for one that cannot be thawed at once."""
    for fd in reversed(fds):
        thread = threading.Thread(target=_thaw_quietly, args=(fd,))
        thread.daemon = True
        try:
            thread.start()
        except Exception:  # noqa: BLE001 - Python 2 raises thread.error, which has no base
            _thaw_quietly(fd)
        else:
            thread.join(_PATIENCE)


def _thaw_quietly(fd):
    # type: (int) -> None
    try:
        thaw(fd)
    except EnvironmentError as error:
        sys.stderr.write("cvm_migrate agent: thawing: %s\n" % error)


def can_freeze():
    # type: () -> bool
    """Whether this process may thaw, and so freeze: asked of /proc, which nobody can freeze."""
    try:
        fd = open_mount("/proc")
    except EnvironmentError:
        return False
    try:
        thaw(fd)
    except EnvironmentError:
        return False
    finally:
        os.close(fd)
    return True


def lock_memory():
    # type: () -> Optional[Text]
    """Keep all memory of this process from being paged out; return the reason if that cannot be."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0:
            return None
        return os.strerror(ctypes.get_errno())
    except (OSError, AttributeError) as error:
        return str(error)


def unlock_memory():
    # type: () -> None
    """Undo :func:`lock_memory`."""
    try:
        ctypes.CDLL(None).munlockall()
    except (OSError, AttributeError) as error:
        sys.stderr.write("cvm_migrate agent: munlockall: %s\n" % error)
