"""The work on the disks: collect what changed, compare, send, read back. What is not proven stays pending."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Final

import attrs

from cvm_migrate.deadline import CancelToken
from cvm_migrate.delta import HotBlocks
from cvm_migrate.errors import VerificationError
from cvm_migrate.events import Event, Progress
from cvm_migrate.migration._compare import comparison_chunk, differences
from cvm_migrate.migration._ends import Ends
from cvm_migrate.migration._meter import Meter, watching
from cvm_migrate.migration._options import Options
from cvm_migrate.migration._results import DiskPass
from cvm_migrate.model import Changes, ExtentMap, Marked, Streamed
from cvm_migrate.units import MiB

_PEEK_INTERVAL: Final = 2.0
# To compare less than this costs more than to send it again.
_LARGE: Final = 8 * MiB


@attrs.define
class Work:
    """How far one disk is.

    Attributes:
        touched: Ranges that may have reached the target.
        pending: Ranges that must still be sent, or sent again.
        suspect: Why what counts as copied has to be compared; ``None`` if it need not.
        doubtful: Ranges whose transfer was cut off: most of it may have arrived, so they are compared, not sent again.
        in_flight: The part of *pending* that is being sent.
        hot: Finds the blocks that change all the time.
        deferred: The part of *pending* that is left to the final pass.
    """

    disk: int
    size: int
    touched: ExtentMap
    pending: ExtentMap
    suspect: str | None = None
    doubtful: ExtentMap = attrs.Factory(ExtentMap)
    in_flight: ExtentMap = attrs.Factory(ExtentMap)
    hot: HotBlocks = attrs.Factory(HotBlocks)
    deferred: ExtentMap = attrs.Factory(ExtentMap)

    @property
    def whole(self) -> ExtentMap:
        """All of the disk."""
        return ExtentMap.whole(self.size)

    @property
    def unsure(self) -> ExtentMap:
        """What has to be compared before it counts as copied."""
        return (self.doubtful if self.suspect is None else self.touched) - self.pending


@attrs.define
class Tally:
    """What a pass has done on one disk so far."""

    disk: int
    sent: int = 0
    wire: int = 0
    zero: int = 0
    compared: int = 0
    changed: int = 0
    deferred: int = 0
    certain: bool = True
    reason: str | None = None
    stream_seconds: float = 0.0
    read_back_seconds: float = 0.0
    compare_seconds: float = 0.0

    def done(self) -> DiskPass:
        """Return it as a result."""
        return DiskPass(
            disk=self.disk,
            sent=self.sent,
            wire=self.wire,
            zero=self.zero,
            compared=self.compared,
            changed=self.changed,
            deferred=self.deferred,
            certain=self.certain,
            reason=self.reason,
        )


@attrs.frozen
class Outlook:
    """What a pass would find now.

    Attributes:
        dirty: Bytes that it would have to send; ``None`` if only a comparison can tell.
        to_compare: Bytes that it would have to compare, by disk; disks without any are left out.
    """

    dirty: int | None
    to_compare: Mapping[int, int]


class Passes:
    """Does the passes of one migration.

    Args:
        ends: Agents and data path.
        options: Of the migration.
        emit: Takes events.
        save: Writes down how far disks are.
        cancel: Ends the work at the next chunk.
    """

    def __init__(
        self,
        ends: Ends,
        *,
        options: Options,
        emit: Callable[[Event], None],
        save: Callable[[Sequence[Work]], None],
        cancel: CancelToken,
    ) -> None:
        self._ends = ends
        self._options = options
        self._emit = emit
        self._save = save
        self._cancel = cancel
        self.quiet = False
        self._peeked = 0.0
        self._collected = time.monotonic()
        self._dirty: int | None = None
        self.predicted_downtime: float | None = None

    def collect(self, work: Work, tally: Tally) -> Changes | None:
        """Take over what the tracker saw; afterwards it is pending, or the disk is suspect.

        Returns:
            The tracker's answer; ``None`` where there is no tracker.
        """
        tracking = self._ends.tracking
        if tracking is None or tracking.rung is None:
            work.suspect = "changes are not tracked"
            tally.certain, tally.reason = False, work.suspect
            return None
        # Marks are cleared before the answer is here: until it is, they may be lost.
        before, work.suspect = work.suspect, "the tracker's answer was lost"
        changes = self._ends.source_agent.collect_changes(self._ends.source.disks[work.disk])
        self._collected = time.monotonic()
        work.suspect = before
        changed = (changes.written | changes.discarded).clip(0, work.size)
        work.pending |= changed
        tally.changed += changed.total
        if not changes.certain:
            work.suspect = changes.reason or "the tracker is not certain"
            tally.certain, tally.reason = False, work.suspect
            work.hot.sent()
            work.deferred = ExtentMap()
        return changes

    def compare(
        self,
        work: Work,
        ranges: ExtentMap,
        tally: Tally,
        *,
        number: int,
        cancel: CancelToken | None = None,
    ) -> ExtentMap:
        """Return the chunks of *ranges* that differ between the two ends."""
        if not ranges:
            return ranges
        total = ranges.align(comparison_chunk(work.size), work.size).total
        started = time.monotonic()
        with self._meter(number, "compare", work, total, tally, cancel=cancel) as meter:
            found = differences(
                self._ends.side("source", work.disk),
                self._ends.side("target", work.disk),
                ranges,
                algorithm=self._ends.algorithm,
                cancel=meter.token,
                on_progress=meter.done,
            )
        tally.compare_seconds += time.monotonic() - started
        tally.compared += total
        return found

    def settle(
        self, work: Work, tally: Tally, *, number: int, cancel: CancelToken | None = None
    ) -> None:
        """Compare what is not sure to have been copied; what differs is pending afterwards."""
        if work.suspect is not None:
            tally.certain, tally.reason = False, work.suspect
        found = self.compare(work, work.unsure, tally, number=number, cancel=cancel)
        tally.changed += (found - work.pending).total
        work.pending |= found
        work.suspect = None
        work.doubtful = ExtentMap()

    def send(
        self,
        work: Work,
        ranges: ExtentMap,
        tally: Tally,
        *,
        number: int,
        cancel: CancelToken | None = None,
    ) -> None:
        """Send *ranges*, read them back, and take what is proven out of the pending ones.

        Raises:
            VerificationError: The target's disk gave back something else, twice.
            CvmMigrateError: Whatever an agent refuses; all that is not proven stays pending.
        """
        with self._meter(number, "send", work, ranges.total, tally, cancel=cancel) as meter:
            before = 0
            for batch in ranges.batches(self._options.batch):
                meter.token.check()
                with self._in_flight(work, batch):
                    wrong = self._send_once(work, batch, tally, meter, before)
                if wrong:
                    wrong = self._send_once(work, wrong, tally, meter, before)
                if wrong:
                    first = next(iter(wrong))
                    raise VerificationError(
                        "the target's disk gives back something else than what was written to it, twice:"
                        f" {wrong.total} bytes",
                        device=self._ends.target.disks[work.disk].path,
                        offset=first.offset,
                        length=first.length,
                    )
                before += batch.total
                self._write_down([work])

    @contextlib.contextmanager
    def _in_flight(self, work: Work, batch: ExtentMap) -> Generator[None]:
        """Around the sending of a batch: if it is cut off, much of a large one may have arrived."""
        large = batch.total >= _LARGE
        if large:
            work.in_flight = batch
        if batch - work.touched:
            work.touched |= batch
            self._write_down([work])
        try:
            yield
        except BaseException:
            if large:
                work.doubtful |= work.pending & batch
                work.pending -= batch
            raise
        finally:
            work.in_flight = ExtentMap()

    def _send_once(
        self, work: Work, ranges: ExtentMap, tally: Tally, meter: Meter, before: int
    ) -> ExtentMap:
        """Send and read back; return what is wrong on the target's disk."""
        options, ends = self._options, self._ends
        wire = tally.wire
        limits = ends.limits

        def progress(so_far: Streamed) -> None:
            nonlocal limits
            if limits != ends.limits:
                # Changed while the stream was being started.
                limits = ends.limits
                ends.set_limits(*limits)
            tally.wire = wire + so_far.wire
            meter.done(before + so_far.acked)

        started = time.monotonic()
        # The source's pump would wait for a lost target, or its lost pump, for as long as for a cut network.
        with watching(ends.target_agent, ends.receiver, meter.token):
            streamed = ends.source_agent.stream(
                ends.sender,
                work.disk,
                ranges,
                chunk=options.chunk,
                codec=options.codec,
                level=int(options.level),
                bandwidth=limits[0],
                read_limit=limits[1],
                on_progress=progress,
                cancel=meter.token,
            )
        sent = time.monotonic()
        tally.wire = wire + streamed.wire
        tally.zero += streamed.zero
        tally.stream_seconds += sent - started
        proof = ends.target_agent.read_back(ends.receiver, work.disk)
        tally.read_back_seconds += time.monotonic() - sent
        wrong = proof.wrong & ranges
        # A reading that left something out proves nothing of it.
        if proof.bytes + proof.wrong.total < ranges.total:
            raise VerificationError(
                f"only {proof.bytes} of {ranges.total} bytes were read back from the target's disk",
                device=ends.target.disks[work.disk].path,
            )
        work.pending -= ranges - wrong
        tally.sent += ranges.total - wrong.total
        return wrong

    def outlook(self, works: Sequence[Work]) -> Outlook:
        """Return what a pass now would have to send and to compare."""
        tracking = self._ends.tracking
        if tracking is None or tracking.rung is None:
            return Outlook(None, {work.disk: work.size for work in works})
        total = 0
        to_compare: dict[int, int] = {}
        for work in works:
            marked = self.marked(work)
            if not marked.certain:
                to_compare[work.disk] = work.size
            elif work.unsure:
                to_compare[work.disk] = work.unsure.total
            # What was deferred is what changes all the time, so it is among what is dirty again.
            deferred = (work.pending & work.deferred).total
            total += work.pending.total - deferred + max(marked.total, deferred)
        return Outlook(None if to_compare else total, to_compare)

    def marked(self, work: Work) -> Marked:
        """Return what the tracker, which must run, has marked of a disk since it was collected."""
        return self._ends.source_agent.peek_changes(self._ends.source.disks[work.disk])

    def dirty_now(self, works: Sequence[Work]) -> int | None:
        """Return how many bytes a pass now would have to send; ``None`` if only a comparison can tell."""
        return self.outlook(works).dirty

    def _write_down(self, works: Sequence[Work]) -> None:
        """Save how far disks are; not while frozen, as the state may lie on what is frozen."""
        if not self.quiet:
            self._save(works)

    def _meter(
        self,
        number: int,
        kind: str,
        work: Work,
        total: int,
        tally: Tally,
        *,
        cancel: CancelToken | None,
    ) -> Meter:
        def report(done: int, seconds: float) -> None:
            self._emit(self._progress((number, kind, total), work, tally, done, seconds))

        return Meter(None if self.quiet else report, cancel=cancel or self._cancel)

    def _progress(
        self,
        what: tuple[int, str, int],
        work: Work,
        tally: Tally,
        done: int,
        seconds: float,
    ) -> Progress:
        number, kind, total = what
        now = time.monotonic()
        tracking = self._ends.tracking
        dirty_rate: float | None = None
        if tracking is not None and tracking.rung is not None:
            if now - self._peeked >= _PEEK_INTERVAL:
                self._peeked = now
                disk = self._ends.source.disks[work.disk]
                marked = self._ends.source_agent.peek_changes(disk)
                self._dirty = marked.total if marked.certain else None
            if self._dirty is not None and now > self._collected:
                dirty_rate = self._dirty / (now - self._collected)
        rate = done / seconds if seconds > 0 else 0.0
        return Progress(
            number=number,
            kind=kind,
            disk=work.disk,
            done=min(done, total),
            total=total,
            wire=tally.wire,
            rate=rate,
            dirty_bytes=self._dirty,
            dirty_rate=dirty_rate,
            time_left=max(0, total - done) / rate if rate > 0 else None,
            predicted_downtime=self.predicted_downtime,
        )
