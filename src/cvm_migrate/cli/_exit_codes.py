"""Exit codes, by what the one who called can do next; documented in ``docs/reference/command-line.md``."""

from __future__ import annotations

import enum

from cvm_migrate.errors import (
    ConditionError,
    CvmMigrateError,
    RequestError,
    SecurityError,
    TransientError,
    VerificationError,
)


class ExitCode(enum.IntEnum):
    """What the process says when it ends."""

    DONE = 0
    REQUEST = 2
    CONDITION = 3
    TRANSIENT = 4
    SECURITY = 5
    NOT_IDENTICAL = 6
    NOT_POSSIBLE = 7
    HALF_WAY = 8
    DEFECT = 70
    INTERRUPTED = 130


# Ordered: the first branch that fits.
_BRANCHES: tuple[tuple[type[CvmMigrateError], ExitCode], ...] = (
    (RequestError, ExitCode.REQUEST),
    (ConditionError, ExitCode.CONDITION),
    (TransientError, ExitCode.TRANSIENT),
    (SecurityError, ExitCode.SECURITY),
    (VerificationError, ExitCode.NOT_IDENTICAL),
)


def exit_code(error: CvmMigrateError, *, half_way: bool = False) -> ExitCode:
    """Return the code for an error of the library.

    Args:
        error: The error.
        half_way: Whether an instance was left in a state that somebody has to lead out of.
    """
    for branch, code in _BRANCHES:
        if isinstance(error, branch):
            alone = code in {ExitCode.REQUEST, ExitCode.CONDITION}
            return ExitCode.HALF_WAY if half_way and alone else code
    return ExitCode.DEFECT
