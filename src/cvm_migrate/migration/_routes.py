"""Ways for the data from the source's agent to the port on which the target's agent listens."""

from __future__ import annotations

import contextlib
from typing import Final, Protocol

import attrs

from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.transport import SshForward, SshReverse, SshTarget

LOOPBACK: Final = "127.0.0.1"


class Route(Protocol):
    """How the source's agent reaches the port on which the target's agent listens."""

    @property
    def host(self) -> str:
        """Address to connect to."""
        ...

    @property
    def port(self) -> int:
        """Port to connect to."""
        ...

    def check(self) -> None:
        """Raise why nothing comes through, where that is known."""
        ...

    def close(self) -> None:
        """Take it down; connections through it end."""
        ...


@attrs.frozen
class DirectRoute:
    """Straight over the network."""

    host: str
    port: int

    def check(self) -> None:
        """Do nothing: only the source's agent knows."""

    def close(self) -> None:
        """Do nothing: there is nothing in between."""


class SshRoute:
    """Through SSH, by way of the caller's machine, which is the only one that can log in at both ends.

    TLS goes through it from end to end as over any network.

    Args:
        port: Where the target listens, on its loopback too.
        source: How the source is reached; ``None``: it is the caller's machine.
        target: How the target is reached; ``None``: it is the caller's machine.

    Raises:
        InvalidRequestError: Both are the caller's machine.
        CvmMigrateError: The source's SSH server gives no port, or cannot be reached.
    """

    def __init__(self, port: int, *, source: SshTarget | None, target: SshTarget | None) -> None:
        if source is None and target is None:
            raise InvalidRequestError(
                "no SSH leads from this machine to itself", remedy="Use the direct route"
            )
        self.host = LOOPBACK
        self._forward: SshForward | None = None
        with contextlib.ExitStack() as stack:
            if target is not None:
                self._forward = stack.enter_context(SshForward(target, port))
                port = self._forward.port
            if source is not None:
                port = stack.enter_context(SshReverse(source, port)).port
            self._parts = stack.pop_all()
        self.port = port

    def check(self) -> None:
        """Raise why the target's end could not be reached, if that was so."""
        if self._forward is not None:
            self._forward.check()

    def close(self) -> None:
        """End all connections through it."""
        self._parts.close()
