"""The agent's main process: requests in on standard input, answers out on standard output.

Its main thread reads and never waits for anything else, so that heartbeats are answered and an end of file is seen
while any number of disks hang. Each request runs in a thread of its own; one thread writes.

However it ends (end of file, ``shutdown``, silence, a signal, a closed standard output, bytes that are no frames),
file systems are thawed first, then everything else is released.
"""

from __future__ import absolute_import

import errno
import fcntl
import os
import platform
import select
import signal
import sys
import threading
import traceback

from cvm_migrate.agent import (
    VERSION,
    clock,
    digesting,
    digests,
    disks,
    facts,
    freezing,
    names,
    reach,
    watchdog,
    wire,
    writing_out,
)
from cvm_migrate.agent.outbox import CallerGone, Outbox
from cvm_migrate.agent.pump import compression
from cvm_migrate.agent.pump import verbs as pump_verbs
from cvm_migrate.agent.tracking import verbs as tracking_verbs
from cvm_migrate.agent.verbs import AgentError, Context, Reply

assert sys.platform != "win32", "the agent runs on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from cvm_migrate.agent.verbs import Header, Verb

EXIT_CLEAN = 0
EXIT_PROTOCOL = 3

MOST_REQUESTS = 32
_READ = 1 << 18
# mlockall takes a thread's whole stack; the system's default is 8 MiB each.
_STACK = 1 << 20
# How long the end may take before the process ends without it; the watchdog thaws then.
_RELEASE_SECONDS = 20.0
_DRAIN_SECONDS = 5.0


