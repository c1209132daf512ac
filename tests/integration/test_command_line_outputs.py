"""What the command line does where its output is closed, full or gone, and that every outcome is one document."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from capabilities import require
from rig import loopdev
from rig.disks import mounted_pair

MiB = 1 << 20
_WORDS = [sys.executable, "-m", "cvm_migrate"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(os.urandom(2 * MiB))
    return file


def _error(text: str) -> dict[str, Any]:
    """The only document on the standard output."""
    error: dict[str, Any] = json.loads(text)["error"]
    assert error["message"]
    return error


@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
def test_closed_streams_change_nothing(closed: str, image: Path, tmp_path: Path) -> None:
    """Files that are opened do not take the place of a stream that is closed, and nothing is printed into them."""
    copy = tmp_path / "copy.img"
    state = tmp_path / "state"
    redirections = " ".join(f"{fd}>&-" for fd in closed.split())
    script = f'exec "$@" {redirections}'
    words = ["capture", f"image:{image}", str(copy), "--state", str(state)]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *_WORDS, *words], check=False, capture_output=True, timeout=100
    )

    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert copy.read_bytes() == image.read_bytes()


def test_a_result_that_finds_no_room_is_told(image: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*_WORDS, "capture", f"image:{image}", tmp_path / "copy.img", "--json", "--quiet"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )

    assert done.returncode == 0
    assert "could not be written" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--json"],
        ["dance", "--json"],
        ["run", "--json", "--source", "image:/a"],
        ["run", "--json", "--source", "image:/a", "--target", "image:/b", "--streams", "many"],
        ["run", "--json", "--source", "image:/a", "--target", "image:/b", "--bandwidth", "nan"],
        ["run", "--json", "--source", "image:/a", "--target", "image:/b", "--state", ""],
        ["run", "--json", "--source", "image:/a", "--target", "image:/b", "--max-downtime", "nan"],
        ["demo", "--json", "--size", "1"],
        ["fleet", "--json", "/nowhere/plans.toml"],
        [
            "check",
            "--json",
            "--source",
            "image:/a",
            "--target",
            "image:/b",
            "--report",
            "/nowhere/page",
        ],
        ["check", "--json", "--source", "image:/a", "--target", "image:/b", "--report", "/"],
    ],
)
def test_every_wrong_call_is_a_document_with_json(words: list[str]) -> None:
    done = subprocess.run(
        [*_WORDS, *words], check=False, capture_output=True, text=True, timeout=100
    )

    assert done.returncode == 2, done.stderr
    _error(done.stdout)
    assert done.stderr.startswith("cvm-migrate: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kept"),
    [
        (signal.SIGTERM, "kept"),
        (signal.SIGHUP, "kept"),
        (signal.SIGINT, "kept"),
        (signal.SIGINT, "not kept"),
    ],
)
def test_an_interrupted_call_is_a_document_and_can_be_repeated(
    number: signal.Signals, kept: Literal["kept", "not kept"], image: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.img"
    words = ["capture", f"image:{image}", str(copy)]
    words += ["--state", str(tmp_path / "state")] if kept == "kept" else []
    slow = ["--bandwidth", "64K", "--codec", "raw"]
    with subprocess.Popen(
        [*_WORDS, *words, *slow, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell is started with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("full_sync"):
                break
        running.send_signal(number)
        out, err = running.communicate(timeout=60)

    assert running.returncode == 130, err
    assert _error(out)["type"] == "CancelledError"
    assert "Repeat the same command" in err
    assert ("continue from the checkpoint" in err) is (kept == "kept")
    assert "KeyboardInterrupt" not in err
    again = subprocess.run(
        [*_WORDS, *words], check=False, capture_output=True, text=True, timeout=100
    )
    assert again.returncode == 0, again.stderr
    assert copy.read_bytes() == image.read_bytes()


def test_a_reader_that_goes_after_the_first_line_leaves_the_migration_going(
    tmp_path: Path,
) -> None:
    """As in ``cvm-migrate run ... 2>&1 | head -1``: it goes on to its end, and nothing stays frozen."""
    require("loop", "mkfs.ext4")
    with mounted_pair(tmp_path, size=32 * MiB) as pair:
        (pair.mount / "file").write_bytes(os.urandom(4 * MiB))
        words = ["run", "--source", f"local:{pair.source}", "--target", f"local:{pair.target}"]
        with subprocess.Popen(
            [*_WORDS, *words, "--state", str(tmp_path / "state")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as running:
            assert running.stdout is not None
            assert running.stdout.readline()
            running.stdout.close()
            code = running.wait(timeout=100)
        # It would wait for ever on a frozen file system.
        (pair.mount / "after").write_bytes(b"thawed")
        with loopdev.mounted(pair.target, tmp_path / "copy") as copy:
            assert (copy / "file").read_bytes() == (pair.mount / "file").read_bytes()

    assert code == 0
