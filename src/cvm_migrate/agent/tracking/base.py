"""What all trackers have in common."""

from __future__ import absolute_import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional, Sequence, Text, Tuple, TypeVar

    from cvm_migrate.agent.tracking import Device

    #: Ranges written and ranges only discarded, as ``(offset, length)``; certain; reason; events.
    Collected = Tuple[
        Iterable[Tuple[int, int]], Iterable[Tuple[int, int]], bool, Optional[Text], int
    ]
    Self = TypeVar("Self", bound="Tracker")
    #: Bytes marked; certain; reason; events.
    Peeked = Tuple[int, bool, Optional[Text], int]


# Every change of a disk passes one of the first two, when it is complete: of request-based devices, of bio-based ones.
# The third is passed when it is submitted; docs/explanation/change-tracking.md says what that is needed for.
RQ_COMPLETE = "block_rq_complete"
BIO_COMPLETE = "block_bio_complete"
BIO_QUEUE = "block_bio_queue"
TRACEPOINTS = (RQ_COMPLETE, BIO_COMPLETE, BIO_QUEUE)


class Refused(Exception):
    """A rung can't serve here; the reason is one for people."""

    def __init__(self, reason):
        # type: (Text) -> None
        Exception.__init__(self, reason)
        self.reason = reason


class Tracker(object):
    """Marks blocks of some devices from its construction on until :meth:`close`.

    Attributes:
        rung: Its name.
        block: Bytes that a mark for a write stands for.
        devices: What is tracked, in the order that indexes mean.
    """

    rung = ""

    def __init__(self, devices, block):
        # type: (Sequence[Device], int) -> None
        self.devices = list(devices)
        self.block = block
        self._doubts = {}  # type: Dict[int, List[Text]]

    def collect(self, index):
        # type: (int) -> Collected
        """Take and clear the marks of a device; its blocks are to be read after this has returned.

        Returns:
            Ranges written, ranges changed by discards only (both ``(offset, length)`` in bytes, ascending, not
            touching; walked once), whether no write since the last call can be missing, why not, and how
            many events there were since the start.
        """
        raise NotImplementedError

    def peek(self, index):
        # type: (int) -> Peeked
        """Count what :meth:`collect` would give, and clear nothing."""
        raise NotImplementedError

    def close(self):
        # type: () -> None
        """Stop marking and release everything; can be called more than once."""
        raise NotImplementedError

    def doubt(self, index, reason):
        # type: (int, Text) -> None
        """Make the next :meth:`collect` of a device uncertain."""
        reasons = self._doubts.setdefault(index, [])
        if reason not in reasons:
            reasons.append(reason)

    def _doubt_of(self, index, clear):
        # type: (int, bool) -> Optional[Text]
        reasons = self._doubts.pop(index, []) if clear else self._doubts.get(index, [])
        return "; ".join(reasons) if reasons else None

    def __enter__(self):
        # type: (Self) -> Self
        return self

    def __exit__(self, *exc_info):
        # type: (object) -> None
        self.close()
