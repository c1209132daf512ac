"""Disks and image files: reads, writes and zeroes at an offset, past the page cache wherever that can be.

There is no cursor: every call names its offset, so that threads share a handle. Data goes through buffers that are
aligned as ``O_DIRECT`` wants it. What the system can do is asked of it, never concluded from its version.
"""

from __future__ import absolute_import, division

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import sys
import threading

from cvm_migrate.agent import clock, names
from cvm_migrate.agent.verbs import AgentError, from_os_error

assert sys.platform != "win32", "the agent's disks are Linux block devices"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional, Text, Tuple

# From linux/fs.h.
BLKSSZGET = 0x1268
BLKPBSZGET = 0x127B
BLKZEROOUT = 0x127F
# From linux/falloc.h.
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_POSIX_FADV_DONTNEED = 4

# Any device's logical block divides it, and so does a page.
ALIGNMENT = 4096
# One step of zeroing: short enough that a request can be called off while it runs.
_ZERO_STEP = 256 << 20
_ZERO_BUFFER = 1 << 20
# What the system says when it cannot do a thing at all, as opposed to when it failed.
_CANNOT = frozenset(
    (
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EINVAL,
        errno.ENODEV,
    )
)

_libc = ctypes.CDLL(None, use_errno=True)


def _function(name, arguments, result):
    # type: (str, List[Any], Any) -> Any
    """Return a libc function with 64-bit offsets, None where there is none: musl has only the plain names."""
    for symbol in (name + "64", name):
        found = getattr(_libc, symbol, None)
        if found is not None:
            found.argtypes = arguments
            found.restype = result
            return found
    return None


_TRANSFER = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
_pread = _function("pread", _TRANSFER, ctypes.c_ssize_t)
_pwrite = _function("pwrite", _TRANSFER, ctypes.c_ssize_t)
_fallocate = _function(
    "fallocate", [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64], ctypes.c_int
)
_fadvise = _function(
    "posix_fadvise", [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int], ctypes.c_int
)
# Python 3.7 and later; cheaper than a call through ctypes.
_preadv = getattr(os, "preadv", None)  # type: Any
_pwritev = getattr(os, "pwritev", None)  # type: Any


