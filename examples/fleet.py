"""Many servers from one plan file, side by side; one fails, is mended, and only that one is done again.

The servers are image files on this machine, so this runs anywhere, without root.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

from cvm_migrate import events
from cvm_migrate.fleet import Outcome, Plan, check_many, load_plans, migrate_many
from cvm_migrate.units import MiB, format_size

PLANS = """
[defaults.options]
max_downtime = 60
bandwidth = "200M"

[[migrations]]
name = "web-1"
source = "image:{folder}/web-1.img"
target = "image:{folder}/web-1.copy"

[[migrations]]
name = "web-2"
source = "image:{folder}/web-2.img"
target = "image:{folder}/web-2.copy"

[[migrations]]
name = "db-1"
source = "image:{folder}/db-1.img"
target = "image:{folder}/db-1.copy"
options = {{ prove = "frozen" }}
"""

said = threading.Lock()


def observe(name: str, event: events.Event) -> None:
    """Say what each has sent; called from the threads that migrate."""
    if isinstance(event, events.PassEnded):
        with said:
            print(f"{name}: pass {event.number} ({event.kind}), {format_size(event.sent)} sent")


def quiesce(plan: Plan) -> None:
    """Stop what must not write during the cutover; which server it is, the plan says."""
    with said:
        print(f"{plan.name}: services stopped")


def over(outcome: Outcome) -> None:
    """Tell whoever waits for this one."""
    with said:
        print(f"{outcome.name}: {outcome.state}")


def main() -> None:
    """Make servers, migrate them, mend what failed, go on."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        folder = Path(name)
        for server in ("web-1", "db-1"):
            (folder / f"{server}.img").write_bytes(os.urandom(4 * MiB))
        (folder / "plans.toml").write_text(PLANS.format(folder=folder))
        plans = load_plans(folder / "plans.toml")

        print(check_many(plans).to_text(), end="\n\n")

        # Over processes or several machines: executor=ProcessPoolExecutor(), executor=client.get_executor().
        first = migrate_many(
            plans, state=folder / "state", observer=observe, on_quiesced=quiesce, on_done=over
        )
        print(first.to_text(), end="\n\n")

        # web-2 was switched off. Now it is not.
        (folder / "web-2.img").write_bytes(os.urandom(4 * MiB))
        second = migrate_many(plans, state=folder / "state", on_quiesced=quiesce, on_done=over)
        print(second.to_text())
        if not second.done:
            raise SystemExit("that should not be")


if __name__ == "__main__":
    main()
