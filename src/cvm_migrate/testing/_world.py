"""What the simulated cloud holds: keys, instances, disks, snapshots, security groups, migration tasks.

Handlers and operations run in threads of their own. All of this changes only under :attr:`World.lock`; slow work
(copying a disk, starting a rescue system) is done outside it.
"""

from __future__ import annotations

import secrets
import shutil
import string
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from cvm_migrate.errors import ConditionError
from cvm_migrate.testing import _tables
from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._guest import Guest
from cvm_migrate.testing._rescue import RescueDisk, RescueSystem
from cvm_migrate.testing._tc3 import Key
from cvm_migrate.units import GiB

_LETTERS: Final = string.ascii_lowercase + string.digits

# Of Tencent's documentation; those that a test may name.
REGIONS: Final = (
    "ap-bangkok",
    "ap-beijing",
    "ap-chengdu",
    "ap-chongqing",
    "ap-guangzhou",
    "ap-hongkong",
    "ap-jakarta",
    "ap-nanjing",
    "ap-seoul",
    "ap-shanghai",
    "ap-shanghai-fsi",
    "ap-shenzhen-fsi",
    "ap-singapore",
    "ap-tokyo",
    "eu-frankfurt",
    "na-ashburn",
    "na-siliconvalley",
    "sa-saopaulo",
)


def new_id(prefix: str, length: int = 8) -> str:
    """Return an id of Tencent's form, such as ``ins-0a1b2c3d``."""
    return f"{prefix}-{''.join(secrets.choice(_LETTERS) for _ in range(length))}"


def utc(moment: float) -> str:
    """Write a moment as the API does."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@attrs.define(eq=False)
class Disk:
    """A disk: a file that a rescue system sees as a device."""

    id: str
    path: Path
    size: int
    usage: str
    disk_type: str
    region: str
    zone: str
    instance_id: str | None
    portable: bool = False
    state: str = "ATTACHED"
    charge_type: str = "POSTPAID_BY_HOUR"
    created: float = attrs.Factory(time.time)

    @property
    def gib(self) -> int:
        """Size as the API has it: whole GiB, rounded up, as the files of tests are often smaller."""
        return -(-self.size // GiB)


@attrs.define(eq=False)
class Operation:
    """The latest thing done to an instance."""

    name: str
    request_id: str
    state: str = "OPERATING"
    message: str | None = None


@attrs.define(eq=False)
class Machine:
    """An instance."""

    id: str
    name: str
    region: str
    zone: str
    state: str
    charge_type: str
    architecture: str
    instance_type: str
    os_name: str
    cpus: int
    memory: int
    disks: list[Disk]
    security_groups: list[str]
    public_addresses: list[str]
    private_addresses: list[str]
    restrict_state: str
    stop_charging_mode: str
    rescue: RescueSystem
    guest: Guest
    history: list[str]
    operation: Operation | None = None
    created: float = attrs.Factory(time.time)
    uuid: str = attrs.Factory(lambda: str(uuid.uuid4()))

    @property
    def files(self) -> list[Path]:
        """The files of its disks, in order."""
        return [disk.path for disk in self.disks]

    @property
    def rescue_disks(self) -> list[RescueDisk]:
        """Its disks as its rescue system is given them, in order."""
        return [RescueDisk(disk.path, disk.id) for disk in self.disks]

    def enter(self, state: str) -> None:
        """Be in a state from now on."""
        self.state = state
        self.history.append(state)


@attrs.define(eq=False)
class Snapshot:
    """A copy of a disk as it was at the moment of the call."""

    id: str
    name: str
    disk: Disk
    path: Path
    state: str = "CREATING"
    deadline: str | None = None
    created: float = attrs.Factory(time.time)


@attrs.define(eq=False)
class SecurityGroup:
    """A security group; rules as the API has them, without ``PolicyIndex``."""

    id: str
    name: str
    region: str
    ingress: list[dict[str, Any]]
    egress: list[dict[str, Any]]
    version: int = 1
    created: float = attrs.Factory(time.time)


@attrs.define(eq=False)
class Template:
    """Addresses or services under one name, or a group of such templates; the id tells which of the four."""

    id: str
    name: str
    members: list[str]
    created: float = attrs.Factory(time.time)


@attrs.define(eq=False)
class MigrationTask:
    """An entry of MSP's ledger."""

    id: str
    params: dict[str, Any]
    states: list[tuple[str, float]]


@attrs.frozen
class Call:
    """One call as a handler sees it."""

    service: str
    action: str
    params: dict[str, Any]
    region: str
    key: Key
    request_id: str
    caller: str


