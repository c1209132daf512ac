"""A disk that is written by a receiver, and the proof of what was written."""

from __future__ import absolute_import, division

import sys
import threading

from cvm_migrate.agent import digests
from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.pump import frames, pieces, slots
from cvm_migrate.agent.verbs import AgentError

assert sys.platform != "win32", "pumps run on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

    from cvm_migrate.agent.blockio import OpenHandle
    from cvm_migrate.agent.pump.pieces import Piece, Range

# Small pieces that touch are read together up to this size; zeroes are compared in steps of it.
_READ = 1 << 20
_READERS = 2
_MOST_RANGES = 8192


class TargetDisk(object):
    """One disk of a receiver. Methods can be called from several threads."""

    def __init__(self, handle, limit=pieces.LIMIT):
        # type: (OpenHandle, int) -> None
        self.handle = handle
        self.algorithm = None  # type: Optional[str]
        self._limit = limit
        self._pieces = None  # type: Optional[pieces.Pieces]
        self._lock = threading.Lock()
        self._tail = threading.Lock()
        # One reading at a time: the receiver's own, or one that was asked for.
        self._proving = threading.Lock()
        self._flush_error = None  # type: Optional[AgentError]
        self._early = _Proof()

    # -- writing

    def use(self, algorithm):
        # type: (str) -> None
        """Say which digests the sender has.

        Raises:
            AgentError: ``bad-request``: it had others before.
        """
        with self._lock:
            if self._pieces is None:
                self.algorithm = algorithm
                size = len(digests.digest(algorithm, b""))
                self._pieces = pieces.Pieces(size, self._limit)
                thread = threading.Thread(target=self._prove_early, args=(self._pieces,))
                thread.daemon = True
                thread.start()
            elif algorithm != self.algorithm:
                raise AgentError(
                    "bad-request",
                    "the digests were %s before, not %s" % (self.algorithm, algorithm),
                )

    def _known(self):
        # type: () -> Tuple[str, pieces.Pieces]
        assert self.algorithm is not None  # noqa: S101 - `use` comes first
        assert self._pieces is not None  # noqa: S101
        return self.algorithm, self._pieces

    def fits(self, offset, length, source_size):
        # type: (int, int, int) -> bool
        """Whether a range may be written, where the source's disk has *source_size* bytes."""
        end = offset + length
        block = self.handle.logical_block_size
        return (
            end <= self.handle.size
            and offset % block == 0
            and (end % block == 0 or end in (source_size, self.handle.size))
        )

    def write(self, slot, offset, length, digest):
        # type: (slots.Slot, int, int, bytes) -> None
        """Write a chunk and remember it.

        Raises:
            AgentError: ``internal``: it is not what the sender read; ``write``, ``no-room``.
        """
        algorithm, known = self._known()
        actual = digests.digest(algorithm, slot.chunk(length))
        if digest != frames.pad_digest(actual):
            raise AgentError(
                "internal",
                "a chunk arrived with another digest than it was read with",
                device=self.handle.path,
                offset=offset,
                length=length,
            )
        token = known.begin(offset, length)
        written = False
        try:
            whole = self._whole_blocks(offset, length)
            if whole:
                self.handle.pwrite_from(slot.buffer, offset, whole, slots.DATA)
            if whole < length:
                self._write_tail(offset + whole, slot.chunk(length)[whole:].tobytes())
            written = True
        finally:
            known.end(token, actual, written)

    def zero(self, offset, length):
        # type: (int, int) -> None
        """Make a range zeroes and remember it.

        Raises:
            AgentError: ``write``, ``no-room``.
        """
        _, known = self._known()
        token = known.begin(offset, length)
        written = False
        try:
            whole = self._whole_blocks(offset, length)
            if whole:
                self.handle.zero(offset, whole)
            if whole < length:
                self._write_tail(offset + whole, b"\0" * (length - whole))
            written = True
        finally:
            known.end(token, None, written)

    def _whole_blocks(self, offset, length):
        # type: (int, int) -> int
        """Return how much of a range is whole blocks: all of it, but where a smaller disk's end lies in a block."""
        end = offset + length
        if self.handle.kind != "block" or end == self.handle.size:
            return length
        return length - end % self.handle.logical_block_size

    def _write_tail(self, offset, data):
        # type: (int, bytes) -> None
        """Write less than a block: with what the rest of the block holds already."""
        block = self.handle.logical_block_size
        with self._tail:
            rest = self.handle.read(offset + len(data), block - len(data))
            self.handle.write(offset, data + rest)

    def flush(self):
        # type: () -> float
        """Make everything durable; returns the seconds it took.

        Raises:
            AgentError: ``write``: it failed, now or before: the system tells of a lost write only once.
        """
        if self._flush_error is not None:
            raise self._flush_error
        try:
            return self.handle.flush()
        except AgentError as error:
            self._flush_error = error
            raise

    # -- proving

    def _prove_early(self, known):
        # type: (pieces.Pieces) -> None
        """Read the oldest pieces back while others are being written: it takes as long as writing them."""
        while True:
            with known.lock:
                while not known.due:
                    known.changed.wait()
            with self._proving:
                if known.due:
                    try:
                        self._early.add(self._prove(known, False, None, None))
                    except Exception as error:  # noqa: BLE001 - without this thread, writers would wait for ever
                        known.give_up(error)
                        return

    def read_back(self, check, progress):
        # type: (Callable[[], object], Callable[[int], object]) -> Dict[str, Any]
        """Prove what was received since the last call; returns the RESULT of ``read_back``.

        Args:
            check: Called now and then; may raise.
            progress: Called now and then with the bytes that were read.

        Raises:
            AgentError: ``write``: the disk could not be read. The next call begins anew.
        """
        begin = monotonic()
        proof = _Proof()
        if self._pieces is not None:
            with self._proving:
                if self._pieces.failed is not None:
                    raise self._pieces.failed
                proof = self._prove(self._pieces, True, check, progress)
                early, self._early = self._early, _Proof()
                early.add(proof)
                proof = early
        return {
            "bytes": proof.proven.total,
            "zero": proof.zeroes.total,
            "pieces": proof.pieces,
            "seconds": monotonic() - begin,
            # More would not fit into an answer's header; a wider range is sent again as well.
            "wrong": [[low, high - low] for low, high in proof.wrong.coarse(_MOST_RANGES)],
            "unproven": [[low, high - low] for low, high in proof.unproven.coarse(_MOST_RANGES)],
        }

    def _prove(self, known, everything, check, progress):
        # type: (pieces.Pieces, bool, Optional[Callable[[], object]], Optional[Callable[[int], object]]) -> _Proof
        """Read all pieces back, or a batch of the oldest."""
        log = known.take(everything)
        unproven = []  # type: List[Range]
        reading = _Reading(self.handle, self.algorithm or "", log.valid(unproven), check)
        try:
            reading.run(progress)
        except BaseException:
            known.put_back(log)
            raise
        proof = _Proof()
        proof.pieces = len(log)
        proof.seen = log.ranges()
        # What was overwritten in the meantime is neither right nor wrong.
        newer = known.newer()
        for found in reading.found:
            proof.proven = proof.proven.union(found.proven)
            proof.zeroes = proof.zeroes.union(found.zeroes)
            doubtful = [pair for pair in found.suspects if newer.touches(*pair)]
            unproven += doubtful
            proof.wrong = proof.wrong.union(found.suspects.minus(doubtful))
        proof.unproven = pieces.RangeSet(sorted(unproven)).minus(newer)
        return proof


