"""Rescue mode of the simulated cloud: a real sshd where /dev/vda is the instance's disk."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.testing import SimulatedInstance, TencentCloud
from cvm_migrate.testing._busy_disk import write_partition_table
from cvm_migrate.units import MiB
from rig.pythons import interpreters
from rig.sdk import Sdk

_PASSWORD = "One-time-password-1"
_MARK = b"written in rescue mode"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[TencentCloud]:
    require("root", "loop", "namespaces", "sshd", "sshpass")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with TencentCloud(operation_seconds=0.02) as cloud:
        yield cloud


def _call(cloud: TencentCloud, action: str, instance: SimulatedInstance, **params: str) -> None:
    sdk = Sdk(cloud.secret_id, cloud.secret_key, endpoint=cloud.endpoint)
    sdk.call("cvm", action, {"InstanceId": instance.instance_id, **params})


def _enter(cloud: TencentCloud, instance: SimulatedInstance, password: str = _PASSWORD) -> None:
    _call(cloud, "EnterRescueMode", instance, Password=password)
    instance.wait_for("RESCUE_MODE")


def _leave(cloud: TencentCloud, instance: SimulatedInstance) -> None:
    _call(cloud, "ExitRescueMode", instance)
    instance.wait_for("STOPPED")


def _ssh(
    instance: SimulatedInstance,
    folder: Path,
    command: str,
    *,
    password: str = _PASSWORD,
    said: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Log in as root with the password; the host key must be the one the instance shows."""
    host, port = instance.ssh_address
    known = folder / "known_hosts"
    known.write_text(f"[{host}]:{port} {instance.host_key}\n")
    options = {
        "UserKnownHostsFile": str(known),
        "StrictHostKeyChecking": "yes",
        "PreferredAuthentications": "password",
        "NumberOfPasswordPrompts": "1",
        "ConnectTimeout": "30",
    }
    arguments = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    return subprocess.run(
        [
            "sshpass",
            "-e",
            "ssh",
            "-F",
            "none",
            *arguments,
            "-p",
            str(port),
            f"root@{host}",
            command,
        ],
        check=False,
        capture_output=True,
        input=said,
        timeout=90,
        env={**os.environ, "SSHPASS": password},
    )


def _output(instance: SimulatedInstance, folder: Path, command: str, *, said: bytes = b"") -> str:
    done = _ssh(instance, folder, command, said=said)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def _eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


def _attached(file: Path) -> bool:
    done = subprocess.run(["losetup", "--associated", str(file)], check=True, capture_output=True)
    return bool(done.stdout.strip())


def test_the_one_time_password_lets_root_in_and_another_does_not(
    cloud: TencentCloud, tmp_path: Path
) -> None:
    instance = cloud.add_instance(system_disk=8 * MiB)
    _enter(cloud, instance)

    assert _output(instance, tmp_path, "id -u").strip() == "0"
    refused = _ssh(instance, tmp_path, "id -u", password="Another-password-2")
    assert refused.returncode != 0
    assert refused.stdout == b""


def test_what_is_written_to_a_device_is_in_the_file_of_that_disk(
    cloud: TencentCloud, tmp_path: Path
) -> None:
    instance = cloud.add_instance(system_disk=8 * MiB, data_disks=[4 * MiB, 6 * MiB])
    _enter(cloud, instance)
    sizes = _output(instance, tmp_path, "cat /sys/block/vd[abc]/size")
    for letter in "abc":
        _output(
            instance,
            tmp_path,
            f"dd of=/dev/vd{letter} bs=4096 seek=1 conv=notrunc,fsync",
            said=_MARK + letter.encode(),
        )

    _leave(cloud, instance)

    assert [int(size) * 512 for size in sizes.split()] == [8 * MiB, 4 * MiB, 6 * MiB]
    for letter, disk in zip("abc", instance.disks, strict=True):
        content = disk.path.read_bytes()
        assert content[4096:].startswith(_MARK + letter.encode())
        assert len(content) == disk.size


def test_disks_appear_under_the_names_that_were_asked_for(
    cloud: TencentCloud, tmp_path: Path
) -> None:
    own = tmp_path / "own.img"
    own.write_bytes(bytes(2 * MiB))
    instance = cloud.add_instance(
        system_disk=8 * MiB,
        data_disks=[4 * MiB, 6 * MiB],
        rescue_names=("vdc", "sda"),
        rescue_disks={"vda": own},
    )
    command = (
        "cd /sys/block; for disk in *; do echo $disk $(cat $disk/size $disk/serial 2>&1); done"
    )

    _enter(cloud, instance)
    named = _output(instance, tmp_path, command)
    _leave(cloud, instance)
    instance.set_rescue_names("vdb")
    _enter(cloud, instance)
    renamed = _output(instance, tmp_path, "ls /sys/block")

    system, first, second = (disk.disk_id for disk in instance.disks)
    assert [line.split()[:3] for line in named.splitlines()] == [
        ["sda", str(8 << 10), first],
        ["vda", str(4 << 10), "cat:"],
        ["vdb", str(12 << 10), second],
        ["vdc", str(16 << 10), system],
    ]
    assert renamed.split() == ["vda", "vdb", "vdc", "vdd"]


