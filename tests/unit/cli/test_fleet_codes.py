"""One exit code for many outcomes, and errors that come back from wherever they were."""

from __future__ import annotations

import io

import pytest

from cvm_migrate import errors, events
from cvm_migrate.cli._exit_codes import ExitCode
from cvm_migrate.cli._fleet import FleetDisplay, fleet_code
from cvm_migrate.fleet import Failure, FleetReport, Outcome


def report(*kinds: type[errors.CvmMigrateError] | None) -> FleetReport:
    outcomes = [
        Outcome(str(number), "finished", 1.0)
        if kind is None
        else Outcome(str(number), "failed", 1.0, failure=Failure.of(kind("x", remedy="Mend it")))
        for number, kind in enumerate(kinds)
    ]
    return FleetReport(tuple(outcomes), 0.0, 1.0)


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ((), ExitCode.DONE),
        ((None, None), ExitCode.DONE),
        ((None, errors.QuotaError), ExitCode.CONDITION),
        ((errors.NotFoundError, None), ExitCode.REQUEST),
        ((errors.NotFoundError, errors.QuotaError), ExitCode.CONDITION),
        ((errors.HostKeyError, errors.DefectError), ExitCode.SECURITY),
        ((errors.HostKeyError, errors.VerificationError), ExitCode.NOT_IDENTICAL),
        ((errors.VerificationError, errors.AgentLostError), ExitCode.TRANSIENT),
        ((None, errors.CancelledError), ExitCode.TRANSIENT),
    ],
)
def test_the_code_is_that_of_what_to_do_next(
    kinds: tuple[type[errors.CvmMigrateError] | None, ...], code: ExitCode
) -> None:
    assert fleet_code(report(*kinds)) == code


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.QuotaError, ExitCode.HALF_WAY),
        (errors.NotFoundError, ExitCode.HALF_WAY),
        # As alone: what to do about these is the same however the instance was left.
        (errors.AgentLostError, ExitCode.TRANSIENT),
        (errors.VerificationError, ExitCode.TRANSIENT),
    ],
)
def test_an_instance_that_was_left_half_way_comes_before_all(
    kind: type[errors.CvmMigrateError], code: ExitCode
) -> None:
    others = report(errors.AgentLostError, errors.VerificationError, None)
    left = Outcome("db", "failed", 1.0, failure=Failure.of(kind("x")), half_way="ins-1 is off")
    told = FleetReport((*others.outcomes, left), 0.0, 1.0)

    assert fleet_code(told) == code
    assert told.half_way == (left,)
    assert told.to_dict()["half_way"] == ["db"]
    assert told.to_dict()["outcomes"][-1]["half_way"] == "ins-1 is off"
    for text in (told.to_text(), told.to_html()):
        assert "half way: ins-1 is off" in text


def test_what_did_not_start_is_to_be_repeated() -> None:
    assert fleet_code(FleetReport((Outcome("a", "not started", 0.0),), 0.0, 0.0)) == (
        ExitCode.TRANSIENT
    )


def test_a_failure_becomes_the_error_it_was() -> None:
    error = errors.ThrottledError("slow", remedy="Wait", device="ins-1", code="X", request_id="r")
    again = Failure.of(error).error

    assert type(again) is errors.ThrottledError
    assert str(again) == str(error)
    assert (again.code, again.request_id) == ("X", "r")


def test_an_error_that_is_not_the_library_s_is_a_defect() -> None:
    assert type(Failure("KeyError", "'x'").error) is errors.DefectError
    # Names of the module that are no errors.
    assert type(Failure("annotations", "x").error) is errors.DefectError


def test_a_report_tells_of_each_without_letting_its_words_be_markup() -> None:
    told = FleetReport(
        (Outcome("a", "failed", 1.0, failure=Failure("KeyError", "<script>")),), 0.0, 1.0
    )

    assert "<script>" in told.to_text()
    assert "<script>" not in told.to_html()
    assert told.to_dict()["states"] == {"failed": 1}
    with pytest.raises(KeyError):
        told["b"]


def test_lines_of_all_migrations_carry_their_names() -> None:
    stream = io.StringIO()
    display = FleetDisplay(stream)
    display("a", events.StepStarted("check"))
    display("b", events.StepStarted("check"))

    assert [line.partition(": ")[0] for line in stream.getvalue().splitlines()] == ["a", "b"]
