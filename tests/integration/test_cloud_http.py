"""The way to the API: what is sent, what is made of every kind of answer, and that no secret gets out."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any

import attrs
import pytest

from cvm_migrate.cloud import (
    AssumeRoleCredentials,
    CloudClient,
    CloudEndpoint,
    CvmRoleCredentials,
    StaticCredentials,
)
from cvm_migrate.cloud._errors import Repeat, repeat_of
from cvm_migrate.errors import (
    CredentialsError,
    CvmMigrateError,
    InvalidRequestError,
    ServiceError,
    ThrottledError,
)
from cvm_migrate.testing import TencentCloud
from rig.cloud import QUICK, add, cloud, endpoint, instance
from rig.scripted_http import Answer, ok, refused, scripted

KEY = "do-not-show-this-secret-key"
TOKEN = "do-not-show-this-token"
PASSWORD = "Do-not-show-1"


@pytest.fixture
def simulated() -> Iterator[TencentCloud]:
    with cloud() as running:
        yield running


def client(url: str, **changes: Any) -> CloudClient:
    way = attrs.evolve(CloudEndpoint(url=url, timeout=2.0), **changes)
    return CloudClient(StaticCredentials("AKID0123456789", KEY, TOKEN), "ap-guangzhou", way)


def test_a_call_is_signed_by_the_sdk_and_names_action_version_region_and_token() -> None:
    with scripted(lambda _: ok(InstanceSet=[])) as server:
        answer = client(server.url).describe_instances("ins-1")

    (asked,) = server.asked
    assert answer["RequestId"] == "r-1"
    assert (asked.method, asked.path, asked.params) == ("POST", "/", {"InstanceIds": ["ins-1"]})
    assert asked.headers["X-TC-Action"] == "DescribeInstances"
    assert asked.headers["X-TC-Version"] == "2017-03-12"
    assert asked.headers["X-TC-Region"] == "ap-guangzhou"
    assert asked.headers["X-TC-Token"] == TOKEN
    assert asked.headers["X-TC-Language"] == "en-US"
    assert asked.headers["Authorization"].startswith("TC3-HMAC-SHA256 Credential=AKID0123456789/")
    assert asked.headers["Host"] == server.url.removeprefix("http://")


def test_the_simulator_s_check_of_signatures_takes_ours_with_a_token_too(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)
    keys = simulated.new_credentials(seconds=3600)
    temporary = StaticCredentials(keys.secret_id, keys.secret_key, keys.token)

    assert instance(simulated, made, credentials=temporary).describe().state == "RUNNING"
    wrong = StaticCredentials(keys.secret_id, "wrong", keys.token)
    with pytest.raises(CredentialsError, match="AuthFailure"):
        instance(simulated, made, credentials=wrong).describe()


@pytest.mark.parametrize(
    ("answer", "code", "repeat"),
    [
        (refused("InternalError"), "InternalError", Repeat.LOOK),
        (
            # With this content type the SDK takes an error for an empty success.
            refused("InternalError", headers={"Content-Type": "application/json; charset=utf-8"}),
            "InternalError",
            Repeat.LOOK,
        ),
        (refused("InternalError", status=500), "InternalError", Repeat.LOOK),
        (Answer(b"<html>", status=502), "HttpStatus.502", Repeat.LOOK),
        (Answer(b"slow down", status=429), "HttpStatus.429", Repeat.SAFE),
        (Answer(b"go away", status=403), "HttpStatus.403", Repeat.NEVER),
        (
            Answer(b"", status=302, headers={"Location": "http://127.0.0.1:9/"}),
            "HttpStatus.302",
            Repeat.NEVER,
        ),
        (Answer(b"<html>log in</html>"), "Network.NoJson", Repeat.LOOK),
        (Answer(b'{"Response": 3}'), "Network.NoJson", Repeat.LOOK),
        (Answer(b"[]"), "Network.NoJson", Repeat.LOOK),
        (Answer(hang_up=True), "Network.ReplyLost", Repeat.LOOK),
        (Answer(b'{"Response": {}}', cut=5), "Network.ReplyLost", Repeat.LOOK),
    ],
)
def test_every_kind_of_answer_is_told_apart(answer: Answer, code: str, repeat: Repeat) -> None:
    with scripted(lambda _: answer) as server, pytest.raises(CvmMigrateError) as caught:
        client(server.url).describe_instances("ins-1")

    assert (caught.value.code, repeat_of(caught.value)) == (code, repeat)
    assert caught.value.action == "DescribeInstances"
    assert caught.value.remedy
    assert len(server.asked) == 1


def test_what_was_never_sent_is_told_from_what_may_have_been_carried_out() -> None:
    with scripted(lambda _: ok()) as server:
        url = server.url
    nobody = client(url)
    unknown = CloudClient(
        StaticCredentials("i", KEY),
        "ap-guangzhou",
        CloudEndpoint(domain="nowhere.invalid", proxy=""),
    )

    for one, says in ((nobody, "refused"), (unknown, "sts.nowhere.invalid is not known")):
        with pytest.raises(ServiceError, match=says) as caught:
            one.get_caller_identity()
        assert (caught.value.code, repeat_of(caught.value)) == ("Network.NotSent", Repeat.SAFE)


def test_an_endpoint_that_is_slow_beyond_the_time_out_is_given_up(simulated: TencentCloud) -> None:
    made = add(simulated)
    simulated.fail("timeout", times=None)
    one = CloudClient(
        StaticCredentials(simulated.secret_id, simulated.secret_key),
        made.region,
        endpoint(simulated, "timeout"),
    )

    with pytest.raises(ServiceError, match="did not answer in time"):
        one.describe_instances(made.instance_id)


def test_this_machine_s_own_addresses_are_never_asked_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with scripted(lambda _: ok()) as server:
        client(server.url).get_caller_identity()

    assert len(server.asked) == 1


def test_other_addresses_are_asked_through_the_proxy_of_the_environment_or_of_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with scripted(lambda _: ok()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        client("http://api.nowhere.invalid").get_caller_identity()
        client("http://{service}.nowhere.invalid", proxy=proxy.url).get_caller_identity()
        monkeypatch.setenv("no_proxy", "nowhere.invalid")
        with pytest.raises(ServiceError):
            client("http://api.nowhere.invalid").get_caller_identity()

    assert [asked.path for asked in proxy.asked] == [
        "http://api.nowhere.invalid/",
        "http://sts.nowhere.invalid/",
    ]


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (None, ("https", "cvm.tencentcloudapi.com")),
        ("international", ("https", "cvm.intl.tencentcloudapi.com")),
        ("internal.tencentcloudapi.com", ("https", "cvm.internal.tencentcloudapi.com")),
        ("http://127.0.0.1:80/", ("http", "127.0.0.1:80")),
        ("https://{service}.example.com:8443", ("https", "cvm.example.com:8443")),
    ],
)
def test_an_endpoint_is_what_callers_write(given: str | None, address: tuple[str, str]) -> None:
    assert CloudEndpoint.of(given).address("cvm") == address


@pytest.mark.parametrize("given", ["", "ftp://x", "a b/c", "host:80", "https://host/path"])
def test_an_endpoint_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequestError):
        CloudEndpoint.of(given).address("cvm")


@pytest.mark.parametrize("region", ["ap-guangzhou-3", "guangzhou", "", "AP-x"])
def test_a_region_that_is_none_is_refused(region: str, simulated: TencentCloud) -> None:
    made = add(simulated)

    with pytest.raises(InvalidRequestError):
        instance(simulated, made, region=region)


@pytest.mark.parametrize("offset", [200.0, -200.0])
def test_a_clock_that_is_off_is_measured(simulated: TencentCloud, offset: float) -> None:
    made = add(simulated)
    cvm = instance(simulated, made)
    before = cvm.client.clock_skew
    simulated.clock_offset = offset

    cvm.describe()
    skew = cvm.client.clock_skew

    assert before is None
    assert skew is not None
    assert abs(skew + offset) < 20


@pytest.mark.parametrize("offset", [400.0, -400.0])
def test_a_clock_that_is_off_too_far_is_the_error_s_remedy(
    simulated: TencentCloud, offset: float
) -> None:
    made = add(simulated)
    simulated.clock_offset = offset

    with pytest.raises(CredentialsError, match="clock"):
        instance(simulated, made).describe()


def test_a_role_s_keys_that_the_cloud_ended_early_are_renewed_in_the_middle_of_a_step(
    simulated: TencentCloud,
) -> None:
    made = add(simulated)
    simulated.add_role("migrator")
    cvm = instance(simulated, made, credentials=CvmRoleCredentials(url=simulated.metadata_url))
    cvm.enter_migration()

    assert simulated.expire_tokens() == 1
    cvm.leave_migration()

    assert made.state == "RUNNING"
    assert [r.code for r in simulated.requests if r.code] == ["AuthFailure.TokenFailure"]


def test_the_sdk_is_imported_only_when_the_cloud_is_called() -> None:
    program = (
        "import sys, cvm_migrate.cloud;"
        "sys.exit(any(name in sys.modules for name in ('tencentcloud', 'requests')))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_process_s_warning_filters_stay_as_they_are() -> None:
    program = """
