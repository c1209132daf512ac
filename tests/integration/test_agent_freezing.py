"""File systems stand still when asked, and never for longer: whoever is killed, and whenever."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from capabilities import python, require
from rig import hanging, loopdev
from rig.pythons import EXTREMES, VERSIONS
from rig.rawagent import RawAgent, RawError, build_zip, raw_agent

MiB = 1 << 20
EVERY_PYTHON = pytest.mark.parametrize("version", VERSIONS)
SOME_PYTHONS = pytest.mark.parametrize("version", EXTREMES)
# Long after everything that a test waits for.
LONG = 600.0


@pytest.fixture(scope="module")
def agent_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("pyenv")
    return build_zip(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def stack() -> Generator[contextlib.ExitStack]:
    """What a test enters here is left after the agent has ended."""
    with contextlib.ExitStack() as entered:
        yield entered


@pytest.fixture
def agent(agent_zip: Path, version: str, stack: contextlib.ExitStack) -> Generator[RawAgent]:
    del stack
    with raw_agent(python(version), agent_zip) as one:
        yield one


class Writer:
    """A process that writes and syncs one file, and so waits while the file system is frozen."""

    def __init__(self, mount: Path) -> None:
        program = (
            "import os, sys\n"
            "fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
            "os.write(fd, b'x' * 4096)\n"
            "os.fsync(fd)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", program, str(mount / f"file-{time.monotonic_ns()}")]
        )

    def blocked(self, seconds: float = 1.0) -> bool:
        """Whether it is still at it after a while."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def ends(self, seconds: float = 60.0) -> bool:
        """Whether it gets through."""
        return self.process.wait(seconds) == 0


