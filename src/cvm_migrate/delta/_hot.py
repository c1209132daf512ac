"""Blocks that are written all the time are sent once, at the end."""

from __future__ import annotations

from typing import Final

from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.model import ExtentMap

_MOST_EXTENTS: Final = 1 << 20


class HotBlocks:
    """Leaves blocks that were dirty in several passes running to the final sync.

    Sending such a block in every pass costs traffic and shortens nothing: it is dirty again by the end. A block that
    has cooled down, that is, was not dirty in the latest pass, is sent by that pass.

    What must hold (and is tested as a law): after ``now, deferred = update(dirty)``, every byte of *dirty* and every
    byte that was deferred before is in exactly one of *now* and *deferred*. So the final sync sends
    ``final(dirty)``, and nothing is lost.

    Args:
        passes: In how many passes running a block must be dirty to be left to the end.
        most_extents: Bound on the ranges remembered (sixteen bytes each, *passes* times). Where the dirty ranges are
            more, nothing is deferred and the count begins anew.

    Raises:
        InvalidRequestError: *passes* is below 2.
    """

    def __init__(self, *, passes: int = 3, most_extents: int = _MOST_EXTENTS) -> None:
        if passes < 2:
            raise InvalidRequestError(
                f"a block cannot be called hot after {passes} passes", remedy="Give at least 2"
            )
        self._passes = passes
        self._most_extents = most_extents
        self._deferred = ExtentMap()
        self._streaks: list[ExtentMap] = []

    @property
    def deferred(self) -> ExtentMap:
        """What has been left to the final sync so far."""
        return self._deferred

    def update(self, dirty: ExtentMap) -> tuple[ExtentMap, ExtentMap]:
        """Take what a pass has collected.

        Args:
            dirty: What was written since the collection of the pass before.

        Returns:
            What this pass sends, and all that is left to the final sync.
        """
        waiting = dirty | self._deferred
        if len(waiting) > self._most_extents:
            self._streaks = []
            self._deferred = ExtentMap()
            return waiting, self._deferred
        # Entry n: dirty in the last n + 1 passes running. Each is a part of the one before.
        streaks = [dirty, *(dirty & streak for streak in self._streaks)][: self._passes]
        self._streaks = streaks
        hot = streaks[-1] if len(streaks) == self._passes else ExtentMap()
        self._deferred = hot
        return waiting - hot, hot

    def final(self, dirty: ExtentMap) -> ExtentMap:
        """Return what the final sync sends: *dirty*, and all that was deferred. Forgets nothing."""
        return dirty | self._deferred

    def sent(self) -> None:
        """Begin anew: the final sync has sent everything."""
        self._deferred = ExtentMap()
        self._streaks = []
