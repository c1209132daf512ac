"""Digests of both ends side by side: which ranges differ."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from cvm_migrate.deadline import CancelToken
from cvm_migrate.delta import compare
from cvm_migrate.errors import ProtocolError, UnsupportedError
from cvm_migrate.interfaces import Agent
from cvm_migrate.model import ExtentMap, OpenDisk
from cvm_migrate.units import GiB, KiB

# Messages of at most a few thousand digests each: a queue of 16 is about 1 MiB for each end.
_QUEUE: Final = 16


@attrs.frozen
class Side:
    """A disk and the agent that has it open."""

    agent: Agent
    disk: OpenDisk


def common_algorithm(one: Agent, other: Agent) -> str:
    """Return the best digest both agents can compute.

    Raises:
        UnsupportedError: There is none.
    """
    for name in one.digests:
        if name in other.digests:
            return name
    raise UnsupportedError(
        f"{one.description} and {other.description} have no digest in common",
        remedy="Use the same version of cvm_migrate at both ends",
    )


def comparison_chunk(size: int) -> int:
    """Return how fine a disk of *size* bytes is compared: at most 4 Mi digests up to 1 TiB."""
    return 64 * KiB if size <= 256 * GiB else 256 * KiB


def differences(
    source: Side,
    target: Side,
    ranges: ExtentMap,
    *,
    algorithm: str,
    cancel: CancelToken,
    on_progress: Callable[[int], None],
) -> ExtentMap:
    """Return the chunks whose digests differ between two disks of the same layout.

    Both are read at the same time, each in a thread of its own.

    Args:
        source: One end.
        target: The other end, at least as large.
        ranges: What is compared, grown to whole chunks.
        algorithm: Of the digests.
        cancel: Ends it.
        on_progress: Gets the bytes compared so far, in the calling thread.

    Raises:
        CancelledError: *cancel* was set.
        CvmMigrateError: Whatever an agent refuses.
    """
    size = source.disk.size
    chunk = comparison_chunk(size)
    wanted = ranges.align(chunk, size)
    stop = CancelToken()
    ends = [_Reader(side, wanted, chunk, algorithm, stop) for side in (source, target)]
    done = 0

    def counted() -> Iterator[tuple[int, list[bytes]]]:
        nonlocal done
        for offset, digests in ends[0].messages(cancel):
            yield offset, digests
            done += min(len(digests) * chunk, size - offset)
            on_progress(done)

    try:
        found = compare(counted(), ends[1].messages(cancel), chunk=chunk, size=size)
    finally:
        stop.cancel()
        for end in ends:
            end.join()
    # Both ends could leave out the same ranges.
    if done != wanted.total:
        raise ProtocolError(f"digests of {done} bytes came, {wanted.total} were asked for")
    return found


class _Reader:
    """Takes one agent's digests into a bounded queue."""

    def __init__(
        self, side: Side, ranges: ExtentMap, chunk: int, algorithm: str, stop: CancelToken
    ) -> None:
        self._side = side
        self._ranges = ranges
        self._chunk = chunk
        self._algorithm = algorithm
        self._stop = stop
        self._queue: queue.Queue[tuple[int, list[bytes]] | BaseException | None] = queue.Queue(
            _QUEUE
        )
        self._thread = threading.Thread(target=self._run, name="cvm-migrate digests", daemon=True)
        self._thread.start()

    def messages(self, cancel: CancelToken) -> Iterator[tuple[int, list[bytes]]]:
        """Yield what came; raise what went wrong."""
        while True:
            cancel.check()
            try:
                item = self._queue.get(timeout=0.5)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def join(self) -> None:
        """Wait for the thread, which *stop* has told to end."""
        while self._thread.is_alive():
            self._thread.join(0.05)
            while not self._queue.empty():
                self._queue.get_nowait()

    def _run(self) -> None:
        try:
            if self._ranges:
                for item in self._side.agent.digest(
                    self._side.disk,
                    self._ranges,
                    chunk=self._chunk,
                    algorithm=self._algorithm,
                    cancel=self._stop,
                ):
                    self._put(item)
                    if self._stop.cancelled:
                        return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits, raised there
            self._put(error)

    def _put(self, item: tuple[int, list[bytes]] | BaseException | None) -> None:
        while not self._stop.cancelled:
            try:
                self._queue.put(item, timeout=0.5)
            except queue.Full:
                continue
            return
