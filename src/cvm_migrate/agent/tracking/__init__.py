"""Which blocks of a disk were written: trackers that need no kernel module and nothing installed.

See ``docs/explanation/change-tracking.md`` for why nothing is lost. Usable without the agent::

    tracker, refused = start([Device(path, size, major, minor)], ["ebpf", "tracefs"], None)
"""

from __future__ import absolute_import

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Sequence, Text, Tuple

    from cvm_migrate.agent.tracking.base import Tracker

RUNGS = ("ebpf", "tracefs")


class Device(object):
    """A whole disk.

    Attributes:
        path: For messages.
        size: Bytes.
        major: First of its numbers.
        minor: Second of its numbers.
    """

    def __init__(self, path, size, major, minor):
        # type: (Text, int, int, int) -> None
        self.path = path
        self.size = size
        self.major = major
        self.minor = minor


def _rungs():
    # type: () -> Dict[str, Any]
    """Return the modules of the rungs; there are none but on Linux."""
    rungs = {}  # type: Dict[str, Any]
    if sys.platform != "win32":
        from cvm_migrate.agent.tracking import ebpf, tracefs

        rungs = {"ebpf": ebpf, "tracefs": tracefs}
    return rungs


def probe():
    # type: () -> Dict[str, Optional[Text]]
    """Say for each rung why it can't serve here, None if it seems that it can. Cheap; leaves nothing behind."""
    return {name: rung.probe() for name, rung in _rungs().items()}


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
    from cvm_migrate.agent.tracking import marks, system
    from cvm_migrate.agent.tracking.base import Refused

    for name in rungs:
        if name not in RUNGS:
            raise ValueError("unknown rung %s" % name)
    if not devices:
        raise ValueError("no devices to track")
    for device in devices:
        if system.is_partition(device.major, device.minor):
            raise ValueError("%s is a partition: track the whole disk" % device.path)
    if block is not None:
        marks.choose_block([device.size for device in devices], marks.BITS, block)
    known = _rungs()
    refused = {}  # type: Dict[str, Text]
    for name in rungs:
        try:
            return known[name].start(devices, block), refused
        except Refused as error:
            refused[name] = error.reason
    return None, refused
