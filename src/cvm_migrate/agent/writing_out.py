"""The verb ``write_out``: what file systems hold in memory goes to the disk, so that a freeze takes less time.

A process of its own does it: it can hang in a slow disk for minutes, and main must be able to end meanwhile.
"""

from __future__ import absolute_import

import ctypes
import os
import select

from cvm_migrate.agent import children, clock, freezer
from cvm_migrate.agent.verbs import AgentError, texts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Tuple

    from cvm_migrate.agent.verbs import Context, Header, Reply, Verb


def run():
    # type: () -> None
    """The process: mount points on standard input, the outcome on standard output."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        syncfs = getattr(libc, "syncfs", None)
        for mount_point in children.receive(0):
            fd = freezer.open_mount(mount_point)
            if syncfs is None:
                # glibc before 2.14; this one waits too, on Linux, and never fails.
                libc.sync()
            elif syncfs(fd):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), mount_point)
            os.close(fd)
        outcome = {}  # type: Dict[str, Any]
    except EnvironmentError as error:
        outcome = {
            "errno": error.errno,
            "reason": os.strerror(error.errno or 0),
            "mount": error.filename if isinstance(error.filename, str) else None,
        }
    except EOFError:
        return
    children.send(1, outcome)


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
        while not select.select([process.stdout], [], [], 0.1)[0]:
            reply.check()
        outcome = children.receive(process.stdout.fileno())
    except (EnvironmentError, EOFError) as error:
        raise AgentError("internal", "the process that writes out has ended: %s" % error)
    finally:
        context.not_at_end(process.kill)
        process.stdin.close()
        process.stdout.close()
        if process.poll() is None:
            # It may hang in the disk, where even a kill has to wait; whoever calls off does not.
            process.kill()
            children.reap(process)
    if outcome:
        code = "not-found" if outcome["mount"] is None else "write"
        raise AgentError(
            code,
            "writing out: %s" % outcome["reason"],
            errno=outcome["errno"],
            device=outcome["mount"],
        )
    return {"seconds": clock.monotonic() - begin}, b""


VERBS = {"write_out": _write_out}  # type: Dict[str, Verb]
