"""The verb ``facts``: what a host says of itself, without anything being touched or started.

Everything is read from ``/proc``, ``/sys`` and ``/etc``. What an old kernel does not have is null or empty.
"""

from __future__ import absolute_import

import array
import fcntl
import os
import platform
import re
import socket
import struct
import sys
import time

from cvm_migrate.agent import freezer, mounts, names, tracking, usage

assert sys.platform != "win32", "these facts are Linux's"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Set, Text, Tuple

    from cvm_migrate.agent.verbs import Context, Header, Reply, Verb

_SECTOR = 512
_SIOCGIFCONF = 0x8912
_MOST_INTERFACES = 256
_LOOP_GET_STATUS64 = 0x4C05
# Device and inode of the file, and the device's own number if it is one; the rest is of no interest.
_LOOP_INFO = struct.Struct("=QQQ208x")

_DMI = (
    "sys_vendor",
    "product_name",
    "product_version",
    "board_vendor",
    "board_name",
    "bios_vendor",
    "bios_version",
    "chassis_vendor",
    "chassis_asset_tag",
)

# What adaptation, checks and people ask for.
_TOOLS = [
    "blkdiscard",
    "btrfs",
    "chroot",
    "cloud-init",
    "dmsetup",
    "dracut",
    "e2fsck",
    "efibootmgr",
    "fsfreeze",
    "fstrim",
    "grub-install",
    "grub2-install",
    "grub-mkconfig",
    "grub2-mkconfig",
    "ip",
    "lsblk",
    "lvm",
    "mdadm",
    "mkinitramfs",
    "mkinitrd",
    "mount",
    "partx",
    "python",
    "python2",
    "python3",
    "resize2fs",
    "sfdisk",
    "ssh",
    "sshd",
    "sudo",
    "systemctl",
    "umount",
    "update-grub",
    "update-initramfs",
    "vgs",
    "xfs_growfs",
    "xfs_repair",
    "zstd",
]

# Programs that answer for data of others: a caller should quiesce them before the final sync.
_SERVICES = frozenset(
    [
        "mysqld",
        "mariadbd",
        "postgres",
        "postmaster",
        "mongod",
        "mongos",
        "redis-server",
        "oracle",
        "sqlservr",
        "db2sysc",
        "etcd",
        "influxd",
        "clickhouse-serv",
        "memcached",
        "beam.smp",
        "cassandra",
        "slapd",
    ]
)


def _text(path):
    # type: (str) -> Optional[Text]
    """Return the first line of a file without its end; None where there is none, or nothing in it."""
    try:
        with open(path, "rb") as file:
            lines = file.read(65536).splitlines()
    except EnvironmentError:
        return None
    return (names.to_text(lines[0].strip()) if lines else None) or None


def _bytes(path):
    # type: (str) -> bytes
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except EnvironmentError:
        return b""


def _number(path, default=0):
    # type: (str, int) -> int
    try:
        return int(_text(path) or default)
    except ValueError:
        return default


def _listed(path):
    # type: (str) -> List[str]
    try:
        return sorted(os.listdir(path))
    except EnvironmentError:
        return []


def _name(block):
    # type: (str) -> str
    """Return the name under /dev of a name under /sys, where `!` stands for a slash."""
    return block.replace("!", "/")


def _partitions(disk):
    # type: (str) -> List[Header]
    found = []  # type: List[Header]
    for entry in _listed(disk):
        folder = "%s/%s" % (disk, entry)
        # CentOS 5's kernel has no file `partition`.
        if not os.path.exists(folder + "/start") or not os.path.exists(folder + "/dev"):
            continue
        found.append(
            {
                "name": _name(entry),
                "path": "/dev/" + _name(entry),
                "number": _text(folder + "/dev") or "0:0",
                "start": _number(folder + "/start") * _SECTOR,
                "size": _number(folder + "/size") * _SECTOR,
                "holders": [_name(holder) for holder in _listed(folder + "/holders")],
            }
        )
    return sorted(found, key=lambda part: part["start"])


def _serial(disk):
    # type: (str) -> Optional[Text]
    for name in ("serial", "device/serial"):
        found = _text("%s/%s" % (disk, name))
        if found:
            return found
    # SCSI's unit serial number: a header of four bytes, the last one the length.
    page = _bytes(disk + "/device/vpd_pg80")
    if len(page) > 4:
        return names.to_text(page[4:].strip(b" \0")) or None
    return None