class _Proof(object):
    """What a reading has shown."""

    def __init__(self):
        # type: () -> None
        self.pieces = 0
        self.seen = pieces.RangeSet()
        self.proven = pieces.RangeSet()
        self.zeroes = pieces.RangeSet()
        self.wrong = pieces.RangeSet()
        self.unproven = pieces.RangeSet()

    def add(self, later):
        # type: (_Proof) -> None
        """Take a later reading in: what it saw it knows better."""
        self.pieces += later.pieces
        for name in ("proven", "zeroes", "wrong", "unproven"):
            rest = getattr(self, name).minus(later.seen)
            setattr(self, name, rest.union(getattr(later, name)))


class _Found(object):
    """What one thread found; its pieces ascend."""

    def __init__(self):
        # type: () -> None
        self.proven = pieces.RangeSet()
        self.zeroes = pieces.RangeSet()
        self.suspects = pieces.RangeSet()


class _Reading(object):
    """Two threads that read pieces and compare their digests."""

    def __init__(self, handle, algorithm, valid, check):
        # type: (OpenHandle, str, Iterator[Piece], Optional[Callable[[], object]]) -> None
        self._handle = handle
        self._algorithm = algorithm
        self._groups = _groups(valid)
        self._check = check
        self._lock = threading.Lock()
        self._error = None  # type: Optional[BaseException]
        self.done = 0
        self.found = []  # type: List[_Found]

    def run(self, progress):
        # type: (Optional[Callable[[int], object]]) -> None
        """Read everything.

        Raises:
            AgentError: A range could not be read, or *check* raised.
        """
        helpers = [threading.Thread(target=self._work, args=(None,)) for _ in range(_READERS - 1)]
        for helper in helpers:
            helper.daemon = True
            helper.start()
        self._work(progress)
        for helper in helpers:
            helper.join()
        if self._error is not None:
            raise self._error

    def _work(self, progress):
        # type: (Optional[Callable[[int], object]]) -> None
        slot = slots.Slot(_READ)
        found = _Found()
        self.found.append(found)
        told = monotonic()
        while self._error is None:
            try:
                if self._check is not None:
                    self._check()
                with self._lock:
                    group = next(self._groups, None)
                if group is None:
                    return
                length = group[-1][0] + group[-1][1] - group[0][0]
                if length > slot.size:
                    slot = slots.Slot(length)
                self._compare(slot, group, length, found)
                if progress is not None and monotonic() - told > 0.25:
                    told = monotonic()
                    progress(self.done)
            except BaseException as error:  # noqa: BLE001 - raised in the calling thread
                self._error = error

    def _compare(self, slot, group, length, found):
        # type: (slots.Slot, List[Piece], int, _Found) -> None
        begin = group[0][0]
        block = self._handle.logical_block_size
        # The end of a smaller source may lie inside a block: past the page cache only whole blocks can be read.
        whole = min(-(-length // block) * block, self._handle.size - begin)
        if whole > slot.size:
            whole = length
        try:
            self._handle.pread_into(slot.buffer, begin, whole, slots.DATA)
        except AgentError as error:
            # The code `read` is for the source's disk.
            error.code = "write" if error.code == "read" else error.code
            raise
        view = slot.chunk(length)
        for offset, size, digest in group:
            part = view[offset - begin : offset - begin + size]
            if not self._is_right(part, digest):
                found.suspects.append(offset, offset + size)
                continue
            found.proven.append(offset, offset + size)
            if digest is None:
                found.zeroes.append(offset, offset + size)
        with self._lock:
            self.done += length

    def _is_right(self, part, digest):
        # type: (Any, Optional[bytes]) -> bool
        if digest is None:
            return slots.is_zero(part)
        return digests.digest(self._algorithm, part) == digest


def _groups(valid):
    # type: (Iterator[Piece]) -> Iterator[List[Piece]]
    """Put pieces that touch together, and cut zeroes, to what one read takes."""
    group = []  # type: List[Piece]
    end = 0
    for whole in valid:
        for piece in _steps(whole):
            if group and (piece[0] != end or end - group[0][0] + piece[1] > _READ):
                yield group
                group = []
            group.append(piece)
            end = piece[0] + piece[1]
    if group:
        yield group


def _steps(piece):
    # type: (Piece) -> Iterator[Piece]
    offset, length, digest = piece
    if digest is not None:
        yield piece
        return
    for at in range(0, length, _READ):
        yield offset + at, min(_READ, length - at), None
