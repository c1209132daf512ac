"""Where keys come from; every place is a parameter."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import attrs
import pytest

from cvm_migrate.cloud import (
    CvmRoleCredentials,
    DefaultCredentials,
    EnvironmentCredentials,
    ProfileCredentials,
    Secrets,
    StaticCredentials,
)
from cvm_migrate.errors import CredentialsError
from rig.scripted_http import Answer, Asked, Scripted, scripted

KEY = "do-not-show-this-key"
TOKEN = "do-not-show-this-token"


@attrs.define
class Clock:
    now: float = 1_700_000_000.0

    def time(self) -> float:
        return self.now


def test_no_form_of_the_keys_shows_them() -> None:
    secrets = Secrets("AKID1234567890", KEY, TOKEN)
    shown = f"{secrets} {secrets!r} {StaticCredentials('AKID1234567890', KEY, TOKEN)!r}"

    assert KEY not in shown
    assert TOKEN not in shown
    assert "AKID1234567890" not in shown


@pytest.mark.parametrize(("identity", "key"), [("", "k"), ("i", ""), (" i", "k"), ("i", "k\n")])
def test_keys_that_are_empty_or_have_blanks_are_refused(identity: str, key: str) -> None:
    with pytest.raises(CredentialsError):
        StaticCredentials(identity, key)


@pytest.mark.parametrize("name", ["TENCENTCLOUD_TOKEN", "TENCENTCLOUD_SECURITY_TOKEN"])
def test_the_environment_gives_keys_and_token(name: str) -> None:
    environ = {"TENCENTCLOUD_SECRET_ID": "i", "TENCENTCLOUD_SECRET_KEY": KEY, name: TOKEN}

    assert EnvironmentCredentials(environ).get() == Secrets("i", KEY, TOKEN)


def test_half_an_environment_names_what_is_missing() -> None:
    source = DefaultCredentials(
        environ={"TENCENTCLOUD_SECRET_ID": "i"}, files=(), metadata_url=None
    )

    with pytest.raises(CredentialsError, match="TENCENTCLOUD_SECRET_KEY not set"):
        source.get()


def test_the_profile_file_gives_keys_and_token_of_a_section(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        f'[default]\nsecret_id = i\nsecret_key = "{KEY}"\n[other]\nsecret_id=o\nsecret_key=p%q\ntoken={TOKEN}\n'
    )

    assert ProfileCredentials([tmp_path / "none", file]).get() == Secrets("i", KEY)
    assert ProfileCredentials([file], profile="other").get() == Secrets("o", "p%q", TOKEN)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[other]\nsecret_id=i\n", r"no section \[default\]"),
        ("[default]\nsecret_id=i\n", "no secret_key"),
        (f"[default]\nsecret_key {KEY}\n", "no INI file|not an INI file"),
        (f"secret_id=i\nsecret_key={KEY}\n", "not an INI file"),
    ],
)
def test_a_broken_profile_file_is_named_without_its_content(
    tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "credentials"
    file.write_text(text)

    with pytest.raises(CredentialsError, match=says) as caught:
        DefaultCredentials(environ={}, files=[file], metadata_url=None).get()

    assert str(file) in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


def role_service(
    clock: Clock, fetched: list[str], life: float = 7200.0
) -> AbstractContextManager[Scripted]:
    def answer(asked: Asked) -> Answer:
        if asked.path == "/cam/security-credentials/":
            return Answer(b"migrator")
        assert asked.path == "/cam/security-credentials/migrator"
        fetched.append(asked.path)
        return Answer(
            json.dumps(
                {
                    "Code": "Success",
                    "TmpSecretId": f"id{len(fetched)}",
                    "TmpSecretKey": KEY,
                    "Token": TOKEN,
                    "ExpiredTime": clock.now + life,
                }
            ).encode()
        )

    return scripted(answer)


def test_a_role_s_keys_are_kept_and_renewed_before_they_run_out() -> None:
    clock, fetched = Clock(), list[str]()
    with role_service(clock, fetched) as server:
        source = CvmRoleCredentials(url=server.url, clock=clock.time)
        first = source.get()
        clock.now += 6000
        kept = source.get()
        clock.now += 1000
        renewed = source.get()

    assert (first.secret_id, kept.secret_id, renewed.secret_id) == ("id1", "id1", "id2")
    assert first.token == TOKEN
    assert len(fetched) == 2


def test_a_role_s_keys_serve_to_their_end_when_the_service_falls_silent() -> None:
    clock, fetched = Clock(), list[str]()
    with role_service(clock, fetched) as server:
        source = CvmRoleCredentials(url=server.url, clock=clock.time)
        first = source.get()
    clock.now += 7000

    assert source.get() is first

    clock.now += 201
    with pytest.raises(CredentialsError, match="no metadata service"):
        source.get()


def test_keys_that_the_cloud_refused_are_fetched_anew() -> None:
    clock, fetched = Clock(), list[str]()
    with role_service(clock, fetched) as server:
        source = CvmRoleCredentials(url=server.url, clock=clock.time)
        source.get()

        assert source.renew()
        assert source.get().secret_id == "id2"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(b"nothing", status=404), "no role is bound"),
        (Answer(b""), "has no role"),
    ],
)
def test_a_cvm_without_a_role_is_said_to_have_none(answer: Answer, says: str) -> None:
    with scripted(lambda _: answer) as server, pytest.raises(CredentialsError, match=says):
        CvmRoleCredentials(url=server.url).get()


def test_an_answer_of_the_metadata_service_never_gets_into_an_error() -> None:
    body = json.dumps({"Code": "Success", "TmpSecretKey": KEY}).encode()
    with (
        scripted(lambda _: Answer(body)) as server,
        pytest.raises(CredentialsError) as caught,
    ):
        CvmRoleCredentials("migrator", url=server.url).get()

    assert KEY not in repr(caught.value) + str(caught.value)
    assert caught.value.__cause__ is None


def test_where_nothing_is_found_the_error_lists_where_was_looked(tmp_path: Path) -> None:
    source = DefaultCredentials(
        environ={}, files=[tmp_path / "none"], metadata_url="http://127.0.0.1:9/meta"
    )

    with pytest.raises(CredentialsError) as caught:
        source.get()

    for part in ("TENCENTCLOUD_SECRET_ID", str(tmp_path / "none"), "http://127.0.0.1:9/meta"):
        assert part in caught.value.message
    assert caught.value.remedy


def test_the_environment_comes_before_the_file_and_the_file_before_the_role(
    tmp_path: Path,
) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\nsecret_id = file\nsecret_key = k\n")
    environ = {"TENCENTCLOUD_SECRET_ID": "env", "TENCENTCLOUD_SECRET_KEY": "k"}
    clock, fetched = Clock(), list[str]()
    with role_service(clock, fetched) as server:
        both = DefaultCredentials(environ=environ, files=[file], metadata_url=server.url)
        only_file = DefaultCredentials(environ={}, files=[file], metadata_url=server.url)
        only_role = DefaultCredentials(environ={}, files=[], metadata_url=server.url)

        assert both.get().secret_id == "env"
        assert only_file.get().secret_id == "file"
        assert only_role.get().secret_id == "id1"