def _disk(block, mounted):
    # type: (str, List[mounts.Mount]) -> Optional[Header]
    folder = "/sys/block/" + block
    backing_file = _text(folder + "/loop/backing_file")
    size = _number(folder + "/size") * _SECTOR
    if block.startswith("ram") or (block.startswith("loop") and backing_file is None) or not size:
        return None
    logical = _number(folder + "/queue/logical_block_size") or _number(
        folder + "/queue/hw_sector_size", _SECTOR
    )
    return {
        "name": _name(block),
        "path": "/dev/" + _name(block),
        "number": _text(folder + "/dev") or "0:0",
        "size": size,
        "logical_block_size": logical,
        "physical_block_size": _number(folder + "/queue/physical_block_size", logical),
        # Where the kernel does not tell, the slower kind is the safer guess.
        "rotational": _number(folder + "/queue/rotational", 1) == 1,
        "removable": _number(folder + "/removable") == 1,
        "read_only": _number(folder + "/ro") == 1,
        "model": _text(folder + "/device/model"),
        "serial": _serial(folder),
        "backing_file": backing_file,
        "backing": None if backing_file is None else _backing(block, backing_file, mounted),
        "slaves": [_name(slave) for slave in _listed(folder + "/slaves")],
        "holders": [_name(holder) for holder in _listed(folder + "/holders")],
        "partitions": _partitions(folder),
        "aliases": _aliases(folder),
    }


def _backing(block, backing_file, mounted):
    # type: (str, Text, List[mounts.Mount]) -> Optional[Text]
    """Say what a loop device lies on, as ``open`` says it of disks: a file has many names, and a device as well.

    The kernel asks the file's own file system, even for its number: one that hangs would never answer.
    """
    if not usage.reachable(backing_file, mounted):
        return None
    try:
        fd = os.open("/dev/" + _name(block), os.O_RDONLY | os.O_NONBLOCK)
        try:
            info = fcntl.ioctl(fd, _LOOP_GET_STATUS64, b"\0" * _LOOP_INFO.size)
        finally:
            os.close(fd)
    except EnvironmentError:
        # No right to: the name alone.
        try:
            status = os.stat(names.to_bytes(backing_file))
        except EnvironmentError:
            return None
        device, inode, number = status.st_dev, status.st_ino, status.st_rdev
    else:
        device, inode, number = _LOOP_INFO.unpack(info)
    if number:
        return "block:%d:%d" % (os.major(number), os.minor(number))
    return "file:%d:%d" % (device, inode)


def _aliases(folder):
    # type: (str) -> List[Text]
    """Return the other paths of a device: device-mapper's have names, and mounts are called by them."""
    name = _text(folder + "/dm/name")
    return ["/dev/mapper/" + name] if name else []


def _add_devices(found, disks):
    # type: (List[mounts.Mount], List[Header]) -> None
    """Add to mounts of btrfs the devices that it spans, as its own number says nothing, and to all what they use."""
    spans = {}  # type: Dict[str, List[Text]]
    for entry in _listed("/sys/fs/btrfs"):
        folder = "/sys/fs/btrfs/%s/devices" % entry
        members = _listed(folder)
        numbers = [_text("%s/%s/dev" % (folder, member)) for member in members]
        for member in members:
            spans[member] = [number for number in numbers if number]
    for mount in found:
        if mount["fs_type"] == "btrfs":
            path = os.path.realpath(names.to_bytes(mount["source"]))
            name = names.to_text(path).partition("/dev/")[2].replace("/", "!")
            mount["devices"] = spans.get(name, [])
    devices = set()  # type: Set[Text]
    for disk in disks:
        devices.add(disk["number"])
        devices.update([part["number"] for part in disk["partitions"]])
    usage.measure(found, devices)


def _os_release():
    # type: () -> Optional[Dict[Text, Text]]
    data = _bytes("/etc/os-release") or _bytes("/usr/lib/os-release")
    found = {}  # type: Dict[Text, Text]
    for line in data.splitlines():
        name, equals, value = names.to_text(line.strip()).partition("=")
        if equals and not name.startswith("#"):
            found[name] = _unquoted(value)
    return found or None


