"""Plans over small images, and hooks that other processes can import."""

from __future__ import annotations

import os
from pathlib import Path

from cvm_migrate import Options, events
from cvm_migrate.fleet import Plan

MiB = 1 << 20


def plans(folder: Path, *names: str, size: int = 3 * MiB, **options: object) -> list[Plan]:
    """A plan for each name: from one image to another, with random content."""
    made: list[Plan] = []
    for name in names:
        (folder / f"{name}.img").write_bytes(os.urandom(size))
        made.append(
            Plan(
                name=name,
                source=f"image:{folder}/{name}.img",
                target=f"image:{folder}/{name}.copy",
                options=Options(**options),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
            )
        )
    return made


def same(folder: Path, name: str) -> bool:
    return (folder / f"{name}.copy").read_bytes() == (folder / f"{name}.img").read_bytes()


def folder_of(plan: Plan) -> Path:
    return Path(plan.source.endpoint().disks[0]).parent


def say_where(plan: Plan) -> None:
    """A hook that leaves the number of its process beside the source."""
    (folder_of(plan) / f"{plan.name}.pid").write_text(str(os.getpid()))


def die_once(plan: Plan) -> None:
    """A hook that ends its process, the first time."""
    mark = folder_of(plan) / f"{plan.name}.died"
    if not mark.exists():
        mark.touch()
        os._exit(1)


def fail(plan: Plan) -> None:
    """A hook with a fault of its own."""
    raise LookupError(f"no service called {plan.name}")


def ignore(name: str, event: events.Event) -> None:
    """An observer that pickles."""
    del name, event
