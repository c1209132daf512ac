"""What is shown while a migration works: one line that changes on a terminal, plain lines elsewhere.

It writes to standard error, and survives the loss of it: a closed terminal must not end a migration.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from typing import TextIO

from cvm_migrate import events
from cvm_migrate.units import format_rate, format_seconds, format_size

# Lines in a log: often enough to see that it lives, seldom enough to read them.
_SECONDS_BETWEEN_LINES = 5.0


class ProgressDisplay:
    """An observer that writes for people.

    Args:
        stream: Where to.
        terminal: Whether one line may be rewritten; ``None`` asks the stream.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._terminal = stream.isatty() if terminal is None else terminal
        self._clock = clock
        self._last = -_SECONDS_BETWEEN_LINES
        self._open = False

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        if isinstance(event, events.Progress):
            self._progress(event)
            return
        line = describe(event)
        if line is not None:
            self.line(line)

    def line(self, text: str) -> None:
        """Write a line of its own."""
        self._write(("\r\x1b[K" if self._open else "") + text + "\n")
        self._open = False

    def _progress(self, event: events.Progress) -> None:
        if self._terminal:
            width = max(20, shutil.get_terminal_size().columns - 1)
            self._write("\r\x1b[K" + describe_progress(event)[:width])
            self._open = True
        elif self._clock() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = self._clock()
            self._write(describe_progress(event) + "\n")

    def close(self) -> None:
        """End the line that is still open."""
        if self._open:
            self._write("\n")
            self._open = False

    def _write(self, text: str) -> None:
        # A reader that has gone, or a full disk behind a log: the migration matters more than its log.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def describe_progress(event: events.Progress) -> str:
    """Return one line: pass, bytes, rate, dirty rate, time left, predicted downtime."""
    share = f"{100 * event.done / event.total:3.0f}%" if event.total else "100%"
    parts = [
        f"pass {event.number} {event.kind} {share}",
        f"{format_size(event.done)} of {format_size(event.total)}",
        format_rate(event.rate),
    ]
    if event.dirty_rate is not None:
        parts.append(f"written meanwhile {format_rate(event.dirty_rate)}")
    if event.time_left is not None:
        parts.append(f"{format_seconds(event.time_left)} left")
    if event.predicted_downtime is not None:
        parts.append(f"downtime now {format_seconds(event.predicted_downtime)}")
    return " · ".join(parts)


def describe(event: events.Event) -> str | None:  # noqa: C901, PLR0911, PLR0912 - a case for each kind
    """Return a line for an event, or ``None`` if people need none."""
    match event:
        case events.StepStarted(step=step):
            return f"{step} …"
        case events.StepEnded(step=step, seconds=seconds, error=None):
            return f"{step} done in {format_seconds(seconds)}"
        case events.StepEnded(step=step, seconds=seconds, error=error):
            return f"{step} failed after {format_seconds(seconds)}: {error}"
        case events.Connected(source=source, target=target, streams=streams) as connected:
            again = " again" if connected.again else ""
            how = " through SSH" if connected.route == "ssh" else ""
            return f"connected{again}: {source} to {target}, {streams} streams{how}"
        case events.TrackerChosen(rung=None, refused=refused):
            reasons = "; ".join(f"{rung}: {why}" for rung, why in refused.items())
            return f"changes are found by comparing digests ({reasons or 'as asked'})"
        case events.TrackerChosen(rung=rung, block=block):
            return f"changes are tracked by {rung}, {format_size(block)} blocks"
        case events.PassEnded(number=number, kind=kind) as ended:
            text = (
                f"pass {number} ({kind}): {format_size(ended.sent)} sent, {format_size(ended.wire)} on the wire, "
                f"{format_seconds(ended.seconds)}"
            )
            if ended.compared:
                text += f", {format_size(ended.compared)} compared"
            if ended.dirty_bytes is not None:
                text += f"; {format_size(ended.dirty_bytes)} written meanwhile"
            if ended.predicted_downtime is not None:
                text += f"; downtime now {format_seconds(ended.predicted_downtime)}"
            return text
        case events.Lag(lag=lag, backlog=backlog):
            rest = "nobody knows how much" if backlog is None else format_size(backlog)
            return f"holding: {format_seconds(lag)} behind, {rest} to send"
        case events.Frozen(mounts=mounts, refused=refused):
            text = f"frozen: {', '.join(mounts) or 'nothing'}"
            return text + "".join(f"; {mount} not: {why}" for mount, why in refused.items())
        case events.Thawed(held=held, lost=lost):
            return f"thawed after {format_seconds(held)}" + (" by its time limit" if lost else "")
        case events.HookCalled(hook=hook):
            return f"{hook} is called"
        case events.Noticed(finding=finding):
            return str(finding)
        case events.PassStarted() | events.Progress():
            return None