def a_mount(
    stack: contextlib.ExitStack, folder: Path, kind: str = "ext4", name: str = "one"
) -> Path:
    """A mounted file system of its own, which is thawed at the end whatever the test has done."""
    require("root", "loop", f"mkfs.{kind}")
    size = {"xfs": 320, "btrfs": 128}.get(kind, 32) * MiB
    device = stack.enter_context(loopdev.loop_device(folder / f"{name}.img", size))
    loopdev.make_file_system(device, kind)
    mount = stack.enter_context(loopdev.mounted(device, folder / name))
    stack.callback(loopdev.run, "fsfreeze", "--unfreeze", str(mount), check=False)
    return mount


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that it has not yet taken note of the end of."""
    found: list[int] = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            # It may end while we look at it.
            with contextlib.suppress(OSError):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found.append(int(process.name))
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody took note of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@EVERY_PYTHON
def test_writers_wait_while_it_is_frozen_and_go_on_after_the_thaw(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    assert agent.call("frozen").header == {"frozen": False, "remaining": 0.0}
    result = agent.call("freeze", mounts=[str(mount)], limit=LONG).header
    assert (result["frozen"], result["refused"]) == ([str(mount)], [])
    assert result["unlocked"] is None
    (watchdog,) = children(agent.process.pid)
    writer = Writer(mount)
    assert writer.blocked()
    state = agent.call("frozen").header
    assert state["frozen"] is True
    assert 0 < state["remaining"] < LONG
    thaw = agent.call("thaw").header
    assert thaw["lost"] is False
    assert thaw["held"] >= 1.0
    assert writer.ends()
    assert agent.call("frozen").header["frozen"] is False
    assert gone(watchdog)
    # And again: nothing is left over from the first time.
    agent.call("freeze", mounts=[str(mount)], limit=LONG)
    assert agent.call("thaw").header["lost"] is False


@pytest.mark.parametrize("version", EXTREMES[:1])
@pytest.mark.parametrize("kind", ["ext2", "ext3", "xfs", "btrfs"])
def test_every_kind_of_file_system_that_can_be_is_frozen(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack, kind: str
) -> None:
    mount = a_mount(stack, tmp_path, kind) if kind in {"xfs", "btrfs"} else None
    if mount is None:
        require("root", "loop", "mkfs.ext4")
        device = stack.enter_context(loopdev.loop_device(tmp_path / "image", 32 * MiB))
        loopdev.make_file_system(device, kind)
        mount = stack.enter_context(loopdev.mounted(device, tmp_path / "one"))
        stack.callback(loopdev.run, "fsfreeze", "--unfreeze", str(mount), check=False)
    result = agent.call("freeze", mounts=[str(mount)], limit=LONG).header
    assert result["frozen"] == [str(mount)]
    writer = Writer(mount)
    assert writer.blocked()
    assert agent.call("thaw").header["lost"] is False
    assert writer.ends()


@SOME_PYTHONS
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_the_agent_thaws(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack, number: signal.Signals
) -> None:
    mounts = [a_mount(stack, tmp_path, name=name) for name in ("one", "two")]
    agent.call("freeze", mounts=[str(mount) for mount in mounts], limit=LONG)
    (watchdog,) = children(agent.process.pid)
    writers = [Writer(mount) for mount in mounts]
    assert all(writer.blocked() for writer in writers)
    agent.kill(number)
    assert all(writer.ends() for writer in writers)
    wait_until(lambda: gone(watchdog))


@SOME_PYTHONS
@pytest.mark.parametrize("how", ["input ends", "shutdown", "nonsense"])
def test_every_clean_end_thaws_first(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack, how: str
) -> None:
    mount = a_mount(stack, tmp_path)
    agent.call("freeze", mounts=[str(mount)], limit=LONG)
    (watchdog,) = children(agent.process.pid)
    writer = Writer(mount)
    assert writer.blocked()
    if how == "input ends":
        assert agent.end() == 0
    elif how == "shutdown":
        agent.call("shutdown")
        assert agent.wait() == 0
    else:
        agent.write(b"nonsense")
        assert agent.wait() == 3
    assert writer.ends()
    wait_until(lambda: gone(watchdog))


@SOME_PYTHONS
def test_the_limit_thaws_though_main_lives_and_the_thaw_says_that_it_was_lost(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    agent.call("freeze", mounts=[str(mount)], limit=1.0)
    (watchdog,) = children(agent.process.pid)
    assert Writer(mount).ends()
    wait_until(lambda: agent.call("frozen").header["frozen"] is False)
    wait_until(lambda: gone(watchdog))
    with pytest.raises(RawError, match="was not ended by"):
        agent.call("freeze", mounts=[str(mount)], limit=LONG)
    result = agent.call("thaw").header
    assert result["lost"] is True
    assert result["held"] > 0.5
    assert agent.call("freeze", mounts=[str(mount)], limit=LONG).header["frozen"]
    assert agent.call("thaw").header["lost"] is False


@SOME_PYTHONS
def test_the_limit_thaws_though_main_is_stopped(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    agent.call("freeze", mounts=[str(mount)], limit=2.0)
    agent.kill(signal.SIGSTOP)
    try:
        assert Writer(mount).ends()
    finally:
        agent.kill(signal.SIGCONT)
    assert agent.call("thaw").header["lost"] is True


@SOME_PYTHONS
def test_a_killed_watchdog_thaws_at_once(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    agent.call("freeze", mounts=[str(mount)], limit=LONG)
    (watchdog,) = children(agent.process.pid)
    writer = Writer(mount)
    assert writer.blocked()
    os.kill(watchdog, signal.SIGKILL)
    assert writer.ends()
    wait_until(lambda: agent.call("frozen").header["frozen"] is False)
    assert agent.call("thaw").header["lost"] is True


@SOME_PYTHONS
def test_a_signal_to_the_whole_group_does_not_take_the_watchdog_along(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    agent.call("freeze", mounts=[str(mount)], limit=LONG)
    writer = Writer(mount)
    assert writer.blocked()
    # The agent leads a group of its own here.
    os.killpg(agent.process.pid, signal.SIGKILL)
    assert writer.ends()


@SOME_PYTHONS
def test_someone_elses_thaw_is_noticed(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    agent.call("freeze", mounts=[str(mount)], limit=LONG)
    loopdev.run("fsfreeze", "--unfreeze", str(mount))
    assert agent.call("thaw").header["lost"] is True


@SOME_PYTHONS
def test_what_refuses_is_reported_and_the_others_are_frozen(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    ram = stack.enter_context(loopdev.mounted(Path("ramfs"), tmp_path / "ram", kind="ramfs"))
    held = a_mount(stack, tmp_path, name="held")
    loopdev.run("fsfreeze", "--freeze", str(held))
    wanted = [str(ram), str(held), str(mount)]
    result = agent.call("freeze", mounts=wanted, limit=LONG).header
    assert result["frozen"] == [str(mount)]
    refused = {entry["mount"]: entry for entry in result["refused"]}
    assert set(refused) == {str(ram), str(held)}
    assert all(entry["errno"] and entry["reason"] for entry in refused.values())
    writer = Writer(mount)
    assert writer.blocked()
    assert agent.call("thaw").header["lost"] is False
    assert writer.ends()
    # Another's freeze is not ours to thaw.
    other = Writer(held)
    assert other.blocked()
    loopdev.run("fsfreeze", "--unfreeze", str(held))
    assert other.ends()


@SOME_PYTHONS
def test_nothing_frozen_leaves_nothing_behind(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    require("root")
    ram = stack.enter_context(loopdev.mounted(Path("ramfs"), tmp_path / "ram", kind="ramfs"))
    result = agent.call("freeze", mounts=[str(ram)], limit=LONG).header
    assert result["frozen"] == []
    assert len(result["refused"]) == 1
    assert children(agent.process.pid) == []
    assert agent.call("thaw").header == {"held": 0.0, "lost": False}


@SOME_PYTHONS
def test_one_file_system_under_two_names_is_frozen_once_and_told_twice(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    second = stack.enter_context(loopdev.mounted(mount, tmp_path / "again", "bind"))
    result = agent.call("freeze", mounts=[str(mount), str(second)], limit=LONG).header
    assert result["frozen"] == [str(mount), str(second)]
    assert result["refused"] == []
    assert agent.call("thaw").header["lost"] is False


@SOME_PYTHONS
def test_a_second_freeze_and_wrong_mounts_are_refused(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    agent.call("freeze", mounts=[str(mount)], limit=LONG)
    with pytest.raises(RawError) as caught:
        agent.call("freeze", mounts=[str(mount)], limit=LONG)
    assert caught.value.code == "bad-request"
    assert agent.call("frozen").header["frozen"] is True
    agent.call("thaw")
    (mount / "folder").mkdir()
    for mounts, limit in (
        ([str(mount / "folder")], LONG),
        ([str(tmp_path / "none")], LONG),
        ([], LONG),
        ([str(mount)], 0),
        ([str(mount)], 1e9),
    ):
        with pytest.raises(RawError) as caught:
            agent.call("freeze", mounts=mounts, limit=limit)
        assert caught.value.code == "bad-request"
    assert not Writer(mount).blocked(60)
    # After all these refusals it still works.
    assert agent.call("freeze", mounts=[str(mount)], limit=LONG).header["frozen"]


@SOME_PYTHONS
def test_the_frozen_disk_can_be_read_and_digested_by_who_froze_it(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    (mount / "file").write_bytes(b"now" * 100_000)
    device = loopdev.run("findmnt", "-no", "SOURCE", str(mount)).strip()
    handle = agent.open(device)["handle"]
    agent.call("freeze", mounts=[str(mount)], limit=LONG)
    blob = (0).to_bytes(8, "big") + (32 * MiB).to_bytes(8, "big")
    digests = [
        [
            frame.blob
            for frame in agent.frames(
                agent.ask("digest", blob, handle=handle, chunk=MiB, algorithm="sha256")
            )
        ]
        for _ in range(2)
    ]
    assert b"".join(digests[0]) == b"".join(digests[1])
    found = b"".join(
        agent.call("read", handle=handle, offset=at, length=4 * MiB).blob
        for at in range(0, 32 * MiB, 4 * MiB)
    )
    assert b"now" * 1000 in found
    assert found == loopdev.read_direct(Path(device))
    assert agent.call("thaw").header["lost"] is False


@EVERY_PYTHON
def test_write_out_puts_on_the_disk_what_was_written(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = a_mount(stack, tmp_path)
    device = loopdev.run("findmnt", "-no", "SOURCE", str(mount)).strip()
    data = b"written out " * 10_000
    (mount / "file").write_bytes(data)
    assert agent.call("write_out", mounts=[str(mount)]).header["seconds"] >= 0
    assert data[:4096] in loopdev.read_direct(Path(device))
    with pytest.raises(RawError) as caught:
        agent.call("write_out", mounts=[str(tmp_path / "none")])
    assert caught.value.code == "not-found"
    assert caught.value.header["device"] == str(tmp_path / "none")
    wait_until(lambda: not children(agent.process.pid))


@pytest.mark.slow
@SOME_PYTHONS
@pytest.mark.parametrize("end", ["thaw", "kill", "terminate"])
def test_the_file_system_that_its_own_python_lies_on_can_be_frozen(
    agent_zip: Path, version: str, tmp_path: Path, stack: contextlib.ExitStack, end: str
) -> None:
    require("root", "loop", "mkfs.ext4")
    device = stack.enter_context(loopdev.loop_device(tmp_path / "system.img", 256 * MiB))
    loopdev.make_file_system(device, "ext4")
    system = stack.enter_context(loopdev.mounted(device, tmp_path / "system", "strictatime"))
    own_python = copied_python(python(version), system)
    own_zip = Path(shutil.copy(agent_zip, system))
    stack.callback(loopdev.run, "fsfreeze", "--unfreeze", str(system), check=False)
    with raw_agent(own_python, own_zip) as agent:
        handle = agent.open(device)["handle"]
        agent.call("freeze", mounts=[str(system)], limit=LONG)
        forget(system)
        blob = (0).to_bytes(8, "big") + (256 * MiB).to_bytes(8, "big")
        args = {"handle": handle, "chunk": MiB, "algorithm": "sha256"}
        parts = list(agent.frames(agent.ask("digest", blob, **args)))
        assert sum(part.header.get("count", 0) for part in parts) == 256
        agent.call("facts")
        writer = Writer(system)
        assert writer.blocked()
        if end == "thaw":
            assert agent.call("thaw").header["lost"] is False
        else:
            agent.kill(signal.SIGKILL if end == "kill" else signal.SIGTERM)
        assert writer.ends()


def forget(folder: Path) -> None:
    """Have the page cache drop the files of a folder, so that they are read from their disk again."""
    for file in folder.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def copied_python(original: Path, to: Path) -> Path:
    """An interpreter with its library, of which nothing is compiled yet; return the copy."""
    real = original.resolve()
    name = real.name if "." in real.name else "python" + ".".join(real.parts[-3].split(".")[:2])
    (to / "bin").mkdir()
    shutil.copy2(real, to / "bin" / name)
    ignored = shutil.ignore_patterns(
        "test", "tests", "site-packages", "__pycache__", "config*", "*.pyc"
    )
    shutil.copytree(real.parent.parent / "lib" / name, to / "lib" / name, ignore=ignored)
    return to / "bin" / name


@SOME_PYTHONS
@pytest.mark.parametrize("end", ["main lives", "main is killed"])
def test_the_limit_holds_for_what_is_frozen_while_another_freeze_still_hangs(
    agent: RawAgent, tmp_path: Path, stack: contextlib.ExitStack, end: str
) -> None:
    require("mkfs.ext4", *hanging.CAPABILITIES)
    fast = a_mount(stack, tmp_path)
    disk, mount = stack.enter_context(hanging.hanging_mount(tmp_path / "hanging"))
    (mount / "file").write_bytes(b"x" * MiB)
    disk.tell(b"p")
    try:
        number = agent.ask("freeze", mounts=[str(fast), str(mount)], limit=2.0)
        wait_until(lambda: agent.call("frozen").header["frozen"])
        if end == "main is killed":
            agent.kill()
        assert Writer(fast).ends()
        writer = Writer(mount)
        assert writer.blocked()
    finally:
        disk.tell(b"r")
    if end == "main lives":
        with pytest.raises(RawError, match="nothing is frozen: the limit"):
            list(agent.frames(number))
        assert agent.call("thaw").header == {"held": 0.0, "lost": False}
    # What hung is thawed as well, once its freeze is through.
    assert writer.ends()


@pytest.mark.slow
@SOME_PYTHONS
def test_kills_at_random_moments_of_freezes_never_leave_anything_frozen(
    agent_zip: Path, version: str, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mounts = [a_mount(stack, tmp_path, name=name) for name in ("one", "two")]
    for moment in range(20):
        with raw_agent(python(version), agent_zip) as agent:
            agent.ask("freeze", mounts=[str(mount) for mount in mounts], limit=LONG)
            time.sleep(moment * 0.02)
            agent.kill()
            assert all(Writer(mount).ends() for mount in mounts), moment
