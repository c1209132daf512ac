"""The way out: one thread writes frames, so that a caller who does not read stops only those who answer it."""

from __future__ import absolute_import

import os
import threading
from collections import deque

from cvm_migrate.agent import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, Optional

# What waits to be written, in bytes: room for two of the largest frames.
_MOST_BYTES = 20 << 20
# Answers that main itself gives must not wait; a caller who lets this many pile up does not read at all.
_MOST_FORCED = 4096
_PIECE = 1 << 16


class CallerGone(Exception):
    """Nobody reads any more."""


class Outbox(object):
    """Frames on their way to the caller.

    Args:
        fd: Where they are written.
        on_broken: Called once, from the writing thread, when that fails.
    """

    def __init__(self, fd, on_broken):
        # type: (int, Callable[[], object]) -> None
        self._fd = fd
        self._on_broken = on_broken
        self._changed = threading.Condition()
        self._frames = deque()  # type: Deque[bytes]
        self._bytes = 0
        self._beat = None  # type: Optional[bytes]
        self._writing = False
        self._broken = False
        self._thread = threading.Thread(target=self._run)
        self._thread.daemon = True
        self._thread.start()

    def send(self, frame):
        # type: (bytes) -> None
        """Queue a frame; wait while too much is queued.

        Raises:
            CallerGone: Nobody reads any more.
        """
        with self._changed:
            while self._bytes > _MOST_BYTES and not self._broken:
                self._changed.wait()
            self._put(frame)

    def force(self, frame):
        # type: (bytes) -> None
        """Queue a small frame without waiting.

        Raises:
            CallerGone: Nobody reads any more, or not for a long time.
        """
        with self._changed:
            if len(self._frames) > _MOST_FORCED:
                raise CallerGone("the caller does not read its answers")
            self._put(frame)

    def _put(self, frame):
        # type: (bytes) -> None
        if self._broken:
            raise CallerGone("the caller's end is closed")
        self._frames.append(frame)
        self._bytes += len(frame)
        self._changed.notify_all()

    def beat(self, frame):
        # type: (bytes) -> None
        """Send a heartbeat before all that waits; of several, only the last."""
        with self._changed:
            self._beat = frame
            self._changed.notify_all()

    def drain(self, seconds):
        # type: (float) -> bool
        """Wait until everything is written, but no longer than this; return whether it is."""
        end = clock.monotonic() + seconds
        with self._changed:
            while (self._frames or self._writing) and not self._broken:
                left = end - clock.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return not self._broken

    def _run(self):
        # type: () -> None
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                while not self._frames and self._beat is None:
                    self._changed.wait()
                if self._beat is not None:
                    frame, self._beat = self._beat, None
                else:
                    frame = self._frames.popleft()
                    self._bytes -= len(frame)
                self._writing = True
            try:
                for at in range(0, len(frame), _PIECE):
                    self._write(frame[at : at + _PIECE])
            except EnvironmentError:
                with self._changed:
                    self._broken = True
                    self._frames.clear()
                    self._changed.notify_all()
                self._on_broken()
                return

    def _write(self, data):
        # type: (bytes) -> None
        while data:
            data = data[os.write(self._fd, data) :]