class World:
    """The state of the cloud.

    Args:
        folder: Where disks and snapshots lie.
        operation_seconds: How long an asynchronous operation takes.
        snapshot_quota: Snapshots that a disk may have.
    """

    def __init__(self, folder: Path, *, operation_seconds: float, snapshot_quota: int) -> None:
        self.folder = folder
        self.operation_seconds = operation_seconds
        self.snapshot_quota = snapshot_quota
        self.clock_offset = 0.0
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.account = "".join(secrets.choice(string.digits) for _ in range(12))
        self.uin = f"1000{''.join(secrets.choice(string.digits) for _ in range(8))}"
        self.keys: dict[str, Key] = {}
        self.roles: set[str] = set()
        self.machines: dict[str, Machine] = {}
        self.disks: dict[str, Disk] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.groups: dict[str, SecurityGroup] = {}
        self.templates: dict[str, Template] = {}
        self.tasks: dict[str, MigrationTask] = {}
        self._threads: list[threading.Thread] = []

    # Keys

    def now(self) -> float:
        """Seconds since 1970 on the cloud's clock."""
        return time.time() + self.clock_offset

    def new_key(self, *, role: str | None = None, seconds: float | None = None) -> Key:
        """Make a pair of keys: temporary ones, with a token, where *seconds* are given."""
        temporary = seconds is not None
        key = Key(
            "AKID" + "".join(secrets.choice(string.ascii_letters) for _ in range(32)),
            "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32)),
            token=secrets.token_urlsafe(96) if temporary else None,
            expires=self.now() + seconds if seconds is not None else None,
            role=role,
        )
        with self.lock:
            self.keys[key.secret_id] = key
        return key

    def expire_tokens(self) -> int:
        """End the life of all temporary keys; return how many there were."""
        with self.lock:
            temporary = [key for key in self.keys.values() if key.token is not None]
            for key in temporary:
                self.keys[key.secret_id] = attrs.evolve(key, expires=self.now())
        return len(temporary)

    # Things

    def machine(self, instance_id: str, region: str) -> Machine:
        """Return an instance.

        Raises:
            ApiError: It is not one's id, or there is none of it in this region.
        """
        if not instance_id.startswith("ins-") or len(instance_id) != 12:
            raise ApiError(
                "InvalidInstanceId.Malformed", f"The instance ID `{instance_id}` is malformed."
            )
        machine = self.machines.get(instance_id)
        if machine is None or machine.region != region:
            raise ApiError(
                "InvalidInstanceId.NotFound", f"The instance ID `{instance_id}` is not found."
            )
        return machine

    def new_file(self, size: int) -> Path:
        """Make a sparse file of *size* bytes."""
        path = self.folder / f"{secrets.token_hex(6)}.img"
        with path.open("wb") as file:
            file.truncate(size)
        return path

    # Operations

    def later(self, work: Callable[[], None], *, seconds: float | None = None) -> None:
        """Do *work* in a thread of its own, after the time an operation takes; not if the cloud ends before."""
        wait = self.operation_seconds if seconds is None else seconds

        def run() -> None:
            if not self.closing.wait(wait):
                work()

        thread = threading.Thread(target=run, name="cvm-operation", daemon=True)
        with self.lock:
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
        thread.start()

    def begin(
        self,
        machine: Machine,
        action: str,
        request_id: str,
        *,
        fails: bool = False,
        work: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin an operation on an instance; called with the lock held.

        Args:
            machine: The instance.
            action: A row of :data:`_tables.MOVES`.
            request_id: The call's.
            fails: It ends as failed, and the instance is as it was.
            work: What it takes in the real world; without the lock.

        Raises:
            ApiError: The instance's state refuses it.
        """
        row = _tables.move(action, machine.state)
        if row is None:
            raise ApiError(
                _tables.refusal(action, machine.state),
                f"The instance `{machine.id}` is in the state `{machine.state}`, which does not support {action}.",
            )
        operation = Operation(action, request_id)
        machine.operation = operation
        machine.enter(row.through)

        def finish() -> None:
            problem = "The operation failed, please try again later." if fails else None
            if problem is None:
                try:
                    work()
                except ConditionError as error:
                    problem = str(error)
            with self.lock:
                if self.closing.is_set() or machine.operation is not operation:
                    return
                operation.state = "SUCCESS" if problem is None else "FAILED"
                operation.message = problem
                machine.enter(row.end if problem is None else row.start)

        self.later(finish)

    def close(self) -> None:
        """End all operations and rescue systems."""
        self.closing.set()
        with self.lock:
            threads = list(self._threads)
            machines = list(self.machines.values())
        for thread in threads:
            thread.join()
        for machine in machines:
            machine.rescue.close()
            machine.guest.stop(soft=False)


def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk's content, holes as holes, sharing blocks where the file system can; *target* keeps its inode.

    Raises:
        ConditionError: The copy failed.
    """
    program = shutil.which("cp")
    if program is None:
        shutil.copyfile(source, target)
        return
    done = subprocess.run(
        [program, "--reflink=auto", "--sparse=always", "--", str(source), str(target)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ConditionError(f"copying {source} failed: {done.stderr.strip()}", device=str(source))
