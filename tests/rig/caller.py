"""A caller of the library as a process of its own, to be killed.

``python caller.py SOURCE TARGET STATE [--bandwidth BYTES] [--hang frozen|proven] [--rung NAME]`` prints the name of
each step when it begins and ends, how far passes are, and ``identical`` when the copy was compared while frozen. It
hangs on the freeze of the cutover, or on the proof in it, after it has said so.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cvm_migrate import LocalHost, Migration, Options, events
from rig import loopdev
from rig.watched import WatchedHost


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Caller:
    """Migrates, and hangs where it is told to."""

    def __init__(self, hang: str | None) -> None:
        self._hang = hang
        self._step = ""
        self.found: list[int | None] = []

    def observe(self, event: events.Event) -> None:
        if isinstance(event, events.StepStarted):
            self._step = event.step
            say(f"begin {event.step}")
        elif isinstance(event, events.StepEnded):
            say(f"end {event.step}")
        elif isinstance(event, events.Progress) and event.kind == "send":
            say(f"at {event.done}")

    def reach(self, moment: str) -> None:
        if moment == self._hang and self._step == "cutover":
            say(f"hangs {moment}")
            time.sleep(600)

    def main(
        self,
        source: Path,
        target: Path,
        state: Path,
        *,
        bandwidth: int | None,
        rungs: tuple[str, ...],
    ) -> None:
        def proven() -> None:
            self.found.append(loopdev.first_difference(source, target))
            self.reach("proven")

        with Migration(
            WatchedHost(disks=[source], on_frozen=lambda: self.reach("frozen")),
            LocalHost(disks=[target]),
            state=state,
            observer=self.observe,
            options=Options(
                max_downtime=20, freeze_limit=20, bandwidth=bandwidth, attempts=5, rungs=rungs
            ),
        ) as migration:
            # A proof that was made just before the kill needs no second one: run() then only reports.
            report = migration.run(on_proven=proven)
        if all(difference is None for difference in self.found) and report.proven:
            say("identical" if self.found else "identical before")
        say(f"sent {report.sent}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--bandwidth", type=int)
    parser.add_argument("--hang", choices=["frozen", "proven"])
    parser.add_argument("--rung", action="append")
    given = parser.parse_args()
    Caller(given.hang).main(
        given.source,
        given.target,
        given.state,
        bandwidth=given.bandwidth,
        rungs=tuple(given.rung or ("ebpf", "tracefs")),
    )
