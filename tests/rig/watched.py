"""The caller's own machine, with an agent that tells when it has frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs

from cvm_migrate import LocalHost
from cvm_migrate.interfaces import Agent


class _Watched:
    """An agent that tells when it has frozen: before anything is collected or sent in the freeze."""

    def __init__(self, agent: Agent, on_frozen: Callable[[], None]) -> None:
        self._agent = agent
        self._on_frozen = on_frozen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    def freeze(self, *arguments: Any, **more: Any) -> Any:
        frozen = self._agent.freeze(*arguments, **more)
        self._on_frozen()
        return frozen


@attrs.frozen(kw_only=True)
class WatchedHost(LocalHost):
    """Calls *on_frozen* whenever file systems have just been frozen, by the probe of ``prepare`` too."""

    on_frozen: Callable[[], None]

    def open_agent(self) -> Agent:
        return cast("Agent", _Watched(super().open_agent(), self.on_frozen))
