"""Which file systems the agent asks how full they are: those that cannot keep it waiting."""

from __future__ import annotations

from typing import Any

import pytest

from cvm_migrate.agent import usage

DEVICES = {"8:0", "8:1", "8:2"}


def mount(point: str, kind: str = "ext4", number: str = "8:1", **more: Any) -> dict[str, Any]:
    return {"mount_point": point, "fs_type": kind, "number": number, **more}


ROOT = mount("/")
PROC = mount("/proc", "proc", "0:22")


@pytest.mark.parametrize(
    ("asked", "others", "answers"),
    [
        (ROOT, [PROC], True),
        (mount("/home", number="8:2"), [ROOT], True),
        (mount("/home", "xfs", "8:2"), [mount("/", "overlay", "0:30")], True),
        (mount("/pool", "btrfs", "0:40", devices=["8:1", "8:2"]), [ROOT], True),
        # On no disk of this host, or on one that is not known.
        (mount("/net", "nfs4", "0:50"), [ROOT], False),
        (mount("/net", "cifs", "0:50"), [ROOT], False),
        (mount("/tmp", "tmpfs", "0:51"), [ROOT], False),
        (mount("/home", number="8:7"), [ROOT], False),
        (mount("/pool", "btrfs", "0:40", devices=["8:1", "8:9"]), [ROOT], False),
        (mount("/pool", "btrfs", "0:40"), [ROOT], False),
        # On a disk, but others answer for it.
        (mount("/ntfs", "fuseblk", "8:2"), [ROOT], False),
        (mount("/shared", "ocfs2", "8:2"), [ROOT], False),
        # The way to it leads through what may be dead, or that lies over it.
        (mount("/net/disk", number="8:2"), [ROOT, mount("/net", "nfs", "0:50")], False),
        (mount("/auto/disk", number="8:2"), [ROOT, mount("/auto", "autofs", "0:50")], False),
        (mount("/home", number="8:2"), [ROOT, mount("/home", "nfs", "0:50")], False),
        (mount("/home", number="8:2"), [ROOT, mount("/home", "fuse.sshfs", "0:50")], False),
        # Beside it, or below it, it does not matter.
        (mount("/home", number="8:2"), [ROOT, mount("/home2", "nfs", "0:50")], True),
        (mount("/home", number="8:2"), [ROOT, mount("/home/net", "nfs", "0:50")], True),
    ],
)
def test_only_file_systems_that_cannot_hang_are_asked(
    asked: dict[str, Any],
    others: list[dict[str, Any]],
    answers: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    assert usage.answers(asked, [*others, asked], DEVICES) is answers


def test_nothing_is_said_of_what_is_not_asked_or_lies_below_another() -> None:
    """The root of this machine is no /dev of these numbers."""
    said = [mount("/proc", "ext4", "8:1"), mount("/no such place", "ext4", "8:2")]

    usage.measure(said, DEVICES)

    assert [("size" in one, "used" in one) for one in said] == [(False, False)] * 2
