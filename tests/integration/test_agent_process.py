"""The agent as a process: it greets, stays awake whatever hangs, and ends in every way that it should."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from capabilities import python, require
from cvm_migrate.agent import wire
from rig.pythons import EXTREMES, VERSIONS
from rig.rawagent import RawAgent, RawError, build_zip, raw_agent

MiB = 1 << 20
EVERY_PYTHON = pytest.mark.parametrize("version", VERSIONS)
SOME_PYTHONS = pytest.mark.parametrize("version", EXTREMES)


@pytest.fixture(scope="module")
def agent_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("pyenv")
    return build_zip(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def agent(agent_zip: Path, version: str) -> Generator[RawAgent]:
    with raw_agent(python(version), agent_zip) as one:
        yield one


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def huge(agent: RawAgent, folder: Path) -> int:
    """A request that takes hours: its number."""
    size = 8 << 40
    handle = agent.open(folder / "huge", "write", create_size=size)["handle"]
    blob = struct.pack(">QQ", 0, size)
    return agent.ask("digest", blob, handle=handle, chunk=64 << 10, algorithm="sha256")


@EVERY_PYTHON
def test_it_greets_with_what_it_can_do_and_ends_when_its_input_does(
    agent: RawAgent, version: str
) -> None:
    assert agent.hello["protocol"] == wire.PROTOCOL_VERSION
    assert agent.hello["python"].startswith(version + ".")
    assert agent.hello["pid"] == agent.process.pid
    assert "sha256" in agent.hello["digests"]
    assert agent.hello["codecs"][-1] == "raw"
    assert {"facts", "open", "digest", "freeze", "thaw", "write_out", "shutdown"} <= set(
        agent.hello["verbs"]
    )
    assert agent.end() == 0
    assert agent.errors == b""


@EVERY_PYTHON
def test_facts_have_every_field_that_the_page_promises(agent: RawAgent) -> None:
    facts = agent.call("facts").header
    promised: dict[str, type | tuple[type, ...]] = {
        "system": str,
        "kernel": str,
        "machine": str,
        "python": str,
        "executable": str,
        "hostname": str,
        "boot_id": str,
        "euid": int,
        "time": float,
        "firmware": str,
        "memory": dict,
        "os_release": (dict, type(None)),
        "legacy_release": (str, type(None)),
        "lockdown": (str, type(None)),
        "dmi": dict,
        "disks": list,
        "mounts": list,
        "swaps": list,
        "addresses": list,
        "tracking": dict,
        "can_freeze": bool,
        "tools": dict,
        "services": list,
    }
    assert set(facts) == set(promised)
    for name, kind in promised.items():
        assert isinstance(facts[name], kind), name
    kernel = os.uname()
    assert (facts["system"], facts["kernel"], facts["machine"]) == (
        kernel.sysname,
        kernel.release,
        kernel.machine,
    )
    assert facts["memory"]["total"] >= facts["memory"]["available"] > 0
    assert abs(facts["time"] - time.time()) < 300
    assert [m for m in facts["mounts"] if m["mount_point"] == "/"]
    assert facts["can_freeze"] is (os.geteuid() == 0)


@EVERY_PYTHON
def test_bytes_that_are_no_frame_end_it_with_exit_code_3(agent: RawAgent) -> None:
    agent.write(b"GET / HTTP/1.1\r\n\r\n")
    assert agent.wait() == 3
    assert b"not a frame of this protocol" in agent.errors


@SOME_PYTHONS
@pytest.mark.parametrize(
    "frame",
    [
        wire.encode(wire.RESULT, 1, {}),
        wire.encode(wire.HELLO, 0, {}),
        struct.pack(">4sBBHIII", b"CVMA", 1, 2, 0, 1, 2 << 20, 0),
    ],
    ids=["an answer", "a greeting", "a header of 2 MiB"],
)
def test_frames_that_no_caller_sends_end_it_with_exit_code_3(
    agent: RawAgent, frame: bytes
) -> None:
    agent.write(frame)
    assert agent.wait() == 3


@SOME_PYTHONS
def test_frames_that_were_changed_or_cut_off_are_refused_or_end_it_and_take_no_memory(
    agent_zip: Path, version: str
) -> None:
    good = b"".join(
        wire.encode(wire.REQUEST, number, {"verb": "read", "args": {"handle": number}}, b"x" * 50)
        + wire.encode(wire.HEARTBEAT, 0, {"time": number})
        for number in range(1, 20)
    )
    for seed in range(6):
        chance = random.Random(seed)
        data = bytearray(good[: chance.randrange(len(good))])
        for _ in range(seed // 2):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with start(version, agent_zip, stdout=subprocess.DEVNULL) as process:
            assert process.stdin is not None
            # It may end before it has read everything.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(data)
                process.stdin.close()
            most = _most_memory(process)
        # Where nothing was changed, the end of file is its end.
        assert process.returncode in ({0} if seed < 2 else {0, 3}), seed
        assert 0 < most < 100 * MiB, seed


def _most_memory(process: subprocess.Popen[bytes]) -> int:
    """Wait for its end; return the most that it was seen to hold. (What wait4 says begins with its parent's.)"""
    most = 0
    while process.poll() is None:
        # Of one that has just ended there is nothing to read, or no such line.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, StopIteration):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            most = max(
                most, 1024 * int(next(x.split()[1] for x in lines if x.startswith("VmHWM")))
            )
        time.sleep(0.002)
    return most


