"""An agent with more than 1023 open files works as any other: ``select`` would not."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from capabilities import python, require
from rig import loopdev
from rig.pythons import EXTREMES
from rig.rawagent import build_zip, raw_agent

MiB = 1 << 20
_DESCRIPTORS = 1100


@pytest.mark.parametrize("version", EXTREMES)
def test_more_than_1023_descriptors_do_not_hinder_writing_out_freezing_and_tracking(
    version: str, tmp_path: Path
) -> None:
    require("root", "pyenv", "loop", "mkfs.ext4", "tracefs")
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    with (
        loopdev.loop_device(tmp_path / "disk.img", 32 * MiB) as disk,
        raw_agent(python(version), build_zip(tmp_path)) as agent,
    ):
        loopdev.make_file_system(disk, "ext4")
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        for _ in range(_DESCRIPTORS):
            agent.call("open", path=str(image), mode="read")
        assert len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir())) > 1023
        with loopdev.mounted(disk, tmp_path / "mount") as mount:
            (mount / "file").write_bytes(os.urandom(MiB))
            handle = agent.call("open", path=str(disk), mode="read").header["handle"]
            started = agent.call(
                "track_start", handles=[handle], rungs=["tracefs"], block=None
            ).header
            assert started["rung"] == "tracefs", started
            agent.call("write_out", mounts=[str(mount)])
            frozen = agent.call("freeze", mounts=[str(mount)], limit=20).header
            thawed = agent.call("thaw").header
            collected = agent.call("track_collect", handle=handle).header

    assert frozen["frozen"] == [str(mount)]
    assert not thawed["lost"]
    assert collected["certain"], collected
    assert collected["events"] > 0
