"""Arguments and errors of the agent's verbs."""

from __future__ import annotations

import errno
import functools
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

import cvm_migrate
import cvm_migrate.agent
from cvm_migrate.agent import names, verbs
from cvm_migrate.agent.verbs import AgentError, Context


def test_the_agent_has_the_version_of_the_library() -> None:
    assert cvm_migrate.__version__ == cvm_migrate.agent.VERSION


Args = dict[str, Any]


def a_number(args: Args) -> object:
    return verbs.integer(args, "x", 0, 9)


def a_fraction(args: Args) -> object:
    return verbs.number(args, "x", 0, 9)


def a_text(args: Args) -> object:
    return verbs.text(args, "x")


def a_choice(args: Args) -> object:
    return verbs.text(args, "x", ("a", "b"))


def some_texts(args: Args) -> object:
    return verbs.texts(args, "x")


WRONG: list[tuple[Callable[[Args], object], Any]] = [
    *((a_number, value) for value in (None, -1, 10, True, 1.0, "1")),
    *((a_fraction, value) for value in (None, -1, 9.5, True, "1")),
    *((a_text, value) for value in (None, "", 1, "a\0b")),
    (a_choice, "c"),
    *((some_texts, value) for value in (None, "a", [1], [""])),
]


@pytest.mark.parametrize(("take", "value"), WRONG)
def test_a_wrong_argument_is_a_bad_request_that_names_it(
    take: Callable[[Args], object], value: object
) -> None:
    with pytest.raises(AgentError, match=r"^x ") as caught:
        take({"x": value})
    assert caught.value.code == "bad-request"


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 0)],
        [(0, 4096), (4096, 4096)],
        [(8192, 4096), (0, 4096)],
        [(0, 8192), (4096, 4096)],
        [(0, 1 << 20), (1 << 20, 1)],
        [(512, 512)],
        [((1 << 64) - 4096, 4096)],
    ],
)
def test_ranges_that_touch_overlap_or_leave_the_disk_are_refused(
    pairs: list[tuple[int, int]],
) -> None:
    blob = b"".join(struct.pack(">QQ", *pair) for pair in pairs)
    with pytest.raises(AgentError) as caught:
        verbs.ranges(blob, 1 << 20, multiple=4096)
    assert caught.value.code == "bad-request"


def test_ranges_come_out_as_they_went_in() -> None:
    pairs = [(0, 4096), (8192, 100)]
    assert verbs.ranges(verbs.pack_ranges(pairs), 1 << 20, multiple=4096) == pairs


@pytest.mark.parametrize(
    ("hint", "number", "code"),
    [
        ("read", errno.EIO, "read"),
        ("write", errno.EIO, "write"),
        ("write", errno.ENOSPC, "no-room"),
        ("open", errno.ENOENT, "not-found"),
        ("open", errno.EACCES, "permission"),
        ("open", errno.EINVAL, "unsupported"),
    ],
)
def test_an_error_of_the_system_keeps_its_facts(hint: str, number: int, code: str) -> None:
    error = verbs.from_os_error(hint, OSError(number, "x"), "/dev/sdz", 512, 1024, "reading")
    assert error.to_header() == {
        "code": code,
        "message": f"reading /dev/sdz: {os.strerror(number)}",
        "errno": number,
        "device": "/dev/sdz",
        "offset": 512,
        "length": 1024,
        "remedy": None,
    }


def test_cleanups_run_in_reverse_and_those_that_are_first_before_all_others() -> None:
    context = Context([])
    done: list[str] = []
    gone = functools.partial(done.append, "gone")
    context.at_end(functools.partial(done.append, "pump"))
    context.at_end(functools.partial(done.append, "thaw"), first=True)
    context.at_end(gone)
    context.at_end(functools.partial(done.append, "tracker"))
    context.not_at_end(gone)
    while (cleanup := context.next_cleanup()) is not None:
        cleanup()
    assert done == ["thaw", "tracker", "pump"]


def test_what_a_module_keeps_is_made_once_for_each_agent() -> None:
    one, other = Context(["one"]), Context(["other"])
    made: list[list[str]] = []

    def make(context: Context) -> list[str]:
        made.append(context.command)
        return context.command

    assert one.kept(make) is one.kept(make)
    assert other.kept(make) == ["other"]
    assert made == [["one"], ["other"]]


@pytest.mark.parametrize("name", [b"/plain", "/\u00e9\u4e2d".encode(), b"/\xff\x80x", b""])
def test_any_name_of_a_file_survives_the_way_through_text(name: bytes) -> None:
    assert names.to_bytes(names.to_text(name)) == name


def test_octal_escapes_of_proc_are_read() -> None:
    assert names.unescape(rb"/a\040b\134c\011\012") == "/a b\\c\t\n"
