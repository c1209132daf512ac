"""The tree of errors: texts, facts, pickling, and the pages that describe it."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest

from cvm_migrate import errors
from cvm_migrate.errors import CvmMigrateError, DeadlineError, InvalidRequestError

CLASSES: list[type[CvmMigrateError]] = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, CvmMigrateError)
]
FACTS = {
    "remedy": "Mend it",
    "device": "/dev/sdx",
    "offset": 4096,
    "length": 512,
    "errno": 5,
    "seconds": 1.5,
    "code": "read",
    "action": "DescribeInstances",
    "request_id": "r-1",
}
PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "errors.md"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_facts_survive_pickling_and_copying(kind: type[CvmMigrateError]) -> None:
    """Errors cross the borders of processes, as with an executor."""
    error = kind("it broke", **FACTS)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):  # noqa: S301 - our own bytes
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.message == "it broke"
        assert {name: getattr(again, name) for name in FACTS} == FACTS
        assert again.args == error.args


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_without_facts_the_remedy_is_the_kind_s_own(kind: type[CvmMigrateError]) -> None:
    error = kind("it broke")

    assert error.errno is None
    assert error.remedy == kind.default_remedy
    assert str(error) == ("it broke" if error.remedy is None else f"it broke. {error.remedy}")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_kind_says_what_it_means(kind: type[CvmMigrateError]) -> None:
    assert kind.__doc__
    assert kind.__doc__.strip().endswith(".") or "\n" in kind.__doc__


def test_the_text_names_the_place_and_the_remedy() -> None:
    error = CvmMigrateError(
        "cannot read", device="/dev/sdx", offset=4096, length=512, remedy="Mend it"
    )

    assert str(error) == "cannot read (device /dev/sdx, offset 4096, length 512). Mend it"


def test_a_device_that_the_message_names_is_not_named_again() -> None:
    assert (
        str(CvmMigrateError("cannot read /dev/sdx", device="/dev/sdx")) == "cannot read /dev/sdx"
    )


def test_an_empty_remedy_takes_the_default_away() -> None:
    assert str(errors.NoRoomError("full", remedy="")) == "full"


def test_an_offset_of_zero_is_told() -> None:
    assert str(CvmMigrateError("bad", offset=0, length=0)) == "bad (offset 0, length 0)"


def test_errors_of_the_standard_library_catch_their_kind() -> None:
    with pytest.raises(ValueError, match="wrong"):
        raise InvalidRequestError("wrong")
    with pytest.raises(TimeoutError):
        raise DeadlineError("late", seconds=1)
    with pytest.raises(OSError, match="late") as caught:
        raise DeadlineError("late", errno=110)
    assert caught.value.errno == 110


def test_each_kind_stands_under_exactly_one_branch() -> None:
    """The branch says what the caller can do next; two answers would be none."""
    for kind in CLASSES:
        if kind is not CvmMigrateError:
            assert len([base for base in kind.__bases__ if issubclass(base, CvmMigrateError)]) == 1


def tree(text: str) -> list[tuple[str, str]]:
    """Names with their parent, out of a tree drawn in text."""
    stack: list[tuple[int, str]] = []
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        match = re.search(r"(\w+Error)\b", line)
        drawn = "── " in line or (match is not None and line.strip() == "CvmMigrateError")
        if match is None or not drawn:
            continue
        depth = match.start()
        while stack and stack[-1][0] >= depth:
            stack.pop()
        found.append((match[1], stack[-1][1] if stack else ""))
        stack.append((depth, match[1]))
    return found


def actual() -> list[tuple[str, str]]:
    return [
        (kind.__name__, "" if kind is CvmMigrateError else kind.__bases__[0].__name__)
        for kind in CLASSES
    ]


def test_the_tree_in_the_module_s_text_is_the_tree() -> None:
    assert sorted(tree(errors.__doc__ or "")) == sorted(actual())


def test_the_page_of_errors_tells_the_same_tree() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert sorted(tree(page)) == sorted(actual())


def test_the_page_says_of_every_kind_what_it_is_and_its_remedy() -> None:
    page = PAGE.read_text(encoding="utf-8")

    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", page))
    assert sorted(rows) == sorted(
        kind.__name__ for kind in CLASSES if kind not in kinds_with_branches()
    )
    for kind in CLASSES:
        if kind.__name__ in rows and kind.default_remedy is not None:
            assert kind.default_remedy in rows[kind.__name__]


def kinds_with_branches() -> set[type[CvmMigrateError]]:
    """The branches themselves: they have a heading each."""
    return {
        CvmMigrateError,
        *(
            kind
            for kind in CLASSES
            if kind.__bases__ == (CvmMigrateError,) and kind.__subclasses__()
        ),
    }
