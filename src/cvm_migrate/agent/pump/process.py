"""The pump's own process: a small agent whose only verbs are those of one sender or one receiver.

It is started by the agent's main process and ends with it: when its standard input ends, it ends at once.
"""

from __future__ import absolute_import

# Not when a host is looked up: the file system with it may be frozen then.
import encodings.idna
import os
import sys

from cvm_migrate.agent import blockio, digests, main
from cvm_migrate.agent.pump import frames, receiver, sender, target, tls
from cvm_migrate.agent.verbs import AgentError, integer, number, optional_integer, text

assert sys.platform != "win32", "pumps run on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    from cvm_migrate.agent.verbs import Context, Header, Reply

MOST_STREAMS = 64
IDNA = encodings.idna
_CODECS = ("auto", "raw", "zlib", "zstd")


class _Pump(object):
    """The verbs of the process. It is a sender or a receiver from its first request on."""

    def __init__(self):
        # type: () -> None
        self._sender = None  # type: Optional[sender.Sender]
        self._receiver = None  # type: Optional[receiver.Receiver]

    def verbs(self):
        # type: () -> Dict[str, Any]
        """Return the verbs."""
        return {
            "receive": self.receive,
            "connect": self.connect,
            "stream": self.stream,
            "measure": self.measure,
            "pace": self.pace,
            "read_back": self.read_back,
            "received": self.received,
        }

    def receive(self, context, args, blob, reply):
        # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
        """Listen."""
        del context, blob, reply
        streams = integer(args, "streams", 1, MOST_STREAMS)
        context_of_tls = tls.make_context(args["tls"], server=True)
        disks = {
            disk: target.TargetDisk(handle) for disk, handle in _open_disks(args, "write").items()
        }
        made = receiver.Receiver(
            disks, context_of_tls, text(args["tls"], "peer"), text(args, "session"), streams
        )
        port = made.listen(text(args, "bind"), integer(args, "port", 0, 65535))
        self._receiver = made
        return {"port": port}, b""

    def connect(self, context, args, blob, reply):
        # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
        """Connect to a receiver."""
        del context, blob
        streams = integer(args, "streams", 1, MOST_STREAMS)
        algorithm = text(args, "algorithm")
        if algorithm not in digests.NAMES:
            raise AgentError("unsupported", "this Python has no %s digests" % algorithm)
        made = sender.Sender(
            _open_disks(args, "read"),
            tls.make_context(args["tls"], server=False),
            text(args["tls"], "peer"),
            text(args, "host"),
            integer(args, "port", 1, 65535),
            text(args, "session"),
            algorithm,
            number(args, "patience", 0.0, 1e6),
        )
        facts = made.connect(streams, reply)
        self._sender = made
        return facts, b""

    def stream(self, context, args, blob, reply):
        # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
        """Send ranges."""
        del context
        made = self._sending()
        chunk = integer(args, "chunk", blockio.ALIGNMENT, frames.MAX_CHUNK)
        if chunk % blockio.ALIGNMENT:
            raise AgentError("bad-request", "chunk must be a multiple of %d" % blockio.ALIGNMENT)
        codec = text(args, "codec", _CODECS) if args.get("codec") is not None else "auto"
        level = optional_integer(args, "level", -100, 22)
        self._set_pace(made, args)
        return (
            made.stream(
                integer(args, "disk", 0, frames.MAX_DISK),
                blob,
                chunk,
                codec,
                1 if level is None else level,
                reply,
            ),
            b"",
        )

    def measure(self, context, args, blob, reply):
        # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
        """Send noise for some time."""
        del context, blob
        made = self._sending()
        seconds = number(args, "seconds", 0.1, 10.0)
        made.sending.rate = _rate(args, "bandwidth")
        return made.measure(seconds, reply), b""

    def pace(self, context, args, blob, reply):
        # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
        """Change the limits."""
        del context, blob, reply
        self._set_pace(self._sending(), args)
        return {}, b""

    def _set_pace(self, made, args):
        # type: (sender.Sender, Header) -> None
        made.sending.rate = _rate(args, "bandwidth")
        made.reading.rate = _rate(args, "read_limit")

    def read_back(self, context, args, blob, reply):
        # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
        """Prove what was received."""
        del context, blob
        disk = self._receiving().disks.get(integer(args, "disk", 0, frames.MAX_DISK))
        if disk is None:
            raise AgentError("bad-request", "there is no disk %r in this pump" % (args["disk"],))
        return disk.read_back(reply.check, lambda done: reply.part({"done": done})), b""

    def received(self, context, args, blob, reply):
        # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
        """Tell what has come."""
        del context, args, blob, reply
        return self._receiving().counts(), b""

    def _sending(self):
        # type: () -> sender.Sender
        if self._sender is None:
            raise AgentError("bad-request", "this pump does not send")
        return self._sender

    def _receiving(self):
        # type: () -> receiver.Receiver
        if self._receiver is None:
            raise AgentError("bad-request", "this pump does not receive")
        return self._receiver


def _rate(args, name):
    # type: (Header, str) -> Optional[float]
    """Return a limit in bytes per second; None where there is none."""
    rate = optional_integer(args, name, 1)
    return None if rate is None else float(rate)


def _open_disks(args, mode):
    # type: (Header, str) -> Dict[int, blockio.OpenHandle]
    """Open the disks that main has open, and make sure that they are the same.

    Main keeps its exclusive claim on a target; a claim of the pump's own would be refused.
    """
    found = {}  # type: Dict[int, blockio.OpenHandle]
    for name, facts in args["disks"].items():
        handle = blockio.open_disk(facts["path"], mode, exclusive=False)
        if handle.identity != facts["identity"]:
            raise AgentError(
                "unsafe", "%s is another disk by now" % handle.path, device=handle.path
            )
        found[int(name)] = handle
    return found


def run():
    # type: () -> None
    """Run the pump until its standard input ends."""
    # Threads hand work on all the time; the default of 5 ms is long for that.
    if hasattr(sys, "setswitchinterval"):
        sys.setswitchinterval(0.001)  # novm - asked for
    fd_in, fd_out = main.own_lines()
    code = main.Agent(fd_in, fd_out, [], 0.0, _Pump().verbs()).run()
    sys.stderr.flush()
    os._exit(code)