def _unquoted(value):
    # type: (Text) -> Text
    """Return a value of os-release as a shell would read it."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        quote, value = value[0], value[1:-1]
        if quote == '"':
            value = re.sub(r"\\(.)", r"\1", value)
    return value


def _legacy_release():
    # type: () -> Optional[Text]
    for path in (
        "/etc/redhat-release",
        "/etc/SuSE-release",
        "/etc/system-release",
        "/etc/gentoo-release",
    ):
        found = _text(path)
        if found:
            return found
    # Ubuntu 10.04 has no os-release, and Debian's file as well.
    described = re.search(b'(?m)^DISTRIB_DESCRIPTION="?([^"\n]+)', _bytes("/etc/lsb-release"))
    if described:
        return names.to_text(described.group(1).strip())
    # The only one that does not say of what it is the version.
    found = _text("/etc/debian_version")
    return "Debian " + found if found else None


def _memory():
    # type: () -> Header
    lines = dict(re.findall(b"(?m)^(\\w+):\\s+(\\d+) kB", _bytes("/proc/meminfo")))
    sizes = {name: int(value) * 1024 for name, value in lines.items()}
    available = sizes.get(b"MemAvailable")
    if available is None:  # kernels before 3.14
        available = sum(sizes.get(name, 0) for name in (b"MemFree", b"Buffers", b"Cached"))
    return {"total": sizes.get(b"MemTotal", 0), "available": available}


def _lockdown():
    # type: () -> Optional[Text]
    chosen = re.search(r"\[(\w+)\]", _text("/sys/kernel/security/lockdown") or "")
    return chosen.group(1) if chosen else None


def _addresses():
    # type: () -> List[Text]
    """Return the addresses of this host, but for loopback and link-local ones."""
    found = []  # type: List[Text]
    pointer = struct.calcsize("P")
    # struct ifreq: a name of 16 bytes and a union, as large as struct ifmap.
    size = 32 if pointer == 4 else 40
    room = array.array("B", b"\0" * (size * _MOST_INTERFACES))
    try:
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except EnvironmentError:
        return found
    try:
        request = struct.pack("iP", size * _MOST_INTERFACES, room.buffer_info()[0])
        used = struct.unpack("iP", fcntl.ioctl(probe.fileno(), _SIOCGIFCONF, request))[0]
    except EnvironmentError:
        used = 0
    finally:
        probe.close()
    data = bytes(bytearray(room))
    for at in range(0, used, size):
        address = socket.inet_ntoa(data[at + 20 : at + 24])
        if not address.startswith(("127.", "169.254.", "0.")) and address not in found:
            found.append(address)
    for line in _bytes("/proc/net/if_inet6").splitlines():
        fields = line.split()
        # The fourth field is the scope; 0 is global.
        if len(fields) >= 4 and fields[3] == b"00":
            packed = bytes(bytearray(int(fields[0][at : at + 2], 16) for at in range(0, 32, 2)))
            found.append(names.to_text(socket.inet_ntop(socket.AF_INET6, packed)))
    return found


def _services():
    # type: () -> List[Text]
    found = set()  # type: Set[Text]
    for pid in _listed("/proc"):
        if not pid.isdigit():
            continue
        # `stat` and not `comm`, which kernels before 2.6.33 do not have.
        name = names.to_text(_bytes("/proc/%s/stat" % pid).partition(b"(")[2].rpartition(b")")[0])
        if name in _SERVICES:
            found.add(name)
        elif name.startswith("ora_pmon_"):
            found.add("oracle")
    return sorted(found)


def _tools():
    # type: () -> Dict[str, str]
    folders = [f for f in os.environ.get("PATH", "").split(os.pathsep) if f.startswith("/")]
    folders += [f for f in ("/usr/sbin", "/usr/bin", "/sbin", "/bin") if f not in folders]
    found = {}  # type: Dict[str, str]
    for tool in _TOOLS:
        for folder in folders:
            path = os.path.join(folder, tool)
            if os.access(path, os.X_OK) and os.path.isfile(path):
                found[tool] = path
                break
    return found


def _swaps():
    # type: () -> List[Text]
    return [names.unescape(line.split()[0]) for line in _bytes("/proc/swaps").splitlines()[1:]]


def _facts(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del context, args, blob, reply
    system, hostname, kernel, _, machine = os.uname()
    dmi = [(name, _text("/sys/class/dmi/id/" + name)) for name in _DMI]
    mounted = mounts.mounts()
    found = [_disk(block, mounted) for block in _listed("/sys/block")]
    disks = [disk for disk in found if disk is not None]
    _add_devices(mounted, disks)
    return {
        "system": system,
        "kernel": kernel,
        "machine": machine,
        "python": platform.python_version(),
        "executable": sys.executable,
        "hostname": hostname,
        "boot_id": _text("/proc/sys/kernel/random/boot_id") or "",
        "euid": os.geteuid(),
        "time": time.time(),
        "firmware": "uefi" if os.path.isdir("/sys/firmware/efi") else "bios",
        "memory": _memory(),
        "os_release": _os_release(),
        "legacy_release": _legacy_release(),
        "lockdown": _lockdown(),
        "dmi": {name: value for name, value in dmi if value is not None},
        "disks": disks,
        "mounts": mounted,
        "swaps": _swaps(),
        "addresses": _addresses(),
        "tracking": dict(tracking.probe()),
        "can_freeze": freezer.can_freeze(),
        "tools": _tools(),
        "services": _services(),
    }, b""


VERBS = {"facts": _facts}  # type: Dict[str, Verb]
