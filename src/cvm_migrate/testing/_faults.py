"""Failures on request: which call, which of its repetitions, and what happens to it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import attrs

from cvm_migrate.errors import InvalidRequestError

# How a fault shows: instead of the work, or after it.
Effect = Literal["code", "status", "hang", "drop", "garbage", "truncate", "failed-operation"]


@attrs.frozen
class FaultKind:
    """What a kind does.

    Attributes:
        effect: How it shows.
        value: The code, or the HTTP status.
        meaning: For the documentation.
        after: The work is done before it shows.
    """

    effect: Effect
    value: str
    meaning: str
    after: bool = attrs.field(default=False, kw_only=True)


KINDS: Final[Mapping[str, FaultKind]] = MappingProxyType(
    {
        "throttle": FaultKind("code", "RequestLimitExceeded", "too many calls"),
        "internal": FaultKind("code", "InternalError", "the service failed inside"),
        "mutex": FaultKind("code", "MutexOperation.TaskRunning", "another task runs"),
        "busy": FaultKind(
            "code",
            "OperationDenied.InstanceOperationInProgress",
            "the instance is busy",
        ),
        "expired-token": FaultKind(
            "code", "AuthFailure.TokenFailure", "the temporary keys have expired"
        ),
        "skew": FaultKind("code", "AuthFailure.SignatureExpire", "the clocks are too far apart"),
        "unauthorized": FaultKind(
            "code", "AuthFailure.UnauthorizedOperation", "the policy does not allow it"
        ),
        "internal-after-success": FaultKind(
            "code", "InternalError", "done, but said to have failed", after=True
        ),
        "http-500": FaultKind("status", "500", "HTTP status 500, no JSON"),
        "http-502": FaultKind("status", "502", "HTTP status 502, no JSON"),
        "http-503": FaultKind("status", "503", "HTTP status 503, no JSON"),
        "timeout": FaultKind("hang", "", "nothing is done, nothing is answered"),
        "timeout-after-success": FaultKind(
            "hang", "", "done, but nothing is answered", after=True
        ),
        "drop-before": FaultKind("drop", "", "the connection is cut, nothing is done"),
        "drop-after-success": FaultKind("drop", "", "done, but the connection is cut", after=True),
        "garbage": FaultKind("garbage", "", "HTTP status 200 with a page of HTML"),
        "truncated": FaultKind(
            "truncate", "", "done, but the answer is cut in its middle", after=True
        ),
        "failed-operation": FaultKind(
            "failed-operation",
            "",
            "accepted, then it fails: the instance is as before",
        ),
    }
)


class Fault:
    """A fault that was asked for; :attr:`hits` says how often it has struck."""

    def __init__(self, kind: FaultKind, action: str | None, nth: int, times: int | None) -> None:
        self.kind = kind
        self.action = action
        self.hits = 0
        self._waiting = nth - 1
        self._left = times

    def strikes(self, action: str) -> bool:
        """Count a call and say whether the fault strikes it."""
        if self.action not in {None, action} or self._left == 0:
            return False
        if self._waiting:
            self._waiting -= 1
            return False
        if self._left is not None:
            self._left -= 1
        self.hits += 1
        return True


class Faults:
    """All faults that were asked for; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, kind: str, *, action: str | None, nth: int, times: int | None) -> Fault:
        """Ask for a fault.

        Raises:
            InvalidRequestError: No such kind, or *nth* or *times* is below 1.
        """
        known = KINDS.get(kind)
        if known is None and (not kind[:1].isupper() or not kind.replace(".", "").isalnum()):
            raise InvalidRequestError(
                f"no such fault: {kind!r}",
                remedy=f"Write a code of Tencent's, or one of {', '.join(KINDS)}",
            )
        if nth < 1 or (times is not None and times < 1):
            raise InvalidRequestError("nth and times count from 1")
        fault = Fault(known or FaultKind("code", kind, "a code"), action, nth, times)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._faults.clear()

    def strike(self, action: str) -> FaultKind | None:
        """Count a call; return what is to happen to it."""
        with self._lock:
            # Stops at the first: faults that were asked for one after the other strike one after the other.
            return next((fault.kind for fault in self._faults if fault.strikes(action)), None)
