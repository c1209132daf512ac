"""What a running migration reports to an observer, as frozen values. Sizes in bytes, times in seconds.

An observer is any callable that takes one event. It is called in the thread that called the step, and never
while file systems are frozen: events of that time are delivered right after the thaw. What it raises ends the
step at its next safe point, as if the step had failed; nothing that was copied is lost.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from cvm_migrate.model import Finding


@attrs.frozen
class StepStarted:
    """A step begins."""

    step: str


@attrs.frozen
class StepEnded:
    """A step is over; *error* is the error's text if it failed."""

    step: str
    seconds: float
    error: str | None = None


@attrs.frozen
class Connected:
    """Both agents run and the data path between them is up; *again* after a loss.

    *route* is ``direct``, or ``ssh``: through SSH by way of the caller's machine.
    """

    source: str
    target: str
    streams: int
    again: bool = False
    route: str = "direct"


@attrs.frozen
class TrackerChosen:
    """How changes are tracked from now on.

    Attributes:
        rung: ``ebpf``, ``tracefs``, or ``None``: digests are compared instead.
        refused: Why each better rung could not be used.
        block: Granularity in bytes.
    """

    rung: str | None
    refused: dict[str, str]
    block: int


@attrs.frozen
class PassStarted:
    """A pass over the disks begins.

    Attributes:
        number: Counts from 1.
        kind: ``full``, ``delta``, ``proof`` or ``final``.
        total: Bytes to go through, as far as known.
    """

    number: int
    kind: str
    total: int


@attrs.frozen
class Progress:
    """How far a pass is; about twice a second.

    Attributes:
        number: The pass.
        kind: What is being done: ``send``, ``read back`` or ``compare``.
        disk: Number of the disk, from 0.
        done: Bytes done of *total*; never falls within a pass and kind.
        total: Bytes of this part of the pass.
        wire: Bytes sent over the network so far in this pass.
        rate: Bytes of the disk per second.
        dirty_bytes: What the source has written since the last collection; ``None`` if unknown.
        dirty_rate: Bytes per second of that; ``None`` if unknown.
        time_left: Seconds to the end of this part; ``None`` if unknown.
        predicted_downtime: Of a cutover after this pass; ``None`` if unknown.
    """

    number: int
    kind: str
    disk: int
    done: int
    total: int
    wire: int
    rate: float
    dirty_bytes: int | None = None
    dirty_rate: float | None = None
    time_left: float | None = None
    predicted_downtime: float | None = None


@attrs.frozen
class PassEnded:
    """A pass is over.

    Attributes:
        sent: Bytes of the disks that were sent and proven.
        wire: Bytes on the network.
        compared: Bytes whose digests were compared at both ends.
        dirty_bytes: What has changed meanwhile and is to be sent by the next pass.
        predicted_downtime: Of a cutover now; ``None`` if unknown.
    """

    number: int
    kind: str
    sent: int
    wire: int
    compared: int
    seconds: float
    dirty_bytes: int | None
    predicted_downtime: float | None


@attrs.frozen
class Lag:
    """How far the target is behind while :meth:`~cvm_migrate.migration.Migration.hold` keeps it close.

    Attributes:
        lag: Seconds since the moment the target was last known to hold.
        backlog: Bytes written on the source since; ``None`` where only a comparison can tell.
    """

    lag: float
    backlog: int | None


@attrs.frozen
class Frozen:
    """File systems were frozen (told after the thaw)."""

    mounts: tuple[str, ...]
    refused: dict[str, str]
    seconds: float


@attrs.frozen
class Thawed:
    """File systems were thawed; *lost* if the time limit passed before the work was done."""

    held: float
    lost: bool


@attrs.frozen
class HookCalled:
    """A hook of the caller is about to be called."""

    hook: str


@attrs.frozen
class Noticed:
    """Something the caller should know."""

    finding: Finding


Event = (
    StepStarted
    | StepEnded
    | Connected
    | TrackerChosen
    | PassStarted
    | Progress
    | PassEnded
    | Lag
    | Frozen
    | Thawed
    | HookCalled
    | Noticed
)


class Observer(Protocol):
    """Takes events; see the module's text for when it is called."""

    def __call__(self, event: Event, /) -> None:
        """Take one event."""
        ...