class Buffer(object):
    """Memory that begins on a page, as ``O_DIRECT`` needs it, filled with zeroes.

    It is a *shared* anonymous mapping. While the system writes into private memory, a fork in another thread can
    make it write into the child's copy of the page: the data would be lost, silently.

    Attributes:
        size: Bytes.
        address: Where it begins.
    """

    def __init__(self, size):
        # type: (int) -> None
        self.size = max(size, 1)
        self._memory = mmap.mmap(-1, -(-self.size // ALIGNMENT) * ALIGNMENT)
        self._anchor = ctypes.c_char.from_buffer(self._memory)
        self.address = ctypes.addressof(self._anchor)

    def view(self, at=0, length=None):
        # type: (int, Optional[int]) -> Any
        """Return a part of it without copying: a memoryview, on Python 2 a buffer (both feed digests and sockets)."""
        length = self.size - at if length is None else length
        if sys.version_info[0] < 3:
            return buffer(self._memory, at, length)  # noqa: F821 - Python 2
        return memoryview(self._memory)[at : at + length]

    def get(self, at, length):
        # type: (int, int) -> bytes
        """Return a copy of a part."""
        return self._memory[at : at + length]

    def put(self, data, at=0):
        # type: (Any, int) -> None
        """Copy *data* into it."""
        self._memory[at : at + len(data)] = data

    def clear(self, at=0, length=None):
        # type: (int, Optional[int]) -> None
        """Fill a part with zeroes."""
        ctypes.memset(self.address + at, 0, self.size - at if length is None else length)


class BufferPool(object):
    """Buffers that are used again: a mapping of some MiB costs as much as reading it.

    Args:
        size: Bytes of each; larger ones are made and forgotten.
        most: How many are kept.
    """

    def __init__(self, size, most):
        # type: (int, int) -> None
        self._size = size
        self._most = most
        self._free = []  # type: List[Buffer]
        self._lock = threading.Lock()

    def take(self, size):
        # type: (int) -> Buffer
        """Return a buffer of at least *size* bytes, with any content."""
        if size > self._size:
            return Buffer(size)
        with self._lock:
            if self._free:
                return self._free.pop()
        return Buffer(self._size)

    def give(self, buffer):
        # type: (Buffer) -> None
        """Take a buffer back."""
        with self._lock:
            if buffer.size == self._size and len(self._free) < self._most:
                self._free.append(buffer)


_pool = BufferPool(4 << 20, 4)


def _read_once(fd, buffer, at, length, offset):
    # type: (int, Buffer, int, int, int) -> int
    if _preadv is not None:
        return int(_preadv(fd, [buffer.view(at, length)], offset))
    return _called(_pread, fd, buffer.address + at, length, offset)


def _write_once(fd, buffer, at, length, offset):
    # type: (int, Buffer, int, int, int) -> int
    if _pwritev is not None:
        return int(_pwritev(fd, [buffer.view(at, length)], offset))
    return _called(_pwrite, fd, buffer.address + at, length, offset)


def _called(function, *arguments):
    # type: (Any, *Any) -> int
    """Call a libc function again until no signal interrupts it; ctypes lets other threads run meanwhile."""
    while True:
        result = function(*arguments)
        if result >= 0:
            return int(result)
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


class _Use(object):
    """Keeps a handle's descriptors from being closed, and their numbers from being reused, during a call."""

    def __init__(self, handle):
        # type: (OpenHandle) -> None
        self._handle = handle

    def __enter__(self):
        # type: () -> None
        self._handle.begin_use()

    def __exit__(self, *exception):
        # type: (*object) -> None
        self._handle.end_use()


class OpenHandle(object):
    """An open disk or image file. Made by :func:`open_disk`.

    Every method can be called from several threads, and raises :class:`AgentError` with the device, the offset
    and the length concerned.

    Attributes:
        path: As it was given.
        kind: ``block`` or ``file``.
        size: Bytes.
        logical_block_size: What offsets and lengths are multiples of on a block device, but for its end.
        physical_block_size: What the device would like.
        identity: ``block:MAJOR:MINOR`` or ``file:DEVICE:INODE``.
        direct: Whether it is read and written past the page cache.
        mode: ``read`` or ``write``.
    """

    def __init__(self, path, mode, fd, direct):
        # type: (Text, str, int, bool) -> None
        self.path = path
        self.mode = mode
        self.direct = direct
        self._fd = fd
        self._plain_fd = None  # type: Optional[int]
        self._lock = threading.Lock()
        self._uses = 0
        self._closed = False
        status = os.fstat(fd)
        self.size = os.lseek(fd, 0, os.SEEK_END)
        if stat.S_ISBLK(status.st_mode):
            self.kind = "block"
            self.identity = "block:%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev))
            self.logical_block_size = _ask_number(fd, BLKSSZGET, 512)
            self.physical_block_size = _ask_number(fd, BLKPBSZGET, self.logical_block_size)
            self._unit = self.logical_block_size
            self._zero_methods = ["punch", "zeroout", "write"]
        else:
            self.kind = "file"
            self.identity = "file:%d:%d" % (status.st_dev, status.st_ino)
            # An image's sectors are what is written in it; every position can be read and written.
            self.logical_block_size = 512
            self.physical_block_size = ALIGNMENT
            self._unit = ALIGNMENT
            self._zero_methods = ["punch", "write"]
        self._use = _Use(self)

    def begin_use(self):
        # type: () -> None
        """Count a call that uses the descriptors."""
        with self._lock:
            if self._closed:
                raise AgentError("bad-request", "%s is closed" % self.path, device=self.path)
            self._uses += 1

    def end_use(self):
        # type: () -> None
        """End such a call; the last one after :meth:`close` closes the descriptors."""
        with self._lock:
            self._uses -= 1
            last = self._closed and self._uses == 0
        if last:
            self._close_now()

    def close(self):
        # type: () -> None
        """Close it as soon as the calls that run have ended; can be called again."""
        with self._lock:
            now = not self._closed and self._uses == 0
            self._closed = True
        if now:
            self._close_now()

    def _close_now(self):
        # type: () -> None
        os.close(self._fd)
        if self._plain_fd is not None:
            os.close(self._plain_fd)

    def check(self, offset, length, whole=False, writing=False):
        # type: (int, int, bool, bool) -> None
        """Raise ``bad-request`` where a range is outside, not whole blocks, or not open for writing.

        What lies beside whole blocks would go through the page cache, which on a mounted device is stale.
        """
        fault = None
        if offset < 0 or length < 0 or offset + length > self.size:
            fault = "the range is not inside the %d bytes of %s" % (self.size, self.path)
        elif writing and self.mode != "write":
            fault = "%s is open for reading only" % self.path
        elif whole and self.kind == "block" and not self._whole_blocks(offset, length):
            fault = "the range is not made of whole %d-byte blocks of %s" % (self._unit, self.path)
        if fault is not None:
            raise AgentError("bad-request", fault, device=self.path, offset=offset, length=length)

    def _whole_blocks(self, offset, length):
        # type: (int, int) -> bool
        end = offset + length
        return offset % self._unit == 0 and (end % self._unit == 0 or end == self.size)

    def pread_into(self, buffer, offset, length, at=0):
        # type: (Buffer, int, int, int) -> None
        """Read exactly *length* bytes from *offset* into *buffer* at *at*.

        On a block device, offset and length are multiples of its logical block (but for the end of the disk), and
        *at* is one everywhere; :meth:`read` has no such wishes.
        """
        self.check(offset, length, whole=True)
        with self._use:
            self._transfer("read", buffer, offset, length, at)

    def pwrite_from(self, buffer, offset, length, at=0):
        # type: (Buffer, int, int, int) -> None
        """Write exactly *length* bytes at *offset* out of *buffer* from *at*; alignment as in :meth:`pread_into`."""
        self.check(offset, length, whole=True, writing=True)
        with self._use:
            self._transfer("write", buffer, offset, length, at)

    def read(self, offset, length):
        # type: (int, int) -> bytes
        """Return *length* bytes from *offset*, neither of which needs to be aligned."""
        self.check(offset, length)
        unit = max(ALIGNMENT, self._unit)
        low = offset // unit * unit
        high = min(-(-(offset + length) // unit) * unit, self.size)
        buffer = _pool.take(high - low)
        self.pread_into(buffer, low, high - low)
        data = buffer.get(offset - low, length)
        _pool.give(buffer)
        return data

    def write(self, offset, data):
        # type: (int, bytes) -> None
        """Write *data* at *offset*; on a block device, whole logical blocks."""
        length = len(data)
        self.check(offset, length, whole=True, writing=True)
        buffer = _pool.take(length)
        buffer.put(data)
        self.pwrite_from(buffer, offset, length)
        _pool.give(buffer)

    def _transfer(self, what, buffer, offset, length, at):
        # type: (str, Buffer, int, int, int) -> None
        """Read or write a range: whole blocks past the page cache, and what is left through it."""
        direct = length - length % self._unit if offset % self._unit == 0 else 0
        if not self.direct:
            direct = 0
        if direct:
            self._exactly(what, self._fd, buffer, offset, direct, at)
        if direct < length:
            fd = self._plain()
            if what == "read":
                _forget(fd, offset + direct, length - direct)
            self._exactly(what, fd, buffer, offset + direct, length - direct, at + direct)

    def _exactly(self, what, fd, buffer, offset, length, at):
        # type: (str, int, Buffer, int, int, int) -> None
        once = _read_once if what == "read" else _write_once
        done = 0
        while done < length:
            try:
                count = once(fd, buffer, at + done, length - done, offset + done)
            except EnvironmentError as error:
                raise from_os_error(
                    what,
                    error,
                    self.path,
                    offset + done,
                    length - done,
                    "reading" if what == "read" else "writing",
                )
            if count == 0:
                raise AgentError(
                    what,
                    "%s ended early" % self.path,
                    device=self.path,
                    offset=offset + done,
                    length=length - done,
                )
            done += count

    def _plain(self):
        # type: () -> int
        """Return a descriptor that goes through the page cache."""
        if not self.direct:
            return self._fd
        with self._lock:
            if self._plain_fd is None:
                # The same inode, whatever its name is by now.
                name = ("/proc/self/fd/%d" % self._fd).encode("ascii")
                flags = os.O_RDWR if self.mode == "write" else os.O_RDONLY
                try:
                    self._plain_fd = _open_fd(name, flags)
                except EnvironmentError as error:
                    raise from_os_error(self.mode, error, self.path)
            return self._plain_fd

    def zero(self, offset, length, check=None):
        # type: (int, int, Optional[Callable[[], object]]) -> str
        """Make a range read as zeroes, by the cheapest way that the system offers.

        Args:
            offset: First byte.
            length: Number of bytes.
            check: Called between steps; may raise.

        Returns:
            The way: ``punch``, ``zeroout`` or ``write``.
        """
        self.check(offset, length, whole=True, writing=True)
        method = self._zero_methods[0]
        with self._use:
            end = offset + length
            while offset < end:
                if check is not None:
                    check()
                step = min(end - offset, _ZERO_STEP)
                method = self._zero_step(offset, step)
                offset += step
        return method

    def _zero_step(self, offset, length):
        # type: (int, int) -> str
        whole = length - length % self._unit if self.kind == "block" else length
        while True:
            method = self._zero_methods[0]
            if method == "write" or not whole:
                self._write_zeroes(offset, length)
                return "write"
            try:
                if method == "punch":
                    self._punch(offset, whole)
                else:
                    fcntl.ioctl(self._fd, BLKZEROOUT, struct.pack("QQ", offset, whole))
            except EnvironmentError as error:
                if error.errno == errno.EINTR:
                    continue
                if error.errno not in _CANNOT:
                    raise from_os_error("write", error, self.path, offset, whole, "zeroing")
                with self._lock:
                    if self._zero_methods[0] == method:
                        self._zero_methods.pop(0)
                continue
            if whole < length:
                self._write_zeroes(offset + whole, length - whole)
            return method

    def _punch(self, offset, length):
        # type: (int, int) -> None
        """Take the blocks away from a file; a block device does what it has for it, and then reads as zeroes too."""
        if _fallocate is None:
            raise OSError(errno.ENOSYS, "fallocate")
        _called(_fallocate, self._fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length)

    def _write_zeroes(self, offset, length):
        # type: (int, int) -> None
        zeroes = Buffer(min(length, _ZERO_BUFFER))
        done = 0
        while done < length:
            step = min(length - done, _ZERO_BUFFER)
            self._transfer("write", zeroes, offset + done, step, 0)
            done += step

    def flush(self):
        # type: () -> float
        """Have everything that was written on stable storage; return the seconds it took."""
        begin = clock.monotonic()
        with self._use:
            for fd in (self._fd, self._plain_fd):
                if fd is not None:
                    try:
                        os.fdatasync(fd)
                    except EnvironmentError as error:
                        raise from_os_error("write", error, self.path, doing="flushing")
        return clock.monotonic() - begin


def _ask_number(fd, request, default):
    # type: (int, int, int) -> int
    """Return what an ioctl says, *default* where this kernel does not know it."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, request, struct.pack("i", 0)))[0]) or default
    except EnvironmentError:
        return default


def _forget(fd, offset, length):
    # type: (int, int, int) -> None
    """Ask the page cache to drop a range; it is only advice, so what it answers does not matter."""
    if _fadvise is not None:
        _fadvise(fd, offset, length, _POSIX_FADV_DONTNEED)


def _open_fd(path, flags, mode=0o600):
    # type: (bytes, int, int) -> int
    fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), mode)
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return fd


def open_disk(path, mode="read", create_size=None, exclusive=True):
    # type: (Text, str, Optional[int], bool) -> OpenHandle
    """Open a block device or an image file.

    Args:
        path: Its name.
        mode: ``read`` or ``write``.
        create_size: Make or grow an image file to that size in bytes; it must exist where this is None.
        exclusive: Claim a block device that is opened for writing, so that nothing else can mount or claim it. A
            pump passes False for a disk that its agent has claimed already.

    Raises:
        AgentError: ``not-found``, ``permission``, ``unsafe`` (in use), ``no-room``, ``bad-request``.
    """
    name = names.to_bytes(path)
    flags = os.O_RDWR if mode == "write" else os.O_RDONLY
    try:
        status = _status(path, name, mode, create_size)
        if status is None:
            flags |= os.O_CREAT | os.O_EXCL
        elif mode == "write":
            if exclusive and stat.S_ISBLK(status.st_mode):
                flags |= os.O_EXCL
            _refuse_attached(path, status)
        fd, direct = _open_direct(name, flags)
    except EnvironmentError as error:
        if error.errno == errno.EBUSY:
            raise AgentError(
                "unsafe",
                "%s is in use: mounted, held by another device, or claimed by another program"
                % path,
                errno=error.errno,
                device=path,
                remedy="Unmount it and everything on it (see lsblk), then repeat the step",
            )
        refused = from_os_error("open", error, path, doing="opening")
        refused.remedy = _remedy(error.errno, name, made=create_size is not None)
        raise refused
    try:
        return _opened(path, mode, fd, direct, status, create_size)
    except EnvironmentError as error:
        os.close(fd)
        raise from_os_error("open", error, path, doing="opening")
    except AgentError:
        os.close(fd)
        raise


def _remedy(number, name, made):
    # type: (Optional[int], bytes, bool) -> Optional[Text]
    """Return what to do about a name that cannot be opened; None: whoever called knows better."""
    if number == errno.EROFS:
        return "Its file system is mounted read-only: mount it writable, or choose another place"
    if number in (errno.EACCES, errno.EPERM):
        if os.geteuid() == 0:
            return (
                "Root is refused as well: look for a container that does not have this device, a security module,"
                " or a file that may not be changed (lsattr)"
            )
        if not name.startswith(b"/dev/"):
            return "Give user id %d the right to it, or have the agent run as root" % os.geteuid()
    if number == errno.ENOENT and made:
        return "Make the folder that it is to lie in, or mount its file system"
    return None


def _opened(path, mode, fd, direct, before, create_size):
    # type: (Text, str, int, bool, Optional[os.stat_result], Optional[int]) -> OpenHandle
    now = os.fstat(fd)
    if before is not None and not (
        os.path.samestat(now, before) and now.st_mode == before.st_mode
    ):
        raise AgentError("unsafe", "%s was exchanged while it was opened" % path, device=path)
    if create_size is not None and stat.S_ISREG(now.st_mode) and now.st_size < create_size:
        os.ftruncate(fd, create_size)
    if direct and not _reads_direct(fd):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        direct = False
    return OpenHandle(path, mode, fd, direct)


def _status(path, name, mode, create_size):
    # type: (Text, bytes, str, Optional[int]) -> Optional[os.stat_result]
    """Return what is there now; None: an image file is to be made."""
    try:
        status = os.stat(name)
    except EnvironmentError as error:
        if error.errno != errno.ENOENT or mode != "write" or create_size is None:
            raise
        folder = os.path.realpath(os.path.dirname(os.path.abspath(name)))
        if (folder + b"/").startswith(b"/dev/") and not (folder + b"/").startswith(b"/dev/shm/"):
            # A mistyped or vanished device must not become a file in memory.
            raise AgentError("not-found", "there is no device %s" % path, device=path)
        return None
    if not (stat.S_ISBLK(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise AgentError(
            "bad-request",
            "%s is neither a block device nor a regular file" % path,
            device=path,
            remedy="Name a file in it"
            if stat.S_ISDIR(status.st_mode)
            else "Name a disk, such as /dev/sdb, or an image file",
        )
    return status


def _refuse_attached(path, status):
    # type: (Text, os.stat_result) -> None
    """Raise ``unsafe`` if a loop device lies on the file or device: the system lets both be written at once."""
    for block in os.listdir("/sys/block") if os.path.isdir("/sys/block") else []:
        try:
            with open("/sys/block/%s/loop/backing_file" % block, "rb") as attribute:
                backing = os.stat(attribute.read().rstrip(b"\n"))
        except EnvironmentError:
            continue
        if os.path.samestat(backing, status):
            raise AgentError(
                "unsafe",
                "%s is attached to the loop device /dev/%s" % (path, block),
                device=path,
                remedy="Detach it (losetup -d /dev/%s), or name the loop device" % block,
            )


def _open_direct(name, flags):
    # type: (bytes, int) -> Tuple[int, bool]
    """Open past the page cache, or through it where the file system knows no other way."""
    try:
        return _open_fd(name, flags | os.O_DIRECT), True
    except EnvironmentError as error:
        if error.errno != errno.EINVAL:
            raise
    if flags & os.O_CREAT and os.path.exists(name):
        # It is refused after the file has been made.
        flags &= ~(os.O_CREAT | os.O_EXCL)
    return _open_fd(name, flags), False


def _reads_direct(fd):
    # type: (int) -> bool
    """Whether the file system takes our alignment; other errors are told when the range is really read."""
    try:
        _read_once(fd, Buffer(ALIGNMENT), 0, ALIGNMENT, 0)
    except EnvironmentError as error:
        return error.errno != errno.EINVAL
    return True
