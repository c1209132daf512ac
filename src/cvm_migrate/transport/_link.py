"""Requests and answers over one agent's standard streams.

One thread does all input and output. Threads that call leave a frame for it and wait for their own answer, so
that a slow caller holds up nobody: an answer of many parts is either kept whole, within a bound that the
request was cut to, or only its newest part is.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from cvm_migrate.agent import wire
from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import (
    AgentLostError,
    CancelledError,
    ConnectionLostError,
    CvmMigrateError,
    DefectError,
    FreezeLostError,
    InvalidRequestError,
    NoRoomError,
    NotFoundError,
    PeerRefusedError,
    PermissionDeniedError,
    ProtocolError,
    SourceReadError,
    TargetWriteError,
    UnsafeTargetError,
    UnsupportedError,
)
from cvm_migrate.transport._child import Child

_log = logging.getLogger(__name__)

_HEARTBEAT: Final = 2.0
# How often a caller that waits looks at its CancelToken.
_LOOK: Final = 0.1
# How long an agent may take to release everything, which can mean waiting for its disks.
_SHUTDOWN_PATIENCE: Final = 20.0
# How long it may take to end once its input has ended, and again once it was asked by a signal.
_END_PATIENCE: Final = 2.0
# How long an agent may take to confirm that it has stopped: one chunk on a disk that retries.
_CANCEL_PATIENCE: Final = 60.0
# Bytes that an agent may have said on standard error, as far as a message quotes them.
_LAST_WORDS: Final = 2000

ERRORS: Final[Mapping[str, type[CvmMigrateError]]] = {
    "bad-request": InvalidRequestError,
    "not-found": NotFoundError,
    "unsafe": UnsafeTargetError,
    "permission": PermissionDeniedError,
    "unsupported": UnsupportedError,
    "read": SourceReadError,
    "write": TargetWriteError,
    "no-room": NoRoomError,
    "peer": PeerRefusedError,
    "connection": ConnectionLostError,
    "freeze": FreezeLostError,
    "cancelled": CancelledError,
    "pump": AgentLostError,
    "internal": DefectError,
}
"""What each code of an ERROR frame becomes."""


# What to do where the agent says nothing better.
_REMEDIES: Final[Mapping[str, str]] = {
    "permission": "Have the agent run as root there: log in as root, or with sudo=True",
    "peer": "Find out what answers at that port: a proxy, or another migration; then repeat the step",
    "unsupported": "Look at what the message names; check() tells what that machine can do",
}


class Answer(NamedTuple):
    """A PART or RESULT: its fields and its bytes."""

    header: dict[str, Any]
    blob: bytes


class _Failure(NamedTuple):
    header: dict[str, Any]


class _Call:
    """A request under way; its fields are guarded by the link's condition."""

    def __init__(self, keep: Literal["all", "newest"], room: int) -> None:
        self.keep = keep
        self.room = room
        self.parts: deque[Answer] = deque()
        self.end: Answer | _Failure | None = None
        self.abandoned = False
        self.cancelled: float | None = None

    def take(self, part: Answer) -> None:
        if self.abandoned:
            return
        if self.keep == "newest":
            self.parts.clear()
        else:
            self.room -= len(part.blob) + 256
            if self.room < 0:
                raise ProtocolError("more parts of an answer came than the request can have")
        self.parts.append(part)


