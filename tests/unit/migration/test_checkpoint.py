"""The state directory: what is written is found again, by one process at a time, and damage has a clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from capabilities import require
from cvm_migrate.errors import InvalidRequestError, NoRoomError, NotFoundError
from cvm_migrate.migration import State
from cvm_migrate.migration._checkpoint import Checkpoint, DiskIdentity, DiskRecord
from cvm_migrate.model import ExtentMap
from rig import loopdev

MiB = 1 << 20
_SOURCE = DiskIdentity("/dev/vda", 8 * MiB, serial="S1")
_TARGET = DiskIdentity("/dev/vdb", 9 * MiB)


def _record(disk: int = 0) -> DiskRecord:
    return DiskRecord(
        disk, _SOURCE, _TARGET, ExtentMap([(0, MiB), (2 * MiB, 512)]), ExtentMap([(MiB, 4096)])
    )


def _fill(file: Path) -> None:
    with file.open("wb") as opened:
        while True:
            opened.write(bytes(MiB))
            opened.flush()
            os.fsync(opened.fileno())


def test_what_was_written_is_read_by_the_next(tmp_path: Path) -> None:
    """State, values, notes, disks, passes and findings come back as they were."""
    first = Checkpoint(tmp_path / "deep" / "state")
    first.set_state(State.SYNCED)
    first.put("number", {"a": [1, 2]})
    first.notes["instance"] = "RUNNING"
    first.save_disks([_record(0), _record(1)])
    first.add_pass(1, {"kind": "full"})
    first.add_finding({"title": "x"})
    first.close()
    second = Checkpoint(tmp_path / "deep" / "state")

    assert second.state is State.SYNCED
    assert second.get("number") == {"a": [1, 2]}
    assert second.get("nothing") is None
    assert dict(second.notes) == {"instance": "RUNNING"}
    assert second.disks() == [_record(0), _record(1)]
    assert second.records("passes") == [{"kind": "full"}]
    assert second.records("findings") == [{"title": "x"}]
    second.close()


def test_notes_are_a_mapping(tmp_path: Path) -> None:
    """Endpoints use them as a dictionary."""
    checkpoint = Checkpoint(tmp_path)
    checkpoint.notes["a"] = "1"
    checkpoint.notes["a"] = "2"
    del checkpoint.notes["a"]

    assert len(checkpoint.notes) == 0
    assert "a" not in checkpoint.notes
    with pytest.raises(KeyError):
        del checkpoint.notes["a"]
    checkpoint.close()


def test_another_process_is_kept_out_until_the_first_one_dies(tmp_path: Path) -> None:
    """The lock ends with its process, however that ends."""
    program = (
        "import sys, time; from pathlib import Path;"
        "from cvm_migrate.migration._checkpoint import Checkpoint;"
        "Checkpoint(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(InvalidRequestError, match="another process"):
            Checkpoint(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    Checkpoint(tmp_path).close()


def test_what_is_no_state_is_named(tmp_path: Path) -> None:
    """A file of something else, and a state of another format."""
    (tmp_path / "state.sqlite3").write_bytes(b"something else" * 100)
    with pytest.raises(InvalidRequestError, match="not a state of a migration"):
        Checkpoint(tmp_path)


def test_a_state_of_another_format_is_refused(tmp_path: Path) -> None:
    """A later version's state is not guessed at."""
    checkpoint = Checkpoint(tmp_path)
    with checkpoint.guard() as db:
        db.execute("PRAGMA user_version = 99")
    checkpoint.close()
    with pytest.raises(InvalidRequestError, match="format 99"):
        Checkpoint(tmp_path)


def test_a_file_is_no_state_directory(tmp_path: Path) -> None:
    """A path that leads through a file is refused with that path."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFoundError, match="file"):
        Checkpoint(tmp_path / "file")


def test_a_full_disk_is_a_no_room_error_and_loses_nothing(tmp_path: Path) -> None:
    """What was stored before is still there when there is room again."""
    require("loop", "mkfs.ext4")
    with loopdev.loop_device(tmp_path / "disk.img", 4 * MiB) as device:
        loopdev.make_file_system(device, "ext4")
        with loopdev.mounted(device, tmp_path / "mount") as mount:
            checkpoint = Checkpoint(mount / "state")
            checkpoint.put("kept", 1)
            ballast = mount / "ballast"
            with pytest.raises(OSError, match="No space"):
                _fill(ballast)
            many = ExtentMap((n * 8192, 4096) for n in range(60_000))
            with pytest.raises(NoRoomError):
                checkpoint.save_disks([attrs.evolve(_record(), touched=many)])
            ballast.unlink()
            checkpoint.save_disks([_record()])
            checkpoint.close()
            again = Checkpoint(mount / "state")

            assert again.get("kept") == 1
            assert again.disks() == [_record()]
            again.close()


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (DiskIdentity("/dev/vdz", 8 * MiB, serial="S1"), True),
        (DiskIdentity("/dev/vda", 8 * MiB, serial="S2"), False),
        (DiskIdentity("/dev/vda", 9 * MiB, serial="S1"), False),
        (DiskIdentity("/dev/vda", 8 * MiB), True),
        (DiskIdentity("/dev/vdz", 8 * MiB), False),
    ],
    ids=["renamed", "other serial", "other size", "no serial", "no serial, renamed"],
)
def test_a_disk_is_recognised(other: DiskIdentity, *, same: bool) -> None:
    """By its serial number, else by its path; always by its size."""
    assert _SOURCE.is_same(other) is same


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    """In memory, and gone with the object."""
    before = list(tmp_path.iterdir())
    checkpoint = Checkpoint(None)
    checkpoint.set_state(State.PREPARED)

    assert checkpoint.state is State.PREPARED
    assert list(tmp_path.iterdir()) == before
    checkpoint.close()