class Agent(object):
    """One agent between two descriptors.

    Args:
        fd_in: Where frames come from.
        fd_out: Where they go.
        command: The arguments that start this program again.
        silence: End after so many seconds without a byte; 0: never.
        verbs: What it can do; by default all that an agent can.
    """

    def __init__(self, fd_in, fd_out, command, silence, verbs=None):
        # type: (int, int, List[str], float, Optional[Dict[str, Verb]]) -> None
        self._in = fd_in
        self._silence = silence
        self._context = Context(command)
        self._verbs = _verbs() if verbs is None else dict(verbs)
        self._verbs["shutdown"] = self._shutdown
        self._running = {}  # type: Dict[int, Reply]
        self._lock = threading.Lock()
        self._ended = False
        self._wake_in, self._wake_out = os.pipe()
        for fd in (self._wake_in, self._wake_out):
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        self._outbox = Outbox(fd_out, self._wake)

    def _wake(self):
        # type: () -> None
        """Have the main loop end."""
        try:
            os.write(self._wake_out, b"\0")
        except EnvironmentError as error:
            # Full: then it is awake already.
            if error.errno != errno.EAGAIN:
                raise

    def run(self):
        # type: () -> int
        """Answer requests until the end; return the exit code."""
        # Python's own handler writes the byte, whichever thread the signal comes to.
        signal.set_wakeup_fd(self._wake_out)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _noted)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._outbox.force(
            wire.encode(
                wire.HELLO,
                0,
                {
                    "protocol": wire.PROTOCOL_VERSION,
                    "agent": VERSION,
                    "python": platform.python_version(),
                    "pid": os.getpid(),
                    "verbs": sorted(self._verbs),
                    "digests": list(digests.NAMES),
                    "codecs": compression.available(),
                },
            )
        )
        try:
            return self._loop()
        except wire.WireError as error:
            sys.stderr.write("cvm_migrate agent: %s\n" % error.message)
            return EXIT_PROTOCOL
        except CallerGone:
            return EXIT_CLEAN
        finally:
            self._release()

    def _loop(self):
        # type: () -> int
        decoder = wire.Decoder()
        poll = select.poll()
        poll.register(self._in, select.POLLIN)
        poll.register(self._wake_in, select.POLLIN)
        heard = clock.monotonic()
        while True:
            left = None  # type: Optional[float]
            if self._silence:
                left = heard + self._silence - clock.monotonic()
                if left <= 0:
                    sys.stderr.write("cvm_migrate agent: nothing heard for %g s\n" % self._silence)
                    return EXIT_CLEAN
            try:
                ready = dict(poll.poll(None if left is None else int(left * 1000) + 1))
                if self._wake_in in ready:
                    return EXIT_CLEAN
                if self._in not in ready:
                    continue
                data = os.read(self._in, _READ)
            except (EnvironmentError, select.error) as error:
                # Python 2 does not repeat what a signal interrupts; select.error is no EnvironmentError there.
                if error.args[0] in (errno.EINTR, errno.EAGAIN):
                    continue
                return EXIT_CLEAN
            if not data:
                return EXIT_CLEAN
            heard = clock.monotonic()
            try:
                frames = decoder.feed(data)
            except wire.WireError as error:
                for frame in error.frames:
                    self._take(frame)
                raise
            for frame in frames:
                self._take(frame)

    def _take(self, frame):
        # type: (wire.Frame) -> None
        if frame.kind == wire.HEARTBEAT:
            self._outbox.beat(wire.encode(wire.HEARTBEAT, 0, frame.header))
        elif frame.kind == wire.CANCEL:
            with self._lock:
                reply = self._running.get(frame.id)
            if reply is not None:  # else it has been answered meanwhile
                reply.cancel()
        elif frame.kind == wire.REQUEST:
            self._start(frame)
        else:
            raise wire.WireError(
                "a caller does not send frames of kind %s" % wire.KINDS[frame.kind]
            )

    def _start(self, frame):
        # type: (wire.Frame) -> None
        def part(header, blob):
            # type: (Header, bytes) -> None
            self._outbox.send(wire.encode(wire.PART, frame.id, header, blob))

        reply = Reply(part)
        with self._lock:
            if frame.id in self._running:
                raise wire.WireError("the request %d runs already" % frame.id)
            refusal = self._refusal(frame.header)
            if refusal is None:
                self._running[frame.id] = reply
        if refusal is None:
            thread = threading.Thread(target=self._answer, args=(frame, reply))
            thread.daemon = True
            try:
                thread.start()
                return
            except Exception as error:  # noqa: BLE001 - Python 2 raises thread.error, which has no base
                with self._lock:
                    del self._running[frame.id]
                refusal = AgentError("internal", "no thread for the request: %s" % (error,))
        self._outbox.force(wire.encode(wire.ERROR, frame.id, refusal.to_header()))

    def _refusal(self, header):
        # type: (Header) -> Optional[AgentError]
        """Return why a request cannot even begin."""
        name = header.get("verb")
        if not isinstance(header.get("args"), dict) or name not in list(self._verbs):
            return AgentError(
                "bad-request",
                "no verb %.80r with an object of arguments; there are: %s"
                % (name, ", ".join(sorted(self._verbs))),
            )
        if self._ended:
            return AgentError("bad-request", "the agent is ending")
        if len(self._running) >= MOST_REQUESTS:
            return AgentError("bad-request", "%d requests run already" % MOST_REQUESTS)
        return None

    def _answer(self, frame, reply):
        # type: (wire.Frame, Reply) -> None
        """Run a request and send its last answer."""
        verb = self._verbs[frame.header["verb"]]
        try:
            try:
                header, blob = verb(self._context, frame.header["args"], frame.blob, reply)
                answer = wire.encode(wire.RESULT, frame.id, header, blob)
            except AgentError as error:
                answer = wire.encode(wire.ERROR, frame.id, error.to_header())
            except CallerGone:
                raise
            except Exception as error:  # noqa: BLE001 - told to the caller
                answer = wire.encode(wire.ERROR, frame.id, _defect(error).to_header())
            with self._lock:
                self._running.pop(frame.id, None)
            self._outbox.send(answer)
        except CallerGone:
            with self._lock:
                self._running.pop(frame.id, None)
        if verb == self._shutdown:
            self._wake()

    def _shutdown(self, context, args, blob, reply):
        # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
        del context, args, blob
        self._release(keep=reply)
        return {}, b""

    def _release(self, keep=None):
        # type: (Optional[Reply]) -> None
        """Call everything off and run the cleanups, thawing first; whatever hangs is left behind after a while."""
        with self._lock:
            self._ended = True
            replies = [reply for reply in self._running.values() if reply is not keep]
        for reply in replies:
            reply.cancel()
        thread = threading.Thread(target=self._clean)
        thread.daemon = True
        thread.start()
        thread.join(_RELEASE_SECONDS)
        if keep is None:
            self._outbox.drain(_DRAIN_SECONDS)

    def _clean(self):
        # type: () -> None
        while True:
            cleanup = self._context.next_cleanup()
            if cleanup is None:
                return
            try:
                cleanup()
            except Exception:  # noqa: BLE001 - the others must run all the same
                sys.stderr.write(traceback.format_exc())


