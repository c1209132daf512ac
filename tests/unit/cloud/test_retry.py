"""When a call is sent again, on a clock that only the test moves."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from cvm_migrate.cloud import RetryPolicy
from cvm_migrate.cloud._errors import error_from, state_named
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import (
    CancelledError,
    CredentialsError,
    CvmMigrateError,
    DeadlineError,
    InstanceStateError,
    ServiceError,
    ThrottledError,
)


@attrs.define
class Clock:
    now: float = 1000.0
    slept: list[float] = attrs.Factory(list[float])

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@attrs.define
class Service:
    """Fails with the codes in turn, then answers; ``*`` after a code means for ever."""

    codes: list[str]
    calls: int = 0

    def __call__(self) -> str:
        self.calls += 1
        if not self.codes:
            return "done"
        code = self.codes[0]
        if not code.endswith("*"):
            self.codes.pop(0)
        raise error_from(code.rstrip("*"), "no", action="DoIt")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def policy(clock: Clock, **changes: Any) -> RetryPolicy:
    plain = RetryPolicy(jitter=lambda: 1.0, sleep=clock.sleep, clock=clock.time)
    return attrs.evolve(plain, **changes)


def test_a_call_that_succeeds_is_made_once_without_waiting(clock: Clock) -> None:
    service = Service([])

    assert policy(clock).run(service, doing="it", idempotent=False) == "done"
    assert (service.calls, clock.slept) == (1, [])


def test_a_call_that_fails_once_and_then_succeeds_is_made_exactly_twice(clock: Clock) -> None:
    """The SDK's own retry makes it again after the success."""
    service = Service(["RequestLimitExceeded"])

    assert policy(clock).run(service, doing="it", idempotent=False) == "done"
    assert service.calls == 2


def test_waits_double_up_to_the_longest_and_end_after_the_attempts(clock: Clock) -> None:
    service = Service(["RequestLimitExceeded*"])

    with pytest.raises(ThrottledError):
        policy(clock, attempts=7, longest=15.0).run(service, doing="it", idempotent=False)

    assert service.calls == 7
    assert clock.slept == [1, 2, 4, 8, 15, 15]


def test_jitter_takes_at_most_half_of_the_wait_off(clock: Clock) -> None:
    assert policy(clock, jitter=lambda: 0.0).wait_after(3) == 2.0
    assert policy(clock, jitter=lambda: 1.0).wait_after(3) == 4.0


def test_the_time_is_capped_as_well_as_the_attempts(clock: Clock) -> None:
    service = Service(["InternalError*"])

    with pytest.raises(ServiceError):
        policy(clock, attempts=1000, seconds=60.0).run(service, doing="it", idempotent=True)

    assert sum(clock.slept) <= 60.0


def test_another_task_on_the_instance_is_waited_for_longer_than_failures_are(clock: Clock) -> None:
    service = Service(["MutexOperation.TaskRunning"] * 40)

    assert (
        policy(clock, attempts=3, seconds=5.0).run(service, doing="it", idempotent=False) == "done"
    )
    assert service.calls == 41


def test_another_task_that_never_ends_is_not_waited_for_for_ever(clock: Clock) -> None:
    service = Service(["MutexOperation.TaskRunning*"])

    with pytest.raises(ThrottledError, match="MutexOperation"):
        policy(clock, patience=300.0).run(service, doing="it", idempotent=False)

    assert 250 <= sum(clock.slept) <= 300


def test_a_refusal_is_not_repeated(clock: Clock) -> None:
    service = Service(["InvalidParameterValue*"])

    with pytest.raises(CvmMigrateError):
        policy(clock).run(service, doing="it", idempotent=True)

    assert service.calls == 1


@pytest.mark.parametrize("code", ["Network.ReplyLost", "InternalError", "HttpStatus.503"])
def test_a_call_without_an_answer_is_not_made_again_unless_it_may_be(
    clock: Clock, code: str
) -> None:
    service = Service([code])

    with pytest.raises(ServiceError):
        policy(clock).run(service, doing="it", idempotent=False)
    assert service.calls == 1

    assert policy(clock).run(Service([code]), doing="it", idempotent=True) == "done"


