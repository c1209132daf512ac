"""The data verbs as the agent's main process offers them: each is handed on to a pump's process."""

from __future__ import absolute_import

import os
import sys
import threading
import time

from cvm_migrate.agent import children, wire
from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.pump import frames
from cvm_migrate.agent.pump.channel import Waker
from cvm_migrate.agent.verbs import AgentError, integer

assert sys.platform != "win32", "pumps run on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from cvm_migrate.agent.blockio import OpenHandle
    from cvm_migrate.agent.verbs import Context, Header, Reply, Verb

MOST_PUMPS = 32
# How often a waiting request looks whether it was called off.
_LOOK = 0.1
_END_SECONDS = 5.0
_READ = 1 << 16


class _Call(object):
    """A request that waits for the pump's answer; of its PARTs only the newest is kept."""

    def __init__(self):
        # type: () -> None
        self.waker = Waker()
        self.part = None  # type: Optional[wire.Frame]
        self.answer = None  # type: Optional[wire.Frame]


class Pump(object):
    """One pump's process."""

    def __init__(self, command):
        # type: (List[str]) -> None
        try:
            self._process = children.start(command + ["--pump"])
        except EnvironmentError as error:
            raise AgentError("pump", "a pump cannot be started: %s" % (error,))
        assert self._process.stdin is not None  # noqa: S101 - pipes were asked for
        assert self._process.stdout is not None  # noqa: S101
        self._in = self._process.stdin
        self._out = self._process.stdout
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._calls = {}  # type: Dict[int, _Call]
        self._last = 0
        self._gone = False
        thread = threading.Thread(target=self._listen)
        thread.daemon = True
        thread.start()

    def _listen(self):
        # type: () -> None
        decoder = wire.Decoder()
        fd = self._out.fileno()
        try:
            while True:
                data = os.read(fd, _READ)
                if not data:
                    break
                for frame in decoder.feed(data):
                    self._take(frame)
        except (EnvironmentError, wire.WireError):
            pass  # it is of no use any more, as at the end of file
        with self._lock:
            self._gone = True
            for call in self._calls.values():
                call.waker.wake()

    def _take(self, frame):
        # type: (wire.Frame) -> None
        # The lock keeps the call's waker from being closed meanwhile.
        with self._lock:
            call = self._calls.get(frame.id)
            if call is None:
                return
            if frame.kind == wire.PART:
                call.part = frame
            else:
                call.answer = frame
            call.waker.wake()

    def call(self, verb, args, blob, reply):
        # type: (str, Header, bytes, Reply) -> Tuple[Header, bytes]
        """Hand a request on and return its RESULT.

        Raises:
            AgentError: What the pump answers; ``pump``: it has ended.
        """
        call = _Call()
        with self._lock:
            self._last += 1
            number = self._last
            self._calls[number] = call
        try:
            self._send(wire.encode(wire.REQUEST, number, {"verb": verb, "args": args}, blob))
            return self._await(number, call, reply)
        finally:
            with self._lock:
                del self._calls[number]
            call.waker.close()

    def _await(self, number, call, reply):
        # type: (int, _Call, Reply) -> Tuple[Header, bytes]
        asked_to_end = False
        while True:
            call.waker.sleeping = True
            part, call.part = call.part, None
            if part is not None:
                reply.part(part.header, part.blob)
            answer = call.answer
            if answer is not None:
                if answer.kind == wire.RESULT:
                    return answer.header, answer.blob
                raise _error(answer.header)
            if self._gone:
                raise self._death()
            if reply.cancelled and not asked_to_end:
                asked_to_end = True
                self._send(wire.encode(wire.CANCEL, number, {}))
            call.waker.wait(_LOOK)

    def _send(self, data):
        # type: (bytes) -> None
        try:
            with self._writing:
                children.write(self._in.fileno(), data)
        except (EnvironmentError, ValueError):
            # ValueError: it was ended from here.
            raise self._death()

    def _death(self):
        # type: () -> AgentError
        code = self._wait(_END_SECONDS)
        if code is None:
            how = "does not answer any more"
        elif code < 0:
            how = "was ended by signal %d" % -code
        else:
            how = "ended with exit code %d" % code
        return AgentError("pump", "the pump's process %s" % how)

    def _wait(self, seconds):
        # type: (float) -> Optional[int]
        """Return the exit code, None if it has not ended within *seconds*."""
        end = monotonic() + seconds
        while True:
            with self._lock:
                code = self._process.poll()
            left = end - monotonic()
            if code is not None or left <= 0:
                return code
            time.sleep(min(0.02, left))

    def end(self):
        # type: () -> None
        """End the process; can be called again."""
        patience = 0.0
        if self._writing.acquire(False):
            # Else it does not even read what is being written to it.
            patience = _END_SECONDS
            self._in.close()
            self._writing.release()
        if self._wait(patience) is None:
            with self._lock:
                if self._process.poll() is None:
                    self._process.kill()
            # One that hangs in its disk goes when the disk lets go of it.
            self._wait(_END_SECONDS)


