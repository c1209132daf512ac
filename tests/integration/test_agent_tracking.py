"""Change tracking through the agent: its verbs, and what is left when it is killed."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from capabilities import python, require
from cvm_migrate.agent.tracking import system
from rig import loopdev
from rig.pythons import EXTREMES
from rig.rawagent import RawAgent, RawError, build_zip, raw_agent

MIB = 1 << 20
SOME_PYTHONS = pytest.mark.parametrize("version", EXTREMES)
RUNGS = pytest.mark.parametrize("rung", ["ebpf", "tracefs"])


@pytest.fixture(scope="module")
def agent_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("loop")
    require("pyenv")
    return build_zip(tmp_path_factory.mktemp("agent"))


def collect(agent: RawAgent, handle: int) -> tuple[list[int], dict[str, list[tuple[int, int]]]]:
    """Return how many ranges each PART had, and all ranges; the tracker must be certain."""
    *parts, result = agent.frames(agent.ask("track_collect", handle=handle))
    found: dict[str, list[tuple[int, int]]] = {"written": [], "discarded": []}
    for part in parts:
        found[part.header["what"]] += struct.iter_unpack(">QQ", part.blob)
    assert result.header["certain"], result.header
    assert result.header["reason"] is None
    return [len(part.blob) // 16 for part in parts], found


def write_every(path: Path, step: int, count: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as buffer:
            for n in range(count):
                os.pwrite(fd, buffer, n * step)
    finally:
        os.close(fd)


@SOME_PYTHONS
@RUNGS
def test_many_ranges_come_in_bounded_parts(
    agent_zip: Path, tmp_path: Path, version: str, rung: str
) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 512 * MIB, direct=False) as path,
        raw_agent(python(version), agent_zip) as agent,
    ):
        handle = agent.open(path)["handle"]
        started = agent.call("track_start", handles=[handle], rungs=[rung], block=4096).header
        assert started == {"rung": rung, "refused": {}, "block": 4096}
        write_every(path, 8192, 33_000)
        peeked = agent.call("track_peek", handle=handle).header
        sizes, found = collect(agent, handle)

        assert peeked["dirty_bytes"] == 33_000 * 4096
        assert (peeked["certain"], peeked["reason"]) == (True, None)
        assert found["written"] == [(n * 8192, 4096) for n in range(33_000)]
        assert sizes == [32_768, 232]
        assert collect(agent, handle) == ([], {"written": [], "discarded": []})
        agent.call("track_stop")
        agent.call("track_stop")
        with pytest.raises(RawError, match="not tracked"):
            agent.call("track_collect", handle=handle)
        # It can be started again.
        assert agent.call("track_start", handles=[handle], rungs=[rung]).header["rung"] == rung


@SOME_PYTHONS
def test_bad_requests_are_told(agent_zip: Path, tmp_path: Path, version: str) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    with (
        loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path,
        raw_agent(python(version), agent_zip) as agent,
    ):
        handle = agent.open(path)["handle"]
        file = agent.open(tmp_path / "file")["handle"]
        wrongs: list[dict[str, Any]] = [
            {"handles": [99], "rungs": ["ebpf"]},
            {"handles": handle, "rungs": ["ebpf"]},
            {"handles": [handle], "rungs": ["magic"]},
            {"handles": [], "rungs": ["ebpf"]},
            {"handles": [file], "rungs": ["ebpf"]},
            {"handles": [handle], "rungs": ["ebpf"], "block": 5000},
            {"handles": [handle], "rungs": ["ebpf"], "block": "large"},
        ]
        for wrong in wrongs:
            with pytest.raises(RawError) as caught:
                agent.call("track_start", **wrong)
            assert caught.value.code == "bad-request"
        for verb in ("track_collect", "track_peek"):
            with pytest.raises(RawError) as caught:
                agent.call(verb, handle=handle)
            assert caught.value.code == "bad-request"
        agent.call("track_start", handles=[handle], rungs=["ebpf"])
        with pytest.raises(RawError) as caught:
            agent.call("track_start", handles=[handle], rungs=["ebpf"])
        assert caught.value.code == "bad-request"


def instances_of(pid: int) -> list[str]:
    with system.Tracefs() as root:
        names = [each.name for each in Path(root.path, "instances").iterdir()]
    return [name for name in names if name.startswith(f"cvm_migrate_{pid}_")]


@SOME_PYTHONS
@pytest.mark.parametrize("how", ["end", "kill"])
def test_an_ended_agent_leaves_no_tracer_and_no_instance(
    agent_zip: Path, tmp_path: Path, version: str, how: str
) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path,
        raw_agent(python(version), agent_zip) as agent,
    ):
        handle = agent.open(path)["handle"]
        agent.call("track_start", handles=[handle], rungs=["tracefs"])
        own = agent.process.pid
        children = Path(f"/proc/{own}/task").glob("*/children")
        tracers = [int(pid) for each in children for pid in each.read_text().split()]
        assert [len(instances_of(pid)) for pid in tracers] == [1]
        if how == "end":
            assert agent.end() == 0
        else:
            agent.kill(signal.SIGKILL)
            agent.wait()
        end = time.monotonic() + 30
        while any(system.start_time(pid) is not None for pid in tracers):
            assert time.monotonic() < end
            time.sleep(0.02)

        assert [instances_of(pid) for pid in tracers] == [[]]
