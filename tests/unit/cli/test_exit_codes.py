"""Exit codes follow the branches of the error tree."""

from __future__ import annotations

import pytest

from cvm_migrate import errors
from cvm_migrate.cli._exit_codes import ExitCode, exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequestError("x"), ExitCode.REQUEST),
        (errors.UnsafeTargetError("x"), ExitCode.REQUEST),
        (errors.SourceReadError("x"), ExitCode.CONDITION),
        (errors.NotConvergingError("x"), ExitCode.CONDITION),
        (errors.AgentLostError("x"), ExitCode.TRANSIENT),
        (errors.DeadlineError("x"), ExitCode.TRANSIENT),
        (errors.HostKeyError("x"), ExitCode.SECURITY),
        (errors.VerificationError("x"), ExitCode.NOT_IDENTICAL),
        (errors.ProtocolError("x"), ExitCode.DEFECT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
def test_the_code_says_what_the_caller_can_do(
    error: errors.CvmMigrateError, code: ExitCode
) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequestError("x"), ExitCode.HALF_WAY),
        (errors.NotConvergingError("x"), ExitCode.HALF_WAY),
        # What has to be done about these is more pressing, or mends it as well.
        (errors.AgentLostError("x"), ExitCode.TRANSIENT),
        (errors.HostKeyError("x"), ExitCode.SECURITY),
        (errors.VerificationError("x"), ExitCode.NOT_IDENTICAL),
        (errors.ProtocolError("x"), ExitCode.DEFECT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
def test_an_instance_left_half_way_has_a_code_of_its_own(
    error: errors.CvmMigrateError, code: ExitCode
) -> None:
    assert exit_code(error, half_way=True) == code
