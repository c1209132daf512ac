"""What OpenSSH's client says, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvm_migrate.errors import (
    AgentLostError,
    ConnectionLostError,
    CvmMigrateError,
    HostKeyError,
    InvalidRequestError,
    PermissionDeniedError,
    UnsupportedError,
)
from cvm_migrate.transport import SshTarget
from cvm_migrate.transport._askpass import PasswordHelper
from cvm_migrate.transport._ssh import explain

TARGET = SshTarget("root@10.0.0.5", password="One-time-7")

# From OpenSSH 7.4 (Enterprise Linux 7) to 9.9.
WORDS: dict[str, type[CvmMigrateError]] = {
    "ssh: connect to host 10.0.0.5 port 22: Connection refused": ConnectionLostError,
    "ssh: connect to host 10.0.0.5 port 22: Connection timed out": ConnectionLostError,
    "ssh: connect to host 10.0.0.5 port 22: No route to host": ConnectionLostError,
    "ssh: connect to host 10.0.0.5 port 22: Network is unreachable": ConnectionLostError,
    "ssh: Could not resolve hostname mars: Name or service not known": ConnectionLostError,
    "kex_exchange_identification: Connection closed by remote host": ConnectionLostError,
    "Connection timed out during banner exchange": ConnectionLostError,
    "Timeout, server 10.0.0.5 not responding.": ConnectionLostError,
    "channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed": ConnectionLostError,
    "root@10.0.0.5: Permission denied (publickey,password).": PermissionDeniedError,
    "Permission denied (publickey,gssapi-keyex,gssapi-with-mic).": PermissionDeniedError,
    "Received disconnect from 10.0.0.5 port 22:2: Too many authentication failures": PermissionDeniedError,
    "No ED25519 host key is known for 10.0.0.5 and you have requested strict checking.\n"
    "Host key verification failed.": HostKeyError,
    "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.": HostKeyError,
    "Unable to negotiate with 10.0.0.5 port 22: no matching host key type found. Their offer: ssh-rsa,ssh-dss": (
        UnsupportedError
    ),
    "command-line: line 0: Bad configuration option: nonsense": AgentLostError,
    "": AgentLostError,
}


@pytest.mark.parametrize("words", WORDS)
def test_each_reason_of_the_client_becomes_the_error_that_says_what_to_do(words: str) -> None:
    error = explain(TARGET, words, AgentLostError("the login ended"))
    assert type(error) is WORDS[words]
    assert error.remedy
    if words:
        assert words.splitlines()[-1].strip("@ ") in str(error)


def test_the_words_of_the_client_are_shown_without_the_password() -> None:
    error = explain(TARGET, "who would print One-time-7", AgentLostError("the login ended"))
    assert "One-time-7" not in str(error)


def test_host_keys_are_checked_whatever_the_users_configuration_says() -> None:
    command = SshTarget("host").client(silence=120)
    assert "StrictHostKeyChecking=yes" in command
    assert "BatchMode=yes" in command
    assert command[-2:] == ["--", "host"]


def test_a_file_of_pins_takes_the_place_of_all_other_known_keys(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    command = SshTarget("host", pin_on_first_use=pins).client(silence=120)
    assert "StrictHostKeyChecking=accept-new" in command
    assert f'UserKnownHostsFile="{pins}"' in command
    assert "GlobalKnownHostsFile=/dev/null" in command


def test_the_client_itself_bears_as_much_silence_as_the_session_does() -> None:
    command = SshTarget("host").client(silence=120)
    options = dict(word.split("=", 1) for word in command if "=" in word)
    seconds = int(options["ServerAliveInterval"]) * int(options["ServerAliveCountMax"])
    assert 120 <= seconds <= 180


@pytest.mark.parametrize("password", ["", "two\nlines", "a\0b"])
def test_a_password_that_no_prompt_could_take_is_refused(password: str) -> None:
    with pytest.raises(InvalidRequestError, match="one line"):
        PasswordHelper(password)


def test_no_password_needs_no_helper() -> None:
    with PasswordHelper(None) as helper:
        assert helper.environment == {}


def test_the_helper_puts_no_password_into_the_environment() -> None:
    with PasswordHelper("One-time-7") as helper:
        assert "One-time-7" not in repr(helper.environment)


def test_the_host_name_is_what_the_users_configuration_says(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host web\n  HostName 198.51.100.7\n")
    assert SshTarget("root@web", config=config).host_name() == "198.51.100.7"
    assert SshTarget("root@other.example", config=config).host_name() == "other.example"
