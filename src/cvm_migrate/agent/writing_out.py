"""The verb ``write_out``: what file systems hold in memory goes to the disk, so that a freeze takes less time.

A process of its own does it: it can hang in a slow disk for minutes, and main must be able to end meanwhile.
"""

from __future__ import absolute_import

import ctypes
import errno
import os
import sys

from cvm_migrate.agent import children, clock, freezer
from cvm_migrate.agent.verbs import AgentError, from_os_error, texts

assert sys.platform != "win32", "the agent runs on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Text, Tuple

    from cvm_migrate.agent.verbs import Context, Header, Reply, Verb


def run():
    # type: () -> None
    """The process: mount points on standard input, the outcome on standard output."""
    outcome = {}  # type: Dict[str, Any]
    for mount_point in children.receive(0):
        try:
            _sync(mount_point)
        except EnvironmentError as error:
            outcome = {"errno": error.errno, "mount": mount_point}
            break
    children.send(1, outcome)


def _sync(mount_point):
    # type: (Text) -> None
    libc = ctypes.CDLL(None, use_errno=True)
    syncfs = getattr(libc, "syncfs", None)
    fd = freezer.open_mount(mount_point)
    if syncfs is None:
        # glibc before 2.14; this one waits too, on Linux, and never fails.
        libc.sync()
    elif syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")
    os.close(fd)


def _write_out(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob
    mounts = texts(args, "mounts")
    begin = clock.monotonic()
    process = children.start(context.command + ["--write-out"])
    context.at_end(process.kill)
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        children.send(process.stdin.fileno(), mounts)
        while not children.can_read(process.stdout.fileno(), 0.1):
            reply.check()
        outcome = children.receive(process.stdout.fileno())
    except (EnvironmentError, EOFError):
        # As the agent ends, it is this process that ends it.
        reply.check()
        raise AgentError("pump", "the process that writes out has ended")
    finally:
        context.not_at_end(process.kill)
        process.stdin.close()
        process.stdout.close()
        if process.poll() is None:
            # It may hang in the disk, where even a kill has to wait; whoever calls off does not.
            process.kill()
            children.reap(process)
    if outcome:
        number = outcome["errno"]
        hint = "open" if number in (errno.ENOENT, errno.ENOTDIR, errno.EACCES) else "write"
        raise from_os_error(hint, OSError(number, "syncfs"), outcome["mount"], doing="writing out")
    return {"seconds": clock.monotonic() - begin}, b""


VERBS = {"write_out": _write_out}  # type: Dict[str, Verb]
