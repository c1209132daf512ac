"""Disks that take longer to write than an agent may be silent, as a server's do with minutes of dirty cache."""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from capabilities import python, require
from cvm_migrate.errors import AgentLostError, CancelledError
from cvm_migrate.transport import start_local_agent
from rig import hanging, processes, pumps
from rig.pythons import EXTREMES

MiB = 1 << 20
_SILENCE = 8.0
# Twice what the agents may be silent here, and more than the 15 s after which a pump's peer counts as dead.
_STALL = 18.0


def _hang(disks: list[hanging.HangingDisk], waiting: dict[str, Future[Any]]) -> None:
    """See that everything goes on waiting until the time is over, then let the disks go on."""
    end = time.monotonic() + _STALL
    try:
        while time.monotonic() < end:
            ended = {name: repr(one.exception()) for name, one in waiting.items() if one.done()}
            assert not ended, "not waited for the disk"
            time.sleep(0.25)
    finally:
        for disk in disks:
            disk.tell(b"r")


@pytest.mark.slow
def test_sessions_outlive_a_disk_that_hangs_for_longer_than_an_agent_may_be_silent(
    tmp_path: Path,
) -> None:
    """Writing out, flushing, freezing and sending wait for it and succeed; heartbeats do not, in any Python."""
    require("mkfs.ext4", *hanging.CAPABILITIES)
    pumps.fill(tmp_path / "source.img", 4 * MiB, kinds="n")
    (tmp_path / "target.img").write_bytes(bytes(4 * MiB))
    target = hanging.HangingDisk(tmp_path / "target.img")
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(
            pumps.pair(tmp_path / "source.img", stack.enter_context(target))
        )
        pair.connect()
        dirty, mount = stack.enter_context(hanging.hanging_mount(tmp_path / "dirty"))
        frozen, to_freeze = stack.enter_context(hanging.hanging_mount(tmp_path / "frozen"))
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=16))
        agents = {
            version: stack.enter_context(
                start_local_agent(python=python(version), silence=_SILENCE)
            )
            for version in EXTREMES
        }
        images = {
            version: agent.open_disk(str(mount / version), mode="write", create_size=64 << 10)
            for version, agent in agents.items()
        }
        for version, agent in agents.items():
            agent.write(images[version], 0, os.urandom(64 << 10))
        for place in (mount, to_freeze):
            (place / "cached").write_bytes(os.urandom(4 * MiB))
        disks = [dirty, frozen, target]
        for disk in disks:
            disk.tell(b"p")
        oldest = agents[EXTREMES[0]]
        waiting: dict[str, Future[Any]] = {
            "freeze": pool.submit(oldest.freeze, [str(to_freeze)], limit=600.0),
            "stream": pool.submit(pair.stream),
        }
        for version, agent in agents.items():
            waiting[f"{version} write_out"] = pool.submit(agent.write_out, [str(mount)])
            waiting[f"{version} flush"] = pool.submit(agent.flush, images[version])
        _hang(disks, waiting)
        results = {name: one.result(60) for name, one in waiting.items()}
        thawed = oldest.thaw()

        for version, agent in agents.items():
            assert agent.facts().python.startswith(f"{version}.")
    assert results["freeze"].frozen == (str(to_freeze),)
    assert not thawed.lost
    assert results["stream"].acked == 4 * MiB
    assert results["stream"].reconnects == 0
    for version in EXTREMES:
        assert results[f"{version} write_out"] > 0.9 * _STALL
        assert results[f"{version} flush"] > 0.9 * _STALL


@pytest.mark.parametrize("version", EXTREMES)
@pytest.mark.parametrize("end", ["of the agent", "of the process that writes out"])
def test_who_ends_while_caches_are_written_out_is_not_waited_for(
    end: str, version: str, tmp_path: Path
) -> None:
    """The agent ends though the disk still hangs; a lost process can be tried again, and is no defect."""
    require("mkfs.ext4", *hanging.CAPABILITIES)
    with (
        hanging.hanging_mount(tmp_path / "dirty") as (disk, mount),
        ThreadPoolExecutor() as pool,
        start_local_agent(python=python(version)) as agent,
    ):
        (mount / "cached").write_bytes(os.urandom(4 * MiB))
        disk.tell(b"p")
        try:
            waiting = pool.submit(agent.write_out, [str(mount)])
            processes.wait_until(
                lambda: bool(processes.children(agent.pid, "--write-out")), "it is writing out"
            )
            (writer,) = processes.children(agent.pid, "--write-out")
            if end == "of the agent":
                agent.close()
                assert agent.exit_status == 0
            else:
                processes.kill(writer)
        finally:
            disk.tell(b"r")
        with pytest.raises((AgentLostError, CancelledError)) as caught:
            waiting.result(60)
        processes.wait_until(lambda: not processes.runs(writer), "the process that wrote out ends")
        if end != "of the agent":
            assert isinstance(caught.value, AgentLostError)
            assert agent.write_out([str(mount)]) >= 0