@pytest.mark.parametrize("names", [("nvme0n1",), ("vda/b",), ("vdb", "vdb")])
def test_names_that_no_disks_can_have_are_refused(
    cloud: TencentCloud, names: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        cloud.add_instance(rescue_names=names)

    assert caught.value.remedy


def test_what_a_file_holds_is_read_from_the_device(cloud: TencentCloud, tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(b"before".ljust(4 * MiB, b"\0"))
    instance = cloud.add_instance(system_disk=file)
    _enter(cloud, instance)

    assert _output(instance, tmp_path, "head -c 6 /dev/vda") == "before"


def test_no_disk_of_the_machine_is_in_sight(cloud: TencentCloud, tmp_path: Path) -> None:
    instance = cloud.add_instance(system_disk=8 * MiB, data_disks=[8 * MiB])
    _enter(cloud, instance)
    command = "ls /sys/block /sys/class/block; find /dev -type b | sort; ls /sys/dev/block | wc -l"

    assert _output(instance, tmp_path, command).split() == [
        "/sys/block:",
        "vda",
        "vdb",
        "/sys/class/block:",
        "vda",
        "vdb",
        "/dev/vda",
        "/dev/vdb",
        "2",
    ]


def test_partitions_of_the_disk_get_nodes(cloud: TencentCloud, tmp_path: Path) -> None:
    require("partx")
    file = tmp_path / "disk.img"
    file.touch()
    write_partition_table(file, 32 * MiB)
    instance = cloud.add_instance(system_disk=file)
    _enter(cloud, instance)
    _output(instance, tmp_path, "partx --add /dev/vda || partx --update /dev/vda")
    wait = "i=0; until [ -b /dev/vda1 ] || [ $i = 600 ]; do sleep 0.05; i=$((i+1)); done; "
    found = _output(
        instance, tmp_path, wait + "cat /sys/class/block/vda1/start /sys/block/vda/vda1/partition"
    )
    _output(
        instance,
        tmp_path,
        "mkfs.ext4 -q /dev/vda1 && mount /dev/vda1 /mnt && cp /dev/stdin /mnt/file && umount /mnt",
        said=_MARK,
    )
    _leave(cloud, instance)

    assert found.split() == ["2048", "1"]
    assert _MARK in file.read_bytes()


def test_nothing_done_in_the_rescue_system_reaches_the_machine(
    cloud: TencentCloud, tmp_path: Path
) -> None:
    instance = cloud.add_instance(system_disk=8 * MiB)
    name = f"cvm-migrate-{os.getpid()}-{time.monotonic_ns()}"
    before = {path: Path(path).read_bytes() for path in ("/etc/shadow", "/etc/passwd")}
    _enter(cloud, instance)
    places = [
        f"{folder}/{name}" for folder in ("/etc", "/usr", "/root", "/tmp", "/run", "/dev/shm")
    ]
    _output(instance, tmp_path, f"touch {' '.join(places)}")

    assert [place for place in places if Path(place).exists()] == []
    assert {path: Path(path).read_bytes() for path in before} == before


@pytest.mark.parametrize("version", ["2.7", "3.6"])
def test_the_python_that_was_asked_for_is_the_only_one(
    cloud: TencentCloud, tmp_path: Path, version: str
) -> None:
    require("pyenv")
    python = interpreters()[version]
    instance = cloud.add_instance(system_disk=8 * MiB, python=python)
    _enter(cloud, instance)
    names = "python python2 python2.7 python3 python3.6 python3.8 python3.11 python3.13"
    program = "import sys, json, struct, hashlib, ssl; print('%d.%d' % sys.version_info[:2])"
    found = _output(instance, tmp_path, f"for p in {names}; do command -v $p; done; true").split()
    ran = {_output(instance, tmp_path, f"{path} -c {_quoted(program)}").strip() for path in found}
    mounted = _output(instance, tmp_path, "cat /proc/self/mounts")

    assert f"/usr/bin/python{version}" in found
    assert ran == {version}
    assert "/dev/vd" not in mounted


def _quoted(text: str) -> str:
    return f'"{text}"'


def test_each_entry_has_a_new_host_key_and_password(cloud: TencentCloud, tmp_path: Path) -> None:
    instance = cloud.add_instance(system_disk=8 * MiB)
    _enter(cloud, instance)
    first = instance.host_key
    _leave(cloud, instance)
    _enter(cloud, instance, "Second-password-2")

    assert instance.host_key != first
    assert _ssh(instance, tmp_path, "true").returncode != 0
    assert _ssh(instance, tmp_path, "true", password="Second-password-2").returncode == 0


def test_a_reboot_ends_what_ran_and_keeps_key_and_password(
    cloud: TencentCloud, tmp_path: Path
) -> None:
    instance = cloud.add_instance(system_disk=8 * MiB)
    _enter(cloud, instance)
    first = instance.host_key
    _output(instance, tmp_path, "touch /run/before")
    sdk = Sdk(cloud.secret_id, cloud.secret_key, endpoint=cloud.endpoint)
    sdk.call("cvm", "RebootInstances", InstanceIds=[instance.instance_id])
    instance.wait_for("RESCUE_MODE")

    assert instance.host_key == first
    assert _output(instance, tmp_path, "ls /run/before 2>/dev/null; true") == ""


def test_leaving_ends_sshd_and_its_processes_and_gives_the_disks_back(
    cloud: TencentCloud, tmp_path: Path
) -> None:
    instance = cloud.add_instance(system_disk=8 * MiB)
    before = _listens(instance.ssh_address)
    _enter(cloud, instance)
    seconds = f"5{time.monotonic_ns() % 10**8}"
    _output(instance, tmp_path, f"setsid sleep {seconds} </dev/null >/dev/null 2>&1 & true")
    inside = _listens(instance.ssh_address), _attached(instance.disks[0].path)
    running = _eventually(lambda: _runs("sleep", seconds))
    _leave(cloud, instance)

    assert not before
    assert inside == (True, True)
    assert running
    assert not _listens(instance.ssh_address)
    assert not _attached(instance.disks[0].path)
    assert not _runs("sleep", seconds)


def _runs(*arguments: str) -> bool:
    wanted = b"\0".join(one.encode() for one in arguments) + b"\0"
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "cmdline").read_bytes() == wanted:
                    return True
            except OSError:
                continue
    return False


def test_a_rescue_system_can_be_in_a_network_of_its_own(
    cloud: TencentCloud, tmp_path: Path
) -> None:
    name = f"cvm-migrate-{os.getpid()}-{time.monotonic_ns()}"
    address = "198.51.100.7"
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "address", "add", f"{address}/32", "dev", "lo")
        instance = cloud.add_instance(
            system_disk=8 * MiB, network=Path("/run/netns", name), public_address=address
        )
        _enter(cloud, instance)
        (tmp_path / "known_hosts").write_text(f"{address} {instance.host_key}\n")
        done = subprocess.run(
            [
                *("ip", "netns", "exec", name, "sshpass", "-e", "ssh", "-F", "none"),
                *("-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}"),
                *("-o", "StrictHostKeyChecking=yes", f"root@{address}", "hostname"),
            ],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=90,
            env={**os.environ, "SSHPASS": _PASSWORD},
        )
        _leave(cloud, instance)

        assert instance.ssh_address == (address, 22)
        assert done.stdout.decode().strip() == "rescue", done.stderr.decode()
    finally:
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)