def test_a_call_that_was_carried_out_without_an_answer_is_not_made_again(clock: Clock) -> None:
    service = Service(["Network.ReplyLost"])

    done = policy(clock).run(service, doing="it", idempotent=False, look=lambda: "seen")

    assert (done, service.calls) == ("seen", 1)


def test_a_call_that_was_not_carried_out_is_made_again_after_looking(clock: Clock) -> None:
    service = Service(["Network.ReplyLost"])

    done = policy(clock).run(service, doing="it", idempotent=False, look=lambda: None)

    assert (done, service.calls) == ("done", 2)


def test_it_is_looked_a_last_time_before_the_error_is_let_through(clock: Clock) -> None:
    service = Service(["Network.ReplyLost*"])
    looks: list[str | None] = [None, None, "seen at last"]

    done = policy(clock, attempts=3).run(
        service, doing="it", idempotent=False, look=lambda: looks.pop(0)
    )

    assert (done, service.calls) == ("seen at last", 3)


def test_a_refusal_of_the_repetition_can_prove_that_the_first_call_was_carried_out(
    clock: Clock,
) -> None:
    service = Service(["Network.ReplyLost", "UnsupportedOperation.InstanceStateRescueMode"])

    def settled(error: CvmMigrateError) -> str | None:
        return "was done" if state_named(error.code or "") is not None else None

    done = policy(clock).run(
        service, doing="it", idempotent=False, look=lambda: None, settled=settled
    )

    assert done == "was done"


def test_a_refusal_of_the_first_call_proves_nothing(clock: Clock) -> None:
    service = Service(["UnsupportedOperation.InstanceStateRescueMode"])

    with pytest.raises(InstanceStateError):
        policy(clock).run(
            service, doing="it", idempotent=False, look=lambda: None, settled=lambda _: "wrong"
        )


def test_credentials_that_have_run_out_are_renewed_once(clock: Clock) -> None:
    renewals: list[int] = []

    def renew() -> bool:
        renewals.append(1)
        return True

    service = Service(["AuthFailure.TokenFailure"])
    assert policy(clock).run(service, doing="it", idempotent=False, renew=renew) == "done"

    with pytest.raises(CredentialsError):
        policy(clock).run(
            Service(["AuthFailure.TokenFailure*"]), doing="it", idempotent=True, renew=renew
        )

    assert len(renewals) == 2


def test_credentials_that_cannot_be_renewed_are_an_error_at_once(clock: Clock) -> None:
    service = Service(["AuthFailure.TokenFailure*"])

    with pytest.raises(CredentialsError):
        policy(clock).run(service, doing="it", idempotent=True, renew=lambda: False)

    assert (service.calls, clock.slept) == (1, [])


def test_a_deadline_ends_the_attempts_and_says_what_was_wrong(clock: Clock) -> None:
    deadline = Deadline(5.0, clock=clock.time)

    with pytest.raises(DeadlineError, match="entering") as caught:
        policy(clock).run(
            Service(["RequestLimitExceeded*"]),
            doing="entering",
            idempotent=True,
            deadline=deadline,
        )

    assert isinstance(caught.value.__cause__, ThrottledError)
    assert clock.now <= 1005.0


def test_calling_off_ends_the_attempts(clock: Clock) -> None:
    token = CancelToken()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        token.cancel()

    service = Service(["RequestLimitExceeded*"])
    with pytest.raises(CancelledError):
        policy(clock, sleep=sleep).run(service, doing="it", idempotent=True, cancel=token)

    assert service.calls == 1


def test_errors_that_are_not_of_the_cloud_are_never_repeated(clock: Clock) -> None:
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        raise ServiceError("something else")

    with pytest.raises(ServiceError):
        policy(clock).run(call, doing="it", idempotent=True)

    assert calls == [1]
