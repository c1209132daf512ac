"""Other processes of the agent: how they are started and reaped, and messages to and from them."""

from __future__ import absolute_import

import errno
import json
import math
import os
import select
import struct
import subprocess
import threading

from cvm_migrate.agent import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional

# Type checkers look at this module for Windows too, which lacks its `poll`.
_select = select  # type: Any

_LENGTH = struct.Struct(">I")


def start(command):
    # type: (List[str]) -> subprocess.Popen[bytes]
    """Start a process with pipes on its standard input and output, and none of our descriptors."""
    return subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Else it would hold the other children's pipes open, and their ends would not be seen.
        close_fds=True,
        cwd="/",
    )


def can_read(fd, seconds):
    # type: (int, float) -> bool
    """Wait until something can be read, or the other end is closed; a signal may end the wait early."""
    # Not select, which fails with descriptors above 1023.
    poll = _select.poll()
    poll.register(fd, _select.POLLIN)
    try:
        return bool(poll.poll(int(math.ceil(seconds * 1000))))  # noqa: RUF046 - Python 2 has a float
    except (select.error, EnvironmentError) as error:
        if error.args[0] == errno.EINTR:
            return False
        # Python 2 has a kind of its own.
        raise OSError(error.args[0], "poll")


def reap(process):
    # type: (subprocess.Popen[bytes]) -> None
    """Take note of a process's end without waiting for it."""
    thread = threading.Thread(target=process.wait)
    thread.daemon = True
    thread.start()


def send(fd, message):
    # type: (int, Any) -> None
    """Send a JSON value with its length before it."""
    text = json.dumps(message).encode("ascii")
    write(fd, _LENGTH.pack(len(text)) + text)


def receive(fd, seconds=None):
    # type: (int, Optional[float]) -> Any
    """Return what :func:`send` sent.

    Raises:
        EOFError: The other end was closed.
        OSError: ``ETIMEDOUT``, as :func:`exactly` says.
    """
    (length,) = _LENGTH.unpack(exactly(fd, _LENGTH.size, seconds))
    return json.loads(exactly(fd, length, seconds).decode("ascii"))


def write(fd, data):
    # type: (int, bytes) -> None
    """Write everything."""
    while data:
        data = data[os.write(fd, data) :]


def exactly(fd, length, seconds=None):
    # type: (int, int, Optional[float]) -> bytes
    """Return the next *length* bytes.

    Raises:
        EOFError: The other end was closed before.
        OSError: ``ETIMEDOUT``: they have not come within *seconds*; without those it waits for ever.
    """
    end = None if seconds is None else clock.monotonic() + seconds
    parts = []  # type: List[bytes]
    while length > 0:
        if end is not None:
            left = end - clock.monotonic()
            if left <= 0:
                raise OSError(errno.ETIMEDOUT, "the other process does not answer")
            if not can_read(fd, left):
                continue
        data = os.read(fd, length)
        if not data:
            raise EOFError("the other process ended")
        parts.append(data)
        length -= len(data)
    return b"".join(parts)
