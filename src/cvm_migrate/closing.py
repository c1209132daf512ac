"""What is closed where a ``with`` statement ends."""

from __future__ import annotations

import abc
import types
from typing import Self


class Closing(abc.ABC):
    """Has a :meth:`close`, which also ends its ``with`` statement."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything; can be called more than once."""
