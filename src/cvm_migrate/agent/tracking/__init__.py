"""Which blocks of a disk were written: trackers that need no kernel module and nothing installed.

See ``docs/explanation/change-tracking.md`` for why nothing is lost. Usable without the agent::

    tracker, refused = start([Device(path, size, major, minor)], ["ebpf", "tracefs"], None)
"""

from __future__ import absolute_import

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Optional, Sequence, Text, Tuple

    from cvm_migrate.agent.tracking.base import Tracker

#: A whole disk: its path (for messages), its size in bytes, its numbers.
Device = namedtuple("Device", ("path", "size", "major", "minor"))

RUNGS = ("ebpf", "tracefs")


def probe():
    # type: () -> Dict[str, Optional[Text]]
    """Say for each rung why it can't serve here, None if it seems that it can. Cheap; leaves nothing behind."""
    from cvm_migrate.agent.tracking import ebpf, tracefs

    return {"ebpf": ebpf.probe(), "tracefs": tracefs.probe()}


def start(devices, rungs, block):
    # type: (Sequence[Device], Sequence[str], Optional[int]) -> Tuple[Optional[Tracker], Dict[str, Text]]
    """Track devices with the first rung that can.

    Args:
        devices: Whole disks.
        rungs: Names from :data:`RUNGS`, best first.
        block: Bytes that a mark stands for; None: by size.

    Returns:
        The tracker, or None, and why each rung tried before it could not serve.

    Raises:
        ValueError: An unknown rung, no devices, a partition, or a *block* that can't be.
    """
    from cvm_migrate.agent.tracking import ebpf, marks, system, tracefs
    from cvm_migrate.agent.tracking.base import Refused

    makers = {"ebpf": ebpf.start, "tracefs": tracefs.start}
    for name in rungs:
        if name not in makers:
            raise ValueError("unknown rung %s" % name)
    if not devices:
        raise ValueError("no devices to track")
    for device in devices:
        if system.is_partition(device.major, device.minor):
            raise ValueError("%s is a partition: track the whole disk" % device.path)
    if block is not None:
        marks.choose_block([device.size for device in devices], marks.BITS, block)
    refused = {}  # type: Dict[str, Text]
    for name in rungs:
        try:
            return makers[name](devices, block), refused
        except Refused as error:
            refused[name] = error.reason
    return None, refused