@SOME_PYTHONS
def test_a_second_request_of_the_same_number_ends_it_with_exit_code_3(
    agent: RawAgent, tmp_path: Path
) -> None:
    number = huge(agent, tmp_path)
    agent.write(wire.encode(wire.REQUEST, number, {"verb": "facts", "args": {}}))
    assert agent.wait() == 3


@SOME_PYTHONS
@pytest.mark.parametrize(
    "header",
    [{}, {"verb": "format", "args": {}}, {"verb": "facts"}, {"verb": [], "args": {}}],
)
def test_a_request_without_a_known_verb_is_refused_and_nothing_else_happens(
    agent: RawAgent, header: dict[str, object]
) -> None:
    agent.write(wire.encode(wire.REQUEST, 99, header))
    frame = agent.unanswered.get(timeout=60)
    assert frame is not None
    assert (frame.kind, frame.id, frame.header["code"]) == (wire.ERROR, 99, "bad-request")
    assert agent.call("facts").header


@EVERY_PYTHON
def test_heartbeats_are_answered_while_a_request_runs(agent: RawAgent, tmp_path: Path) -> None:
    huge(agent, tmp_path)
    for beat in range(5):
        agent.write(wire.encode(wire.HEARTBEAT, 0, {"time": beat}))
        frame = agent.unanswered.get(timeout=60)
        assert frame == wire.Frame(wire.HEARTBEAT, 0, {"time": beat})


@SOME_PYTHONS
def test_cancelled_requests_answer_so_and_others_go_on(agent: RawAgent, tmp_path: Path) -> None:
    first, second = huge(agent, tmp_path), huge(agent, tmp_path)
    agent.cancel(first)
    agent.cancel(12345)
    with pytest.raises(RawError) as caught:
        list(agent.frames(first))
    assert caught.value.code == "cancelled"
    assert next(agent.frames(second)).kind == wire.PART


@SOME_PYTHONS
def test_more_requests_than_it_bears_are_refused_and_not_queued(
    agent: RawAgent, tmp_path: Path
) -> None:
    size = 8 << 40
    handle = agent.open(tmp_path / "huge", "write", create_size=size)["handle"]
    blob = struct.pack(">QQ", 0, size)
    numbers = [
        agent.ask("digest", blob, handle=handle, chunk=64 << 10, algorithm="sha256")
        for _ in range(33)
    ]
    with pytest.raises(RawError, match="32 requests run already"):
        next(agent.frames(numbers[-1]))
    for number in numbers[:-1]:
        agent.cancel(number)