def _noted(number, frame):
    # type: (int, Any) -> None
    """Nothing: the byte that Python wrote for the signal ends the main loop."""


def _defect(error):
    # type: (Exception) -> AgentError
    """Return the error `internal`, with the last line of the traceback and where it was."""
    lines = traceback.format_exception_only(type(error), error)
    message = names.to_text(lines[-1].strip())
    places = traceback.extract_tb(sys.exc_info()[2])
    if places:
        message += " (%s:%s)" % (os.path.basename(places[-1][0]), places[-1][1])
    sys.stderr.write(traceback.format_exc())
    return AgentError("internal", message, errno=getattr(error, "errno", None))


def _verbs():
    # type: () -> Dict[str, Verb]
    verbs = {}  # type: Dict[str, Verb]
    for more in (
        facts.VERBS,
        reach.VERBS,
        disks.VERBS,
        digesting.VERBS,
        tracking_verbs.VERBS,
        writing_out.VERBS,
        freezing.VERBS,
        pump_verbs.VERBS,
    ):
        verbs.update(more)
    return verbs


def own_lines():
    # type: () -> Tuple[int, int]
    """Move the protocol to descriptors of its own, so that neither a print nor a child can touch it."""
    fd_in, fd_out = (fcntl.fcntl(fd, fcntl.F_DUPFD, 3) for fd in (0, 1))
    for fd in (fd_in, fd_out):
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except EnvironmentError:
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
    if nothing > 2:
        os.close(nothing)
    sys.stdout = sys.stderr
    return fd_in, fd_out


def _command():
    # type: () -> List[str]
    """Return what starts this program again."""
    path = os.path.abspath(sys.argv[0])
    if path.endswith(".py"):
        # `python -m cvm_migrate.agent`: the package is found as this process found it, by the environment too.
        return [sys.executable, "-B", "-m", "cvm_migrate.agent"]
    # Modules that serve this process, such as xxhash, must serve the pump that was told of them.
    isolated = ["-E"] if sys.flags.ignore_environment else []
    if sys.flags.no_user_site:
        isolated.append("-s")
    return [sys.executable] + isolated + ["-B", path]


def main(arguments):
    # type: (List[str]) -> None
    """Run one of the agent's processes and end it."""
    threading.stack_size(_STACK)
    if arguments[:1] == ["--watchdog"]:
        watchdog.run()
        return
    if arguments[:1] == ["--write-out"]:
        writing_out.run()
        return
    if arguments[:1] == ["--pump"]:
        from cvm_migrate.agent.pump import process

        process.run()
        return
    silence = 0.0
    if len(arguments) == 2 and arguments[0] == "--silence":
        silence = float(arguments[1])
    elif arguments:
        sys.stderr.write("usage: agent [--silence SECONDS]\n")
        sys.exit(2)
    fd_in, fd_out = own_lines()
    code = Agent(fd_in, fd_out, _command(), silence).run()
    sys.stderr.flush()
    # Threads that hang in a disk must not hold the process.
    os._exit(code)
