"""A caller of the library as a process of its own, to be killed: ``python caller.py SOURCE TARGET STATE [BANDWIDTH]``.

Prints the name of each step when it begins and ends, and ``identical`` when the copy was compared while frozen.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cvm_migrate import LocalHost, Migration, Options, events
from rig import loopdev


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def observe(event: events.Event) -> None:
    if isinstance(event, events.StepStarted):
        say(f"begin {event.step}")
    elif isinstance(event, events.StepEnded):
        say(f"end {event.step}")


def main(source: Path, target: Path, state: Path, bandwidth: int | None) -> None:
    found: list[int | None] = []
    with Migration(
        LocalHost(disks=[source]),
        LocalHost(disks=[target]),
        state=state,
        observer=observe,
        options=Options(max_downtime=20, freeze_limit=20, bandwidth=bandwidth, attempts=5),
    ) as migration:
        # A proof that was made just before the kill needs no second one: run() then only reports.
        report = migration.run(
            on_proven=lambda: found.append(loopdev.first_difference(source, target))
        )
    if all(difference is None for difference in found) and report.proven:
        say("identical" if found else "identical before")
    say(f"sent {report.sent}")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        int(sys.argv[4]) if len(sys.argv) > 4 else None,
    )
