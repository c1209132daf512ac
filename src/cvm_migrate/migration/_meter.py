"""Progress of one long call to an agent, told to the observer at a bounded rate and from a safe place."""

from __future__ import annotations

import contextlib
import threading
import time
import types
from collections.abc import Callable, Generator
from typing import Final, Self

from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import AgentLostError, CancelledError, CvmMigrateError
from cvm_migrate.interfaces import Agent

_INTERVAL: Final = 0.5
_LOOK: Final = 1.0


class LinkedToken(CancelToken):
    """Set when it is cancelled itself, or any of *parents* is."""

    def __init__(self, *parents: CancelToken) -> None:
        super().__init__()
        self._parents = parents

    @property
    def cancelled(self) -> bool:
        """Whether the end has been asked for, here or there."""
        return super().cancelled or any(parent.cancelled for parent in self._parents)

    def check(self) -> None:
        """Raise if the end has been asked for, here or there.

        Raises:
            CancelledError: It has been.
        """
        for parent in self._parents:
            parent.check()
        super().check()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until the call to end; return :attr:`cancelled`."""
        end = time.monotonic() + seconds
        while not self.cancelled:
            left = end - time.monotonic()
            if left <= 0:
                break
            super().wait(min(left, 0.1))
        return self.cancelled


class Meter:
    """Around one call: gets how much is done, and ends the call if the observer raises.

    What the observer raised leaves the ``with`` block after the call has ended in order, so that no agent is left
    in the middle of something.

    Args:
        report: Gets the bytes done and the seconds since the beginning; ``None`` tells nobody.
        cancel: Ends the call as well.
    """

    def __init__(
        self, report: Callable[[int, float], None] | None, *, cancel: CancelToken
    ) -> None:
        self.token = LinkedToken(cancel)
        self._report = report
        self._started = self._told = time.monotonic()
        self._most = 0
        self._raised: BaseException | None = None

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Raise what the observer raised."""
        if self._raised is not None:
            raise self._raised

    def done(self, count: int) -> None:
        """Take note of how much is done; never falls."""
        self._most = max(self._most, count)
        now = time.monotonic()
        if self._report is None or self._raised is not None or now - self._told < _INTERVAL:
            return
        self._told = now
        try:
            self._report(self._most, now - self._started)
        except BaseException as raised:  # noqa: BLE001 - the caller's own, raised by __exit__
            self._raised = raised
            self.token.cancel()


@contextlib.contextmanager
def watching(agent: Agent, pump: int, token: CancelToken) -> Generator[None]:
    """While another agent works, look after this one and its pump; when either is lost, cancel the work.

    Args:
        agent: Whose loss ends the work.
        pump: A receiving one of it.
        token: Of the work.

    Raises:
        AgentLostError: One was lost, instead of the CancelledError that came of it.
    """
    over = threading.Event()
    lost: list[AgentLostError] = []

    def look() -> None:
        while not over.wait(_LOOK):
            try:
                agent.received(pump)
            except AgentLostError as error:
                lost.append(error)
                token.cancel()
                return
            except CvmMigrateError:
                # Its next real call says so as well, to someone who can act on it.
                return

    thread = threading.Thread(target=look, name=f"watching {agent.description}", daemon=True)
    thread.start()
    try:
        yield
    except CancelledError:
        if lost:
            raise lost[0] from None
        raise
    finally:
        over.set()
        if not lost:
            thread.join(_LOOK)