class Link:
    """The line to one agent.

    Args:
        child: The process that is the agent, or leads to it.
        description: What messages call it.
        silence: Seconds without a byte after which it counts as lost.
        patience: Seconds that it has to greet.
        received: What has been read from it already.
        secrets: Texts that no message may contain.

    Raises:
        AgentLostError: It ended before its greeting, or gave none in time.
        ProtocolError: It speaks another language.
    """

    def __init__(
        self,
        child: Child,
        *,
        description: str,
        silence: float,
        patience: float,
        received: bytes = b"",
        secrets: Sequence[str] = (),
    ) -> None:
        self.description = description
        self._child = child
        self._silence = silence
        self._secrets = {secret for secret in secrets if secret}
        self._changed = threading.Condition()
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._outgoing: deque[memoryview] = deque()
        self._decoder = wire.Decoder()
        self._hello: dict[str, Any] | None = None
        self._lost: Callable[[], CvmMigrateError] | None = None
        self._closing = self._stop = False
        self._confirmed = False
        self._received = received
        self._waker, self._wake = socket.socketpair()
        self._waker.settimeout(0)
        self._wake.settimeout(0)
        self._thread = threading.Thread(
            target=self._run, name=f"link to {description}", daemon=True
        )
        self._thread.start()
        try:
            self.hello = self._greeting(patience)
        except BaseException:
            self.close()
            raise

    def _greeting(self, patience: float) -> dict[str, Any]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._hello is not None or self._lost is not None, timeout=patience
            )
            if self._lost is not None:
                raise self._lost()
            if self._hello is None:
                raise AgentLostError(
                    f"{self.description} gave no greeting within {patience:g} s{self._last_words()}",
                    seconds=patience,
                )
            return self._hello

    # What callers' threads do.

    def hide(self, *secrets: str) -> None:
        """Keep these texts out of every later message."""
        self._secrets.update(secret for secret in secrets if secret)

    def request(
        self,
        verb: str,
        arguments: Mapping[str, Any],
        blob: bytes = b"",
        *,
        on_part: Callable[[Answer], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        """Ask, and wait for the last answer; *on_part* sees the newest part, not each."""
        number, call = self._send(verb, arguments, blob, "newest", 0)
        # Closed at once, also when on_part raises: then the request is called off.
        with contextlib.closing(self._answers(number, call, cancel)) as answers:
            for answer in answers:
                if call.end is answer:
                    return answer
                if on_part is not None:
                    on_part(answer)
        raise DefectError(f"{verb}: an answer without an end")

    def parts(
        self,
        verb: str,
        arguments: Mapping[str, Any],
        blob: bytes = b"",
        *,
        room: int,
        cancel: CancelToken | None = None,
    ) -> Generator[Answer]:
        """Ask, and yield each part, then the last answer.

        Args:
            verb: What is asked for.
            arguments: Its arguments.
            blob: Bytes that belong to it.
            room: Bytes of all parts together, with 256 for each; an agent that sends more is lost.
            cancel: Ends it.
        """
        number, call = self._send(verb, arguments, blob, "all", room)
        yield from self._answers(number, call, cancel)

    def _send(
        self,
        verb: str,
        arguments: Mapping[str, Any],
        blob: bytes,
        keep: Literal["all", "newest"],
        room: int,
    ) -> tuple[int, _Call]:
        call = _Call(keep, room)
        with self._changed:
            self._check_alive()
            number = next(self._numbers)
            try:
                frame = wire.encode(
                    wire.REQUEST, number, {"verb": verb, "args": dict(arguments)}, blob
                )
            except wire.WireError as error:
                raise InvalidRequestError(f"{verb}: {error.message}") from error
            self._calls[number] = call
            self._outgoing.append(memoryview(frame))
        self._stir()
        return number, call

    def _answers(self, number: int, call: _Call, cancel: CancelToken | None) -> Generator[Answer]:
        finished = False
        try:
            while not finished:
                found = self._next(number, call, cancel)
                finished = found is call.end
                if isinstance(found, _Failure):
                    raise self._error(found.header)
                yield found
        finally:
            self._leave(number, call, finished=finished)

    def _next(self, number: int, call: _Call, cancel: CancelToken | None) -> Answer | _Failure:
        with self._changed:
            while True:
                if cancel is not None and cancel.cancelled and call.cancelled is None:
                    self._cancel(number, call)
                if call.parts:
                    return call.parts.popleft()
                if call.end is not None:
                    return call.end
                self._check_alive()
                if (
                    call.cancelled is not None
                    and time.monotonic() - call.cancelled > _CANCEL_PATIENCE
                ):
                    raise CancelledError(
                        f"called off, but {self.description} has not confirmed that it stopped",
                        remedy="What it was doing may still go on for a while",
                    )
                self._changed.wait(None if cancel is None else _LOOK)

    def _leave(self, number: int, call: _Call, *, finished: bool) -> None:
        with self._changed:
            call.parts.clear()
            if finished or call.end is not None:
                self._calls.pop(number, None)
            elif self._lost is None:
                # Its answer may still come, and is then dropped.
                call.abandoned = True
                if call.cancelled is None:
                    self._cancel(number, call)

    def _cancel(self, number: int, call: _Call) -> None:
        call.cancelled = time.monotonic()
        self._outgoing.append(memoryview(wire.encode(wire.CANCEL, number, {}, b"")))
        self._stir()

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise self._lost()

    def _stir(self) -> None:
        try:
            self._waker.send(b"!")
        except BlockingIOError:
            pass  # it is full of wake-ups already
        except OSError:
            _log.debug("%s: the line is down", self.description)

    def _error(self, header: dict[str, Any]) -> CvmMigrateError:
        code, message = header.get("code"), header.get("message")
        kind = ERRORS.get(code) if isinstance(code, str) else None
        if kind is None or not isinstance(message, str):
            return ProtocolError(f"{self.description} refused in words unknown: {header!r:.200}")
        numbers = {
            name: header[name]
            for name in ("offset", "length", "errno")
            if isinstance(header.get(name), int)
        }
        texts = {
            name: header[name]
            for name in ("device", "remedy")
            if isinstance(header.get(name), str)
        }
        remedy = texts.pop("remedy", None) or _REMEDIES.get(str(code))
        return kind(
            f"{self.description}: {self._clean(message)}",
            code=code,
            remedy=remedy,
            **numbers,
            **texts,
        )

    def close(self) -> None:
        """Ask the agent to release everything and to end, then see to it that it has."""
        with self._changed:
            first, self._closing = not self._closing, True
            greeted = self._hello is not None and self._lost is None
        if first and greeted:
            try:
                number, call = self._send("shutdown", {}, b"", "newest", 0)
                with self._changed:
                    self._changed.wait_for(
                        lambda: call.end is not None or self._lost is not None,
                        timeout=_SHUTDOWN_PATIENCE,
                    )
                    self._calls.pop(number, None)
                    self._confirmed = isinstance(call.end, Answer)
            except CvmMigrateError as error:
                _log.debug("%s: no orderly end: %s", self.description, error)
        self._lose(AgentLostError, f"{self.description} was closed")
        with self._changed:
            self._stop = True
            self._stir()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def pid(self) -> int:
        """Number of the child process."""
        return self._child.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status of the child process, once it has ended."""
        return self._child.returncode

    @property
    def confirmed(self) -> bool:
        """Whether the agent has said that it ends, when it was asked to by :meth:`close`."""
        return self._confirmed

    # What the link's own thread does.

    def _run(self) -> None:
        try:
            self._converse()
        except CvmMigrateError as error:
            self._lose(type(error), error.message, error.remedy)
        except Exception as error:  # noqa: BLE001 - callers must not wait for ever for a bug of ours
            _log.exception("%s: the link failed", self.description)
            self._lose(DefectError, f"{self.description}: the link failed: {error!r}")
        finally:
            self._child.end(patience=_END_PATIENCE)
            with self._changed:
                self._wake.close()
                self._waker.close()

    def _converse(self) -> None:
        heard = time.monotonic()
        beat = heard + _HEARTBEAT
        if self._received:
            self._feed(self._received)
        while not self._stop:
            now = time.monotonic()
            if now >= beat:
                beat = now + _HEARTBEAT
                self._beat(now)
            with self._changed:
                first = self._outgoing[0] if self._outgoing else None
            written, data = self._child.exchange(
                first, max(0.0, min(beat - now, 1.0)), self._wake.fileno()
            )
            self._drain_wakes()
            if written and first is not None:
                with self._changed:
                    if written == len(first):
                        self._outgoing.popleft()
                    else:
                        self._outgoing[0] = first[written:]
            if data:
                heard = time.monotonic()
                self._feed(data)
            elif not self._child.output_open:
                self._child.wait(2.0)
                raise AgentLostError(self._obituary())
            # Before the greeting, its patience counts.
            elif self._hello is not None and time.monotonic() - heard > self._silence:
                raise AgentLostError(
                    f"{self.description} has been silent for {self._silence:g} s{self._last_words()}",
                )

    def _beat(self, now: float) -> None:
        with self._changed:
            if self._hello is not None:
                frame = memoryview(wire.encode(wire.HEARTBEAT, 0, {"time": now}, b""))
                # Not behind megabytes that wait, but never into a frame that is half written.
                self._outgoing.insert(1, frame)

    def _drain_wakes(self) -> None:
        try:
            self._wake.recv(4096)
        except BlockingIOError:
            return

    def _feed(self, data: bytes) -> None:
        fault: wire.WireError | None = None
        try:
            frames = self._decoder.feed(data)
        except wire.WireError as error:
            # What was complete before the fault still counts.
            fault, frames = error, error.frames
        with self._changed:
            for frame in frames:
                self._dispatch(frame)
            self._changed.notify_all()
        if fault is not None:
            raise ProtocolError(
                f"{self.description} sent what no agent sends: {fault.message}{self._last_words()}"
            ) from fault

    def _dispatch(self, frame: wire.Frame) -> None:
        if frame.kind == wire.HELLO:
            self._greet(frame.header)
            return
        if self._hello is None:
            raise ProtocolError(f"{self.description} sent something before its greeting")
        if frame.kind == wire.HEARTBEAT:
            return
        call = self._calls.get(frame.id)
        if call is None or call.end is not None:
            raise ProtocolError(f"{self.description} answered a request that was not made")
        answer = Answer(frame.header, frame.blob)
        if frame.kind == wire.PART:
            call.take(answer)
        elif frame.kind == wire.RESULT:
            call.end = answer
        elif frame.kind == wire.ERROR:
            call.end = _Failure(frame.header)
        else:
            raise ProtocolError(f"{self.description} sent a frame of kind {frame.kind}")
        if call.abandoned and call.end is not None:
            del self._calls[frame.id]

    def _greet(self, header: dict[str, Any]) -> None:
        if self._hello is not None:
            raise ProtocolError(f"{self.description} greeted twice")
        if header.get("protocol") != wire.PROTOCOL_VERSION:
            raise ProtocolError(
                f"{self.description} speaks protocol {header.get('protocol')!r:.20}, "
                f"not {wire.PROTOCOL_VERSION}"
            )
        self._hello = header

    def _lose(self, kind: type[CvmMigrateError], message: str, remedy: str | None = None) -> None:
        message = self._clean(message)
        with self._changed:
            if self._lost is None:
                # A new exception for each caller: they would share a traceback otherwise.
                self._lost = lambda: kind(message, remedy=remedy)
                self._outgoing.clear()
            self._changed.notify_all()

    def _obituary(self) -> str:
        status = self._child.returncode
        if status is None:
            how = "closed its output"
        elif status < 0:
            how = f"ended by signal {-status}"
        else:
            how = f"ended with exit status {status}"
        return f"{self.description} {how}{self._last_words()}"

    def _last_words(self) -> str:
        words = self._clean(self._child.errors).strip()[-_LAST_WORDS:]
        return f"; it said: {words}" if words else ""

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text
