"""With ``boot="qemu"`` an instance that is running really runs what is on its disk."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate.testing import SimulatedInstance, TencentCloud
from cvm_migrate.units import MiB
from rig.sdk import Sdk

_MARK = b"booted from this disk"
# Real-mode code: writes what follows it to the first serial port, then halts.
_CODE = bytes.fromhex("fa31c08ed8fcbe177cbaf803ac84c07403eeebf8f4ebfd")


def _bootable(path: Path) -> Path:
    sector = (_CODE + _MARK + b"\0").ljust(510, b"\0") + b"\x55\xaa"
    path.write_bytes(sector.ljust(MiB, b"\0"))
    return path


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[TencentCloud]:
    require("qemu-system-x86_64")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with TencentCloud(operation_seconds=0.02) as cloud:
        yield cloud


def _call(cloud: TencentCloud, action: str, instance: SimulatedInstance, **more: str) -> None:
    sdk = Sdk(cloud.secret_id, cloud.secret_key, endpoint=cloud.endpoint)
    sdk.call("cvm", action, {"InstanceIds": [instance.instance_id], **more})


def _eventually(condition: Callable[[], bool], seconds: float = 100.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _said(instance: SimulatedInstance) -> bool:
    return instance.console.exists() and _MARK in instance.console.read_bytes()


@pytest.mark.timeout(300)
def test_starting_boots_the_disk_and_stopping_gives_it_back(
    cloud: TencentCloud, tmp_path: Path
) -> None:
    disk = _bootable(tmp_path / "disk.img")
    instance = cloud.add_instance(
        system_disk=disk, state="STOPPED", boot="qemu", memory=64 * MiB, rescue_system="none"
    )
    before = _said(instance)
    _call(cloud, "StartInstances", instance)
    instance.wait_for("RUNNING")
    booted = _eventually(lambda: _said(instance))
    held = _locked(disk)
    _call(cloud, "StopInstances", instance, StopType="HARD")
    instance.wait_for("STOPPED")

    assert not before
    assert booted
    assert held
    assert not _locked(disk)


def _locked(file: Path) -> bool:
    """Whether a process holds a lock on the file, as QEMU does on its disks."""
    inode = f":{file.stat().st_ino} "
    return any(inode in f"{line} " for line in Path("/proc/locks").read_text().splitlines())


_VICTIM = """
import sys, time
from pathlib import Path
from cvm_migrate.testing import TencentCloud
cloud = TencentCloud(folder=Path(sys.argv[2])).__enter__()
cloud.add_instance(system_disk=Path(sys.argv[1]), boot="qemu", memory=64 << 20, rescue_system="none")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.timeout(300)
def test_a_killed_simulator_takes_the_guest_with_it(tmp_path: Path) -> None:
    require("qemu-system-x86_64")
    disk = _bootable(tmp_path / "disk.img")
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(disk), str(tmp_path)], stdout=subprocess.PIPE
    )
    assert victim.stdout is not None
    try:
        assert victim.stdout.readline() == b"ready\n"
        assert _eventually(lambda: _locked(disk))
    finally:
        victim.kill()
        victim.wait()
        victim.stdout.close()

    assert _eventually(lambda: not _locked(disk))
