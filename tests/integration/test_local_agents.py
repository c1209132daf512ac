"""The agent as a child process, under every Python that this machine has."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from capabilities import python, require
from cvm_migrate.errors import AgentLostError, NotFoundError, PermissionDeniedError
from cvm_migrate.model import ExtentMap
from cvm_migrate.transport import AgentSession, start_local_agent
from rig import loopdev
from rig.processes import children, runs, wait_until
from rig.pythons import VERSIONS
from rig.sshd import programs


@pytest.mark.parametrize("version", VERSIONS)
def test_the_agent_works_under_every_python(version: str, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    data = os.urandom(1 << 20)
    image.write_bytes(data)
    with start_local_agent(python=python(version)) as agent:
        assert agent.python.startswith(f"{version}.")
        facts = agent.facts()
        assert facts.system == "Linux"
        assert facts.euid == os.geteuid()
        disk = agent.open_disk(str(image))
        assert disk.size == len(data)
        assert agent.read(disk, 4096, 8192) == data[4096 : 4096 + 8192]
        ((offset, digests),) = agent.digest(
            disk, ExtentMap.whole(1 << 20), chunk=1 << 20, algorithm="sha256"
        )
        assert (offset, len(digests)) == (0, 1)
        agent.close_disk(disk)
    assert agent.exit_status == 0


def test_the_library_of_the_callers_own_python_serves_the_local_agent() -> None:
    with start_local_agent() as agent:
        assert agent.digests[0] == "xxh3-128"


def test_an_agent_inherits_the_environment_but_for_the_cloud_s_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", "a key")
    monkeypatch.setenv("TENCENTCLOUD_TOKEN", "a token")
    monkeypatch.setenv("LANG_OF_THE_CALLER", "C")
    with start_local_agent() as agent:
        variables = Path(f"/proc/{agent.pid}/environ").read_bytes().split(b"\0")

    assert b"LANG_OF_THE_CALLER=C" in variables
    assert [one for one in variables if one.startswith(b"TENCENTCLOUD_")] == []


def test_the_agents_program_is_in_no_file() -> None:
    with start_local_agent() as agent:
        command = Path(f"/proc/{agent.pid}/cmdline").read_bytes().split(b"\0")
        (program,) = [word.decode() for word in command if b"/fd/" in word]
        assert program.startswith(f"/proc/{agent.pid}/fd/"), "its own children must find it too"
        assert "memfd:" in str(Path(program).readlink())


def test_the_agents_program_can_be_started_again_by_the_agent_itself() -> None:
    with start_local_agent() as agent:
        program = next(
            word.decode()
            for word in Path(f"/proc/{agent.pid}/cmdline").read_bytes().split(b"\0")
            if b"/fd/" in word
        )
        done = subprocess.run(
            [sys.executable, program, "--silence"], check=False, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "usage" in done.stderr


def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFoundError, match=r"no interpreter python9\.9"):
        start_local_agent(python="python9.9")


def test_an_interpreter_that_cannot_run_the_agent_is_reported() -> None:
    with pytest.raises(AgentLostError, match="the local agent"):
        start_local_agent(python="/bin/false")


def test_a_tracker_that_is_not_certain_says_so_when_it_is_only_asked(tmp_path: Path) -> None:
    """peek_changes() tells the caller, before a collection does."""
    require("root", "loop", "tracefs")
    with (
        loopdev.loop_device(tmp_path / "disk", 16 << 20) as device,
        start_local_agent() as agent,
    ):
        disk = agent.open_disk(str(device))
        assert agent.start_tracking([disk], rungs=["tracefs"]).rung == "tracefs"
        fd = os.open(device, os.O_WRONLY | os.O_DSYNC)
        try:
            os.pwrite(fd, b"x" * 4096, 1 << 20)
        finally:
            os.close(fd)
        before = agent.peek_changes(disk)
        (tracer,) = children(agent.pid, "tracer.main")
        os.kill(tracer, signal.SIGKILL)
        after = agent.peek_changes(disk)

        assert before.total >= 4096
        assert (before.certain, before.reason) == (True, None)
        assert not after.certain
        assert "tracer" in str(after.reason)
        assert not agent.collect_changes(disk).certain


_CALLER = """\
import json, sys, time
from cvm_migrate.transport import start_local_agent
agent = start_local_agent(python=sys.argv[1])
print(json.dumps([agent.pid, agent.remote_pid]), flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.13"])
def test_a_killed_caller_leaves_no_agent_behind(version: str) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", _CALLER, str(python(version))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert caller.stdout is not None
        with caller.stdout as stdout:
            pids = json.loads(stdout.readline())
            assert all(runs(pid) for pid in pids)
            caller.kill()
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: not any(runs(pid) for pid in pids), "the agent ends")


def test_a_killed_agent_is_reported_and_reaped() -> None:
    with start_local_agent() as agent:
        os.kill(agent.pid, signal.SIGKILL)
        with pytest.raises(AgentLostError, match="signal 9"):
            agent.facts()
        agent.close()
        assert not runs(agent.pid)
        assert agent.pid not in children(os.getpid())


def test_a_stopped_agent_is_lost_after_its_silence_and_killed() -> None:
    agent = start_local_agent(silence=4.0)
    os.kill(agent.pid, signal.SIGSTOP)
    with pytest.raises(AgentLostError, match="silent for 4 s"):
        agent.facts()
    agent.close()
    assert not runs(agent.pid)


def test_many_agents_run_side_by_side() -> None:
    with contextlib.ExitStack() as stack:
        agents: list[AgentSession] = [stack.enter_context(start_local_agent()) for _ in range(4)]
        assert len({agent.remote_pid for agent in agents}) == 4
        assert all(agent.facts().euid == os.geteuid() for agent in agents)
    assert all(agent.exit_status == 0 for agent in agents)


SUDO = """\
#!/bin/sh
[ "$1" = -n ] || exit 9
shift
exec "$@"
"""
REFUSING_SUDO = """\
#!/bin/sh
echo "sudo: a password is required" >&2
exit 1
"""


def test_a_local_agent_can_be_started_by_sudo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = programs(tmp_path / "bin", {"sudo": SUDO})
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with start_local_agent(sudo=True) as agent:
        assert agent.facts().euid == os.geteuid()
    assert agent.exit_status == 0


def test_a_sudo_that_wants_a_password_is_a_permission_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = programs(tmp_path / "bin", {"sudo": REFUSING_SUDO})
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(PermissionDeniedError, match=r"a password is required.*NOPASSWD"):
        start_local_agent(sudo=True)


_NOTER = """\
import subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from rig import loopdev
child = subprocess.Popen(["sleep", "1000"])
loopdev.note_process(child.pid)
print(child.pid, flush=True)
time.sleep(1000)
"""


def test_a_process_that_a_killed_test_has_left_is_swept_away() -> None:
    tests = Path(__file__).parents[1]
    owner = subprocess.Popen(
        [sys.executable, "-c", _NOTER, str(tests)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        with owner.stdout as stdout:
            left = int(stdout.readline())
        loopdev.sweep()
        assert runs(left), "its owner lives"
    finally:
        owner.kill()
        owner.wait()
    loopdev.sweep()
    wait_until(lambda: not runs(left), "it is killed")
