"""The command line as a process, on real disks and files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate.units import MiB


def call(*words: str | Path, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cvm_migrate", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(os.urandom(3 * MiB) + bytes(5 * MiB) + b"the end".ljust(512))
    return file


def test_capture_makes_an_identical_image_and_restore_puts_it_back(
    image: Path, tmp_path: Path
) -> None:
    captured = call("capture", f"image:{image}", tmp_path / "captured.img", "--json")
    assert captured.returncode == 0, captured.stderr
    assert (tmp_path / "captured.img").read_bytes() == image.read_bytes()
    assert json.loads(captured.stdout)["state"] == "finished"

    restored = call("restore", tmp_path / "captured.img", f"image:{tmp_path / 'back.img'}")
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "back.img").read_bytes() == image.read_bytes()
    assert "proven identical" in restored.stdout


def test_check_changes_nothing_and_says_whether_it_is_possible(
    image: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target.img"
    done = call("check", "--source", f"image:{image}", "--target", f"image:{target}", "--json")

    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["findings"] is not None
    assert not target.exists()


def test_check_of_a_disk_that_is_not_there_says_so_with_code_7(tmp_path: Path) -> None:
    missing = tmp_path / "missing.img"
    done = call("check", "--source", f"image:{missing}", "--target", f"image:{tmp_path / 't.img'}")

    assert done.returncode == 7
    assert str(missing) in done.stdout + done.stderr


def test_a_report_page_is_written_where_asked(image: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = call("capture", f"image:{image}", tmp_path / "copy.img", "--report", page, "--quiet")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "<table" in page.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--source", "/dev/sdb", "--target", "local:/dev/sdc"], "local:/dev/sdb"),
        (["run", "--source", "tape:/x", "--target", "local:/dev/sdc"], "tape"),
        (["run", "--source", "image:relative", "--target", "image:/x"], "absolute"),
        (
            ["capture", "image:/nowhere/x.img", "/nowhere/y.img", "--max-downtime", "-1"],
            "max_downtime",
        ),
        (["abort", "--source", "image:/x", "--target", "image:/y"], "--state"),
        (["abort", "--state", "/no/such/folder"], "same --state"),
        (["run", "--source", "image:/x", "--target", "cvm:ap-guangzhou/ins-1"], "--state"),
    ],
    ids=[
        "no scheme",
        "unknown scheme",
        "relative path",
        "bad option",
        "abort without state",
        "abort of nothing",
        "an instance without state",
    ],
)
def test_a_wrong_call_ends_with_code_2_and_says_what_to_do(words: list[str], says: str) -> None:
    done = call(*words)

    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_giving_up_needs_the_state_directory_only(image: Path, tmp_path: Path) -> None:
    """Whatever command, folder and process began it."""
    state, copy = tmp_path / "state", tmp_path / "no-such-folder" / "copy.img"
    begun = call("capture", f"image:{image}", copy, "--state", state)
    assert begun.returncode != 0

    aborted = call("abort", "--state", state, "--json", "--quiet")

    assert aborted.returncode == 0, aborted.stderr
    assert json.loads(aborted.stdout)["state"] == "aborted"
    assert json.loads(aborted.stdout)["target"] == f"image:{copy}"
    assert stat.S_IMODE((state / "command.json").stat().st_mode) == 0o600


def test_a_state_directory_that_cannot_be_looked_into_asks_for_its_user(tmp_path: Path) -> None:
    require("root")
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    # So that this process, having given up root's rights, can still be started.
    program = (
        "import os, sys; from cvm_migrate.cli import main; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "abort", "--state", str(state)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 3, done.stderr
    assert "as root" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kept", [None, "", "[]", '{"source": 1}'])
def test_a_state_directory_that_does_not_know_its_words_asks_for_them(
    image: Path, tmp_path: Path, kept: str | None
) -> None:
    state = tmp_path / "state"
    words = ("--source", f"image:{image}", "--target", f"image:{tmp_path / 'no' / 'copy.img'}")
    assert call("run", *words, "--state", state).returncode != 0
    (state / "command.json").unlink()
    if kept is not None:
        (state / "command.json").write_text(kept)

    refused = call("abort", "--state", state)
    done = call("abort", *words, "--state", state)

    assert refused.returncode == 2
    assert "Give --source and --target" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert done.returncode == 0, done.stderr


def test_an_error_is_a_document_too(tmp_path: Path) -> None:
    done = call("capture", f"image:{tmp_path / 'no.img'}", tmp_path / "y.img", "--json", "--quiet")

    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "NotFoundError"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_demo_moves_a_busy_disk_and_proves_it() -> None:
    require("root", "loop", "tracefs", "partx", "mkfs.ext4")
    done = call("demo", "--size", "128M", "--json", timeout=180)

    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    proof = shown["proof"]
    assert proof["clean"]
    assert proof["integrity"] == "ok"
    assert proof["last_transaction"] >= proof["promised"] > 0
    assert shown["report"]["rung"] == "ebpf"


@pytest.mark.timeout(200)
def test_the_demo_without_root_says_what_it_could_not_show() -> None:
    done = call("demo", "--size", "64M", "--no-root", timeout=180)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "not shown:" in done.stdout
    assert "identical, byte for byte" in done.stdout