import sys, warnings
from cvm_migrate.cloud import CloudClient, StaticCredentials
before = list(warnings.filters)
try:
    CloudClient(StaticCredentials("i", "k"), "ap-guangzhou", sys.argv[1]).get_caller_identity()
finally:
    assert warnings.filters == before, (warnings.filters, before)
"""
    answer = ok(DeprecatedWarning="this action is old")
    with scripted(lambda _: answer) as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, server.url],
            check=False,
            capture_output=True,
            text=True,
        )

    assert done.returncode == 0, done.stderr
    assert not done.stderr


def everything(caplog: pytest.LogCaptureFixture, *errors: BaseException) -> str:
    """Return all that a person or a file could come to see."""
    parts = [record.getMessage() + repr(record.args) for record in caplog.records]
    for error in errors:
        parts += [repr(error), str(error), repr(vars(error))]
        parts += traceback.format_exception(error)
    return "\n".join(parts)


ECHO = f"your key {KEY}, your token {TOKEN}, your password {PASSWORD}"


@pytest.mark.parametrize(
    "answer",
    [
        ok(Echo=ECHO),
        refused("InvalidPassword", ECHO),
        refused("Unheard.Of", ECHO),
        Answer(ECHO.encode(), status=500),
        Answer(hang_up=True),
        Answer(ECHO.encode()),
    ],
)
def test_no_secret_gets_into_a_log_or_an_error_whatever_the_answer(
    answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[BaseException] = []
    with scripted(lambda _: answer) as server:
        one = client(server.url)
        attempts = (
            partial(one.enter_rescue_mode, "ins-1", PASSWORD, "SOFT"),
            partial(one.assume_role, "qcs::cam::uin/1:roleName/x", "s", 900),
        )
        for attempt in attempts:
            try:
                attempt()
            except CvmMigrateError as error:
                errors.append(error)
    shown = everything(caplog, *errors) + repr(one)

    assert len(caplog.records) > 2
    assert KEY not in shown
    assert TOKEN not in shown
    # What echoes the password to AssumeRole, which was not given one, is beyond us.
    entering = [error for error in errors if "EnterRescueMode" in str(error)]
    assert PASSWORD not in everything(caplog, *entering)


def test_a_proxy_s_password_gets_into_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with scripted(lambda _: Answer(b"", status=407)) as proxy:
        address = proxy.url.replace("http://", "http://me:hidden-proxy-word@")
        for url in ("http://api.nowhere.invalid", "https://api.nowhere.invalid"):
            one = client(url, proxy=address)
            with pytest.raises(ServiceError) as caught:
                one.get_caller_identity()

            assert "hidden-proxy-word" not in everything(caplog, caught.value) + repr(one)


def test_the_whole_way_in_and_out_shows_no_secret_at_debug(
    simulated: TencentCloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = add(simulated)
    keys = simulated.new_credentials(seconds=3600)
    cvm = instance(
        simulated,
        made,
        credentials=StaticCredentials(keys.secret_id, keys.secret_key, keys.token),
    )
    simulated.fail("drop-after-success", action="EnterRescueMode")
    simulated.fail("internal", action="ExitRescueMode")

    access = cvm.enter_migration()
    cvm.leave_migration()
    shown = everything(caplog) + repr([cvm, access, simulated.requests, cvm.client.credentials])

    assert keys.token is not None
    for secret in (keys.secret_key, keys.token, access.password):
        assert secret not in shown


def assumed(simulated: TencentCloud) -> AssumeRoleCredentials:
    arn = simulated.add_role("migrator")
    base = StaticCredentials(simulated.secret_id, simulated.secret_key)
    return AssumeRoleCredentials(base, arn, endpoint=endpoint(simulated), policy=QUICK)


def test_a_role_is_assumed_and_its_keys_are_used_and_kept(simulated: TencentCloud) -> None:
    made = add(simulated)
    cvm = instance(simulated, made, credentials=assumed(simulated))

    cvm.describe()
    cvm.describe()

    assert [r.action for r in simulated.requests].count("AssumeRole") == 1


@pytest.mark.parametrize(
    "fault", ["throttle", "unauthorized", "ResourceNotFound.Role", "http-502"]
)
def test_keys_of_a_role_serve_to_their_end_when_it_cannot_be_assumed_again(
    simulated: TencentCloud, fault: str
) -> None:
    now = [time.time()]
    arn = simulated.add_role("migrator")
    source = AssumeRoleCredentials(
        StaticCredentials(simulated.secret_id, simulated.secret_key),
        arn,
        endpoint=endpoint(simulated),
        policy=attrs.evolve(QUICK, attempts=2),
        clock=lambda: now[0],
    )
    first = source.get()
    assert first.expires is not None
    simulated.fail(fault, action="AssumeRole", times=None)

    now[0] = first.expires - 10
    assert source.get() == first
    now[0] = first.expires + 1
    with pytest.raises(CvmMigrateError) as caught:
        source.get()

    assert caught.value.remedy


def test_a_role_that_cannot_be_assumed_now_is_an_error_of_credentials(
    simulated: TencentCloud,
) -> None:
    source = assumed(simulated)
    simulated.fail("throttle", action="AssumeRole")
    assert source.get().token
    source.renew()
    simulated.fail("throttle", action="AssumeRole", times=None)

    with pytest.raises(CredentialsError, match="RequestLimitExceeded") as caught:
        source.get()

    assert isinstance(caught.value.__cause__, ThrottledError)
    assert simulated.secret_key not in str(caught.value)
