"""The agent in a rescue system: what it finds there, and where its writes go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate.testing import TencentCloud
from cvm_migrate.transport import SshTarget, start_ssh_agent
from cvm_migrate.units import MiB
from rig.pythons import interpreters
from rig.sdk import Sdk

_PASSWORD = "One-time-password-1"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[TencentCloud]:
    require("root", "loop", "namespaces", "sshd", "pyenv")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with TencentCloud(operation_seconds=0.02) as cloud:
        yield cloud


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.13"])
def test_the_agent_writes_to_the_instances_disk_and_sees_no_other(
    cloud: TencentCloud, tmp_path: Path, version: str
) -> None:
    instance = cloud.add_instance(
        system_disk=16 * MiB, data_disks=[8 * MiB], python=interpreters()[version]
    )
    sdk = Sdk(cloud.secret_id, cloud.secret_key, endpoint=cloud.endpoint)
    sdk.call("cvm", "EnterRescueMode", InstanceId=instance.instance_id, Password=_PASSWORD)
    instance.wait_for("RESCUE_MODE")
    host, port = instance.ssh_address
    pinned = tmp_path / "known_hosts"
    target = SshTarget(f"root@{host}", port=port, password=_PASSWORD, pin_on_first_use=pinned)
    data = os.urandom(MiB)
    with start_ssh_agent(target) as agent:
        python = agent.python
        facts = agent.facts()
        disk = agent.open_disk("/dev/vda", mode="write")
        agent.write(disk, 4 * MiB, data)
        agent.flush(disk)
    sdk.call("cvm", "ExitRescueMode", InstanceId=instance.instance_id)
    instance.wait_for("STOPPED")

    assert python.startswith(f"{version}.")
    system, second = (disk.disk_id for disk in instance.disks)
    assert [(one.name, one.path, one.size, one.serial) for one in facts.disks] == [
        ("vda", "/dev/vda", 16 * MiB, system),
        ("vdb", "/dev/vdb", 8 * MiB, second),
    ]
    assert [mount for mount in facts.mounts if mount.source.startswith("/dev/")] == []
    assert str(instance.host_key) in pinned.read_text()
    content = instance.disks[0].path.read_bytes()
    assert content[4 * MiB : 5 * MiB] == data
    assert content.count(0) > 14 * MiB
