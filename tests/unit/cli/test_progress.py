"""What people see while a migration works."""

from __future__ import annotations

import io

from cvm_migrate import events
from cvm_migrate.cli._progress import ProgressDisplay, describe_progress
from cvm_migrate.units import MiB

PROGRESS = events.Progress(
    number=2,
    kind="send",
    disk=0,
    done=50 * MiB,
    total=200 * MiB,
    wire=40 * MiB,
    rate=25.0 * MiB,
    dirty_bytes=5 * MiB,
    dirty_rate=1.0 * MiB,
    time_left=6.0,
    predicted_downtime=0.31,
)


class Broken(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str, /) -> int:
        raise OSError(5, text)


def test_a_line_has_pass_bytes_rate_dirty_rate_time_left_and_downtime() -> None:
    assert describe_progress(PROGRESS) == (
        "pass 2 send  25% · 50.0 MiB of 200 MiB · 25.0 MiB/s · written meanwhile 1.00 MiB/s"
        " · 6.00 s left · downtime now 0.31 s"
    )


def test_a_terminal_gets_one_line_that_is_rewritten() -> None:
    stream = io.StringIO()
    display = ProgressDisplay(stream, terminal=True)

    display(PROGRESS)
    display(PROGRESS)
    display(events.StepEnded("full_sync", 2.0))

    written = stream.getvalue()
    assert written.count("\n") == 1
    assert written.endswith("full_sync done in 2.00 s\n")


def test_a_log_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    now = [0.0]
    display = ProgressDisplay(stream, terminal=False, clock=lambda: now[0])

    for tenth in range(101):
        now[0] = tenth / 10
        display(PROGRESS)

    assert len(stream.getvalue().splitlines()) == 3
    assert "\r" not in stream.getvalue()


def test_losing_the_output_ends_nothing() -> None:
    display = ProgressDisplay(Broken(), terminal=False)

    display(PROGRESS)
    display(events.StepStarted("check"))
    display.close()