def _error(header):
    # type: (Header) -> AgentError
    return AgentError(
        header.get("code") or "internal",
        header.get("message") or "the pump failed",
        errno=header.get("errno"),
        device=header.get("device"),
        offset=header.get("offset"),
        length=header.get("length"),
        remedy=header.get("remedy"),
    )


class _Pumps(object):
    """The pumps of one agent."""

    def __init__(self, context):
        # type: (Context) -> None
        del context
        self.lock = threading.Lock()
        self.pumps = {}  # type: Dict[int, Pump]
        self.last = 0


def _begin(verb, context, args, reply, writing):
    # type: (str, Context, Header, Reply, bool) -> Tuple[Header, bytes]
    """Start a pump and give it its first request."""
    disks = _disks(context, args, writing)
    if not isinstance(args.get("tls"), dict):
        raise AgentError("bad-request", "tls must be an object")
    table = context.kept(_Pumps)
    with table.lock:
        if len(table.pumps) >= MOST_PUMPS:
            raise AgentError("bad-request", "%d pumps run already" % MOST_PUMPS)
        table.last += 1
        number = table.last
        pump = table.pumps[number] = Pump(context.command)
    context.at_end(pump.end)
    try:
        header, blob = pump.call(verb, dict(args, disks=disks), b"", reply)
    except BaseException:
        _end(context, number)
        raise
    return dict(header, pump=number), blob


def _disks(context, args, writing):
    # type: (Context, Header, bool) -> Dict[str, Dict[str, Any]]
    """Return what a pump opens, by the disks' numbers."""
    if not isinstance(args.get("disks"), dict):
        raise AgentError("bad-request", "disks must be an object")
    wanted = args["disks"]  # type: Dict[str, Any]
    found = {}  # type: Dict[str, Dict[str, Any]]
    for name in wanted:
        if not name.isdigit() or len(name) > 5 or int(name) > frames.MAX_DISK:
            raise AgentError("bad-request", "a disk is numbered %.20r" % (name,))
        handle = context.handle(wanted, name)  # type: OpenHandle
        if writing and handle.mode != "write":
            raise AgentError(
                "bad-request", "%s is open for reading only" % handle.path, device=handle.path
            )
        found[name] = {"path": handle.path, "identity": handle.identity}
    return found


def _end(context, number):
    # type: (Context, int) -> None
    table = context.kept(_Pumps)
    with table.lock:
        pump = table.pumps.pop(number, None)
    if pump is not None:
        pump.end()
        context.not_at_end(pump.end)


def _find(context, args):
    # type: (Context, Header) -> Pump
    number = integer(args, "pump", 0)
    table = context.kept(_Pumps)
    with table.lock:
        pump = table.pumps.get(number)
    if pump is None:
        raise AgentError("bad-request", "there is no pump %d" % number)
    return pump


def _receive(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob
    return _begin("receive", context, args, reply, writing=True)


def _connect(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob
    return _begin("connect", context, args, reply, writing=False)


def _handed_on(verb):
    # type: (str) -> Verb
    """Return a verb that the pump named in its arguments answers."""

    def call(context, args, blob, reply):
        # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
        return _find(context, args).call(verb, args, blob, reply)

    return call


def _disconnect(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob, reply
    _find(context, args)
    _end(context, integer(args, "pump", 0))
    return {}, b""


VERBS = {
    "receive": _receive,
    "connect": _connect,
    "stream": _handed_on("stream"),
    "measure": _handed_on("measure"),
    "pace": _handed_on("pace"),
    "read_back": _handed_on("read_back"),
    "received": _handed_on("received"),
    "disconnect": _disconnect,
}  # type: Dict[str, Verb]