_VICTIM = """
import sys, time
from cvm_migrate.testing import TencentCloud
sys.path.insert(0, sys.argv[1])
from rig.sdk import Sdk
cloud = TencentCloud(operation_seconds=0.0).__enter__()
instance = cloud.add_instance(system_disk=8 << 20)
sdk = Sdk(cloud.secret_id, cloud.secret_key, endpoint=cloud.endpoint)
sdk.call("cvm", "EnterRescueMode", InstanceId=instance.instance_id, Password="One-time-password-1")
instance.wait_for("RESCUE_MODE")
print(instance.ssh_address[1], instance.disks[0].path, flush=True)
time.sleep(600)
"""


def test_a_killed_simulator_leaves_no_process_and_no_device(cloud: TencentCloud) -> None:
    del cloud
    tests = Path(__file__).parents[1]
    victim = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _VICTIM, str(tests)], stdout=subprocess.PIPE
    )
    assert victim.stdout is not None
    try:
        port, _, file = victim.stdout.readline().decode().strip().partition(" ")
        there = _listens(("127.0.0.1", int(port))), _attached(Path(file))
        victim.send_signal(signal.SIGKILL)
        victim.wait(60)

        assert there == (True, True)
        assert _eventually(lambda: not _listens(("127.0.0.1", int(port))))
        assert _eventually(lambda: not _attached(Path(file)))
    finally:
        victim.kill()
        victim.wait()
        victim.stdout.close()
    _remove(Path(file).parent)


def _remove(folder: Path) -> None:
    """What a killed process cannot remove itself: its temporary folder."""
    assert folder.name.startswith("cvm-migrate-cloud-")
    for path in folder.iterdir():
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()


def test_a_rescue_system_that_cannot_start_is_a_failed_operation(cloud: TencentCloud) -> None:
    instance = cloud.add_instance(system_disk=8 * MiB)
    instance.disks[0].path.unlink()
    _call(cloud, "EnterRescueMode", instance, Password=_PASSWORD)
    instance.wait_for("RUNNING")
    sdk = Sdk(cloud.secret_id, cloud.secret_key, endpoint=cloud.endpoint)
    answer = sdk.call("cvm", "DescribeInstances", InstanceIds=[instance.instance_id])

    (described,) = answer["InstanceSet"]
    assert described["LatestOperationState"] == "FAILED"
    assert instance.disks[0].path.name in described["LatestOperationErrorMsg"]