@EVERY_PYTHON
def test_shutdown_answers_and_ends_it(agent: RawAgent, tmp_path: Path) -> None:
    huge(agent, tmp_path)
    assert agent.call("shutdown").header == {}
    assert agent.wait() == 0


@SOME_PYTHONS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(agent: RawAgent, number: signal.Signals) -> None:
    agent.kill(number)
    assert agent.wait() == 0


@SOME_PYTHONS
def test_silence_ends_it_and_any_frame_is_no_silence(agent_zip: Path, version: str) -> None:
    with raw_agent(python(version), agent_zip, "--silence", "4") as agent:
        begin = time.monotonic()
        while time.monotonic() < begin + 5:
            agent.write(wire.encode(wire.HEARTBEAT, 0, {}))
            time.sleep(0.2)
        assert agent.process.poll() is None
        assert agent.wait() == 0
        assert b"nothing heard" in agent.errors


def start(version: str, agent_zip: Path, stdout: int) -> subprocess.Popen[bytes]:
    """An agent that no client reads."""
    command = [str(python(version)), "-E", "-s", "-B", str(agent_zip)]
    return subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.DEVNULL
    )


@EVERY_PYTHON
def test_a_caller_who_reads_nothing_does_not_keep_it_from_ending(
    agent_zip: Path, version: str, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(4 * MiB))
    with start(version, agent_zip, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        args: dict[str, object] = {"path": str(path), "mode": "read"}
        process.stdin.write(wire.encode(wire.REQUEST, 1, {"verb": "open", "args": args}))
        for number in range(2, 40):
            args = {"handle": 1, "offset": 0, "length": 4 * MiB}
            process.stdin.write(wire.encode(wire.REQUEST, number, {"verb": "read", "args": args}))
            process.stdin.write(wire.encode(wire.HEARTBEAT, 0, {}))
        process.stdin.close()
        assert process.wait(60) == 0


@EVERY_PYTHON
def test_a_closed_output_ends_it(agent_zip: Path, version: str) -> None:
    reading, writing = os.pipe()
    with start(version, agent_zip, stdout=writing) as process:
        os.close(writing)
        assert os.read(reading, 4) == b"CVMA"
        os.close(reading)
        assert process.stdin is not None
        process.stdin.write(wire.encode(wire.REQUEST, 1, {"verb": "facts", "args": {}}))
        assert process.wait(60) == 0


@SOME_PYTHONS
def test_it_ends_when_its_caller_is_killed(agent_zip: Path, version: str) -> None:
    program = (
        "import subprocess, sys\n"
        "agent = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "assert agent.stdout.read(4) == b'CVMA'\n"
        "print(agent.pid, flush=True)\n"
        "agent.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(python(version)), "-B", str(agent_zip)],
        stdout=subprocess.PIPE,
    ) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        state = Path(f"/proc/{pid}/stat")
        assert state.exists()
        caller.kill()
        # Whoever inherits it may be slow to take note of its end.
        wait_until(lambda: not state.exists() or " Z " in state.read_text())


@SOME_PYTHONS
def test_what_is_printed_goes_to_standard_error(agent_zip: Path, version: str) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True\n"
        "from cvm_migrate.agent import main\n"
        "main.own_lines()\n"
        "print('a word'); sys.stdout.flush()\n"
    )
    done = subprocess.run(
        [str(python(version)), "-c", program, str(agent_zip)],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert (done.stdout, done.stderr) == (b"", b"a word\n")


@SOME_PYTHONS
def test_a_wrong_argument_is_answered_in_words(agent_zip: Path, version: str) -> None:
    done = subprocess.run(
        [str(python(version)), "-B", str(agent_zip), "--nonsense"],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2
    assert b"usage" in done.stderr
    assert done.stdout == b""
