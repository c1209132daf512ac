"""The watchdog: a process of its own that thaws when the agent's main process ends, or when the limit passes.

It is started, with everything open and its memory locked, before anything is frozen. Rules:

1. End of file on its standard input means that main is gone, with every thread: no freeze is still under way. It
   thaws and ends.
2. When the limit passes it says so (``T``), then thaws. If main is still freezing (no ``D`` came), it stays for
   rule 1, because what main froze after that thaw must be thawed too.
3. ``Q`` means that main has thawed; it ends and touches nothing.
"""

from __future__ import absolute_import

import os
import select
import signal
import sys
import threading

from cvm_migrate.agent import children, clock, freezer

assert sys.platform != "win32", "the agent runs on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional

# main -> watchdog
FREEZING = b"F"
DONE = b"D"
QUIT = b"Q"
# watchdog -> main
READY = b"R"
THAWING = b"T"

_STACK = 256 << 10


def run():
    # type: () -> None
    """Run the watchdog on standard input and output, and end the process."""
    # A signal to the whole group or terminal must not take the watchdog away together with main.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    if os.getsid(0) != os.getpid():
        os.setsid()
    threading.stack_size(_STACK)
    task = children.receive(0)
    fds = [freezer.open_mount(mount) for mount in task["mounts"]]
    freezer.lock_memory()
    _spare_from_memory_shortage()
    children.write(1, READY)
    watch(fds, task["limit"])
    os._exit(0)


def _spare_from_memory_shortage():
    # type: () -> None
    """Ask the kernel to end other processes first when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(b"-1000")
    except EnvironmentError as error:
        # Kernels before 2.6.36, or no right to: it is a precaution more.
        sys.stderr.write("cvm_migrate watchdog: oom_score_adj: %s\n" % error)


def watch(fds, limit):
    # type: (List[int], float) -> None
    """Wait for one of the ends, and thaw if it is not main's own."""
    end = None  # type: Optional[float]
    freezing = True
    while True:
        left = None if end is None else end - clock.monotonic()
        if left is not None and left <= 0:
            _say(THAWING)
            freezer.thaw_all(fds)
            if not freezing:
                return
            end = left = None
        try:
            ready = select.select([0], [], [], left)[0]
            data = os.read(0, 1) if ready else None
        except (EnvironmentError, select.error) as error:
            sys.stderr.write("cvm_migrate watchdog: %s\n" % (error,))
            data = b""
        if data is None:
            continue
        if data == QUIT:
            return
        if data == FREEZING:
            end = clock.monotonic() + limit
        elif data == DONE:
            freezing = False
            if end is None:
                # The limit has passed already: main froze the last one after the thaw.
                freezer.thaw_all(fds)
                return
        else:
            freezer.thaw_all(fds)
            return


def _say(what):
    # type: (bytes) -> None
    try:
        os.write(1, what)
    except EnvironmentError as error:
        sys.stderr.write("cvm_migrate watchdog: %s\n" % error)
