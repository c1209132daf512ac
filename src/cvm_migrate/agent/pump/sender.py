"""The sending end: lanes that work on one job at a time."""

from __future__ import absolute_import, division

import binascii
import os
import socket
import sys
import threading
import time

from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.pump import compression, frames, lane, probe
from cvm_migrate.agent.pump import job as jobs
from cvm_migrate.agent.pump.channel import Waker
from cvm_migrate.agent.pump.pace import Bucket
from cvm_migrate.agent.verbs import AgentError

assert sys.platform != "win32", "pumps run on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any, Dict, List, Optional, Text, Tuple

    from cvm_migrate.agent.blockio import OpenHandle
    from cvm_migrate.agent.pump.lane import Work
    from cvm_migrate.agent.verbs import Reply

# One key of AES-GCM is good for 2**24.5 records of 16 KiB (RFC 8446, 5.5), which is 362 GiB.
RENEW_AFTER = 256 << 30
_PART_INTERVAL = 0.25
# How often one who waits for another's job looks whether it is over.
_LOOK = 0.02
# How long chunks that are under way get to arrive once their job has failed.
_DRAIN_SECONDS = 2.0


class Sender(object):
    """All that one sending pump has.

    Args:
        disks: By their number.
        context: TLS for the end that connects.
        peer: The name in the receiver's certificate.
        host: Where the receiver listens.
        port: Its port.
        session: What it wants to hear.
        algorithm: Of the digests.
        patience: Seconds that a connection may stay cut.
        renew_after: Bytes after which a connection is made anew.
    """

    def __init__(
        self,
        disks,
        context,
        peer,
        host,
        port,
        session,
        algorithm,
        patience,
        renew_after=RENEW_AFTER,
    ):
        # type: (Dict[int, OpenHandle], ssl.SSLContext, Text, Text, int, Text, str, float, int) -> None
        self.context = context
        self.peer = peer
        self.host = host
        self.port = port
        self.algorithm = algorithm
        self.patience = patience
        self.renew_after = renew_after
        self.job = None  # type: Optional[Work]
        self.sending = Bucket(None, monotonic)
        self.reading = Bucket(None, monotonic)
        self.waker = Waker()
        self.addresses = []  # type: List[Any]
        self._disks = disks
        self._session = session
        self._name = binascii.hexlify(os.urandom(16)).decode("ascii")
        self._lanes = []  # type: List[lane.Lane]
        self._readers = 1
        self._choosers = {}  # type: Dict[Tuple[str, str, int], compression.Chooser]
        # One job at a time, as lanes must be clear of the last one before they begin another.
        self._busy = threading.Lock()

    def hello(self, number):
        # type: (int) -> Dict[str, Any]
        """Return the HELLO of a lane."""
        return {
            "protocol": frames.PROTOCOL,
            "session": self._session,
            "sender": self._name,
            "lane": number,
            "algorithm": self.algorithm,
            "codecs": compression.available(),
            "disks": dict(  # noqa: C402 - 2.6
                (str(disk), handle.size) for disk, handle in self._disks.items()
            ),
        }

    def connect(self, streams, reply):
        # type: (int, Reply) -> Dict[str, Any]
        """Connect all lanes; return the RESULT of `connect`.

        Raises:
            AgentError: ``peer``, ``connection``, ``bad-request`` (no such host), ``cancelled``.
        """
        try:
            # Asked once: while a root file system is frozen, no name may be looked up.
            self.addresses = socket.getaddrinfo(
                self.host, self.port, socket.AF_UNSPEC, socket.SOCK_STREAM
            )
        except (EnvironmentError, UnicodeError) as error:
            raise AgentError(
                "connection", "the address of %s cannot be found: %s" % (self.host, error)
            )
        self._readers = 2 if streams == 1 else 1
        self._lanes = [lane.Lane(self, number, self._readers) for number in range(streams)]
        self._await_lanes(reply, monotonic() + self.patience)
        facts = dict(self._lanes[0].facts)
        del facts["disks"]
        return facts

    def _await_lanes(self, reply, end):
        # type: (Reply, float) -> None
        """Wait until every lane is connected: then nothing of an earlier job is under way any more."""
        while True:
            self.waker.sleeping = True
            reply.check()
            missing = [one for one in self._lanes if one.state != lane.UP]
            if not missing:
                return
            for one in missing:
                if one.refusal is not None:
                    raise one.refusal
            if monotonic() > end:
                raise missing[0].lost_error()
            self.waker.wait(0.1)

    def stream(self, disk, blob, chunk, codec, level, reply):
        # type: (int, bytes, int, str, int, Reply) -> Dict[str, Any]
        """Send ranges and have them durable at the other end; return the RESULT of `stream`.

        Raises:
            AgentError: As the protocol lists them.
        """
        self._await_turn(reply)
        try:
            return self._stream(disk, blob, chunk, codec, level, reply)
        finally:
            self._busy.release()

    def _await_turn(self, reply):
        # type: (Reply) -> None
        while not self._busy.acquire(False):
            reply.check()
            time.sleep(_LOOK)

    def _stream(self, disk, blob, chunk, codec, level, reply):
        # type: (int, bytes, int, str, int, Reply) -> Dict[str, Any]
        handle = self._disks.get(disk)
        if handle is None:
            raise AgentError("bad-request", "there is no disk %d in this pump" % disk)
        # Those that were lost meanwhile, or refused, try again at once.
        self._kick(self._lanes)
        self._await_lanes(reply, monotonic() + self.patience)
        facts = self._lanes[0].facts
        room = facts["disks"].get(str(disk), 0)
        jobs.check_ranges(blob, handle, room)
        if codec not in ("auto", "raw") and codec not in facts["codecs"]:
            raise AgentError("unsupported", "not both ends have %s" % codec)
        packing = [name for name in facts["codecs"] if name != "raw"]
        chooser = self._chooser(codec, packing[0] if packing else "raw", level)
        job = jobs.Job(disk, handle, blob, chunk, chooser, self.waker)
        flush_seconds = 0.0
        self.job = job
        try:
            self._kick(self._lanes)
            self._follow(job, reply, lambda: job.settled)
            if job.error is None:
                begin = monotonic()
                self._lanes[0].flush(job)
                self._follow(job, reply, lambda: job.flushed is not None)
                flush_seconds = monotonic() - begin
            if job.error is not None:
                raise job.error
            reply.part(job.figures())
            return dict(
                job.figures(),
                codec=chooser.mostly,
                reconnects=job.reconnects,
                flush_seconds=flush_seconds,
            )
        finally:
            if job.error is not None:
                self._clear(job)
            self.job = None

    def measure(self, seconds, reply):
        # type: (float, Reply) -> Dict[str, Any]
        """Send noise over all lanes for some time; return the RESULT of `measure`.

        Raises:
            AgentError: ``connection``: nothing was confirmed; ``peer``; ``cancelled``.
        """
        self._await_turn(reply)
        try:
            return self._measure(seconds, reply)
        finally:
            self._busy.release()

    def _measure(self, seconds, reply):
        # type: (float, Reply) -> Dict[str, Any]
        self._kick(self._lanes)
        self._await_lanes(reply, monotonic() + self.patience)
        made = probe.Probe(seconds, self.waker)
        late = monotonic() + seconds + max(_DRAIN_SECONDS, seconds)
        self.job = made
        try:
            self._kick(self._lanes)
            self._follow(made, reply, lambda: made.settled or monotonic() > late)
            figures = made.figures()
            if not made.settled:
                made.fail(
                    AgentError(
                        "connection",
                        "the receiver confirmed %d bytes in %.3g s, and not the rest"
                        % (figures["bytes"], monotonic() - made.begin),
                    )
                )
            if made.error is not None and (
                made.error.code != "connection" or not figures["bytes"]
            ):
                raise made.error
            paths = [one.path() for one in self._lanes]
            facts = self._lanes[0].facts
            return dict(
                figures,
                rtt=min(one.facts["rtt"] for one in self._lanes),
                mtu=_least([path[0] for path in paths]),
                mss=_least([path[1] for path in paths]),
                tls_version=facts["tls_version"],
                cipher=facts["cipher"],
            )
        finally:
            if not made.settled:
                made.fail(AgentError("cancelled", "the measurement is over"))
            if made.error is not None:
                self._clear(made)
            self.job = None

    def _chooser(self, codec, best, level):
        # type: (str, str, int) -> compression.Chooser
        """Return what decides about compression; what it learnt of the path stays from one job to the next."""
        key = (codec, best, level)
        if key not in self._choosers:
            self._choosers = {key: compression.Chooser(codec, best, level, threads=self._readers)}
        chooser = self._choosers[key]
        chooser.begin()
        return chooser

    def _kick(self, lanes):
        # type: (List[lane.Lane]) -> None
        for one in lanes:
            one.kick()

    def _follow(self, job, reply, over):
        # type: (Work, Reply, Any) -> None
        """Tell how a job goes until it is over or has failed."""
        told = monotonic()
        while True:
            self.waker.sleeping = True
            if over() or job.error is not None:
                return
            if reply.cancelled:
                job.fail(AgentError("cancelled", "the caller called the stream off"))
                return
            self.waker.wait(_PART_INTERVAL)
            if monotonic() - told >= _PART_INTERVAL:
                told = monotonic()
                reply.part(job.figures())

    def _clear(self, job):
        # type: (Work) -> None
        """Get a failed job out of the lanes: what is under way arrives, or its connection is cut."""
        self._kick(self._lanes)
        end = monotonic() + _DRAIN_SECONDS
        while not job.settled and monotonic() < end:
            self.waker.sleeping = True
            self.waker.wait(0.05)
        if not job.settled:
            for one in self._lanes:
                one.cut()


def _least(values):
    # type: (List[Optional[int]]) -> Optional[int]
    known = [value for value in values if value is not None]
    return min(known) if known else None
