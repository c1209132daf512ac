"""From Tencent's codes to our errors."""

from __future__ import annotations

import importlib
import pickle

import pytest

from cvm_migrate.cloud._errors import (
    CODES,
    PREFIXES,
    Repeat,
    error_from,
    repeat_of,
    rule_for,
    scrub,
    state_named,
)
from cvm_migrate.cloud._states import STATES, InstanceState
from cvm_migrate.errors import (
    CredentialsError,
    CvmMigrateError,
    InstanceStateError,
    NotFoundError,
    PermissionDeniedError,
    ServiceError,
    ThrottledError,
    UnsupportedError,
)


@pytest.mark.parametrize(
    ("code", "kind", "repeat"),
    [
        ("RequestLimitExceeded", ThrottledError, Repeat.SAFE),
        ("RequestLimitExceeded.UinLimitExceeded", ThrottledError, Repeat.SAFE),
        ("MutexOperation.TaskRunning", ThrottledError, Repeat.PATIENT),
        ("OperationDenied.InstanceOperationInProgress", ThrottledError, Repeat.PATIENT),
        ("InternalError", ServiceError, Repeat.LOOK),
        ("InternalError.ResourceOpFailed", ServiceError, Repeat.LOOK),
        ("HttpStatus.502", ServiceError, Repeat.LOOK),
        ("HttpStatus.403", ServiceError, Repeat.NEVER),
        ("AuthFailure.TokenFailure", CredentialsError, Repeat.RENEW),
        ("AuthFailure.SignatureExpire", CredentialsError, Repeat.RENEW),
        ("AuthFailure.SecretIdNotFound", CredentialsError, Repeat.NEVER),
        ("AuthFailure.SomethingNew", CredentialsError, Repeat.NEVER),
        ("UnauthorizedOperation.CamNoAuth", PermissionDeniedError, Repeat.NEVER),
        ("InvalidInstanceId.NotFound", NotFoundError, Repeat.NEVER),
        ("UnsupportedOperation.ArmArchitecture", UnsupportedError, Repeat.NEVER),
        ("UnsupportedOperation.InstanceStateRescueMode", InstanceStateError, Repeat.NEVER),
        ("UnsupportedOperation.InstanceStateBanning", InstanceStateError, Repeat.NEVER),
        ("NothingLikeIt.Ever", ServiceError, Repeat.NEVER),
    ],
)
def test_a_code_becomes_an_error_and_says_whether_to_repeat(
    code: str, kind: type[CvmMigrateError], repeat: Repeat
) -> None:
    error = error_from(code, "why", action="DoIt", request_id="r-1", device="ins-1")

    assert type(error) is kind
    assert repeat_of(error) is repeat


def test_an_error_carries_code_action_request_id_subject_and_remedy() -> None:
    error = error_from(
        "InternalError", "It broke.", action="DoIt", request_id="r-1", device="ins-1"
    )

    assert (error.code, error.action, error.request_id, error.device) == (
        "InternalError",
        "DoIt",
        "r-1",
        "ins-1",
    )
    assert str(error) == (
        "DoIt for ins-1 failed: InternalError: It broke (request id r-1). "
        "Repeat the step; if it recurs, give Tencent's support the request id"
    )


def test_an_error_of_the_cloud_survives_a_process_border() -> None:
    error = error_from("InternalError", "x", action="DoIt", request_id="r-1")

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made in the line above

    assert (type(again), str(again), again.request_id) == (ServiceError, str(error), "r-1")


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_rule_has_a_remedy_without_its_full_stop(code: str) -> None:
    assert CODES[code].remedy
    assert not CODES[code].remedy.endswith(".")


def test_no_prefix_is_shadowed_by_a_shorter_one_before_it() -> None:
    names = [prefix for prefix, _ in PREFIXES]
    for index, prefix in enumerate(names):
        assert not [earlier for earlier in names[:index] if prefix.startswith(earlier)], prefix


@pytest.mark.parametrize(
    "state", [state for state in InstanceState if state is not InstanceState.UNKNOWN]
)
def test_a_refusal_that_names_a_state_advises_what_the_state_table_does(
    state: InstanceState,
) -> None:
    code = "UnsupportedOperation.InstanceState" + "".join(
        word.capitalize() for word in state.split("_")
    )

    assert state_named(code) is state
    assert rule_for(code).remedy == STATES[state].advice


@pytest.mark.parametrize("product", ["cvm.v20170312", "cbs.v20170312", "vpc.v20170312"])
def test_nearly_every_code_of_the_sdk_is_told_from_an_unknown_one(product: str) -> None:
    module = importlib.import_module(f"tencentcloud.{product}.errorcodes")
    codes = [str(value) for name, value in vars(module).items() if name.isupper()]

    unknown = [code for code in codes if rule_for(code) is rule_for("Nothing.LikeIt")]

    assert len(codes) > 50
    assert len(unknown) < 10, unknown


def test_secrets_are_taken_out_of_what_the_service_says() -> None:
    error = error_from(
        "InvalidPassword", "not good: Hunter22", action="A", secrets=("Hunter22", "")
    )

    assert "Hunter22" not in str(error)
    assert scrub("abc", ("",)) == "abc"
