"""The simulator's front door."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import attrs

from cvm_migrate.errors import DeadlineError, InvalidRequestError, NotFoundError
from cvm_migrate.testing import _tables
from cvm_migrate.testing._faults import Fault, Faults
from cvm_migrate.testing._guest import Guest
from cvm_migrate.testing._rescue import RescueSystem, Shown
from cvm_migrate.testing._server import METADATA, ApiServer, RecordedRequest
from cvm_migrate.testing._world import (
    REGIONS,
    Disk,
    Machine,
    SecurityGroup,
    Snapshot,
    Template,
    World,
    copy_disk,
    new_id,
)
from cvm_migrate.units import GiB


@attrs.frozen
class Credentials:
    """Keys for the simulated cloud; made for one run, worth nothing elsewhere."""

    secret_id: str
    secret_key: str = attrs.field(repr=False)
    token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen
class SimulatedDisk:
    """A disk of a simulated instance; *size* in bytes."""

    disk_id: str
    path: Path
    size: int


class SimulatedInstance:
    """An instance of a :class:`TencentCloud`, seen from behind the API."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world = world
        self._machine = machine

    def __repr__(self) -> str:
        """Show id and state."""
        return f"SimulatedInstance({self.instance_id!r}, {self.state})"

    @property
    def instance_id(self) -> str:
        """Such as ``ins-0a1b2c3d``."""
        return self._machine.id

    @property
    def region(self) -> str:
        """Such as ``ap-guangzhou``."""
        return self._machine.region

    @property
    def state(self) -> str:
        """``InstanceState`` as the API has it."""
        with self._world.lock:
            return self._machine.state

    @property
    def history(self) -> tuple[str, ...]:
        """All states it has been in, oldest first."""
        with self._world.lock:
            return tuple(self._machine.history)

    @property
    def disks(self) -> tuple[SimulatedDisk, ...]:
        """The system disk, then the data disks in their order."""
        with self._world.lock:
            return tuple(
                SimulatedDisk(disk.id, disk.path, disk.size) for disk in self._machine.disks
            )

    @property
    def ssh_address(self) -> tuple[str, int]:
        """Where the rescue system's sshd listens in rescue mode, and a booted system's port 22 is reached."""
        return self._machine.rescue.address, self._machine.rescue.port

    @property
    def console(self) -> Path:
        """What its system, booted with ``boot="qemu"``, writes to its serial console."""
        return self._machine.guest.console

    @property
    def host_key(self) -> str | None:
        """The rescue system's public host key, as in a known-hosts file; a new one each time it is entered."""
        return self._machine.rescue.host_key

    @property
    def rescue_log(self) -> Path:
        """What the rescue system's sshd says."""
        return self._machine.rescue.log

    def set_state(self, state: str) -> None:
        """Put the instance into a state at once, whatever it was doing.

        Raises:
            InvalidRequestError: There is no such state.
        """
        if state not in _tables.STATES:
            raise InvalidRequestError(f"no such state: {state!r}")
        with self._world.lock:
            self._machine.operation = None
            self._machine.enter(state)
        if state not in {"RESCUE_MODE", "ENTER_RESCUE_MODE"}:
            self._machine.rescue.stop()
        if state != "RUNNING":
            self._machine.guest.stop(soft=False)

    def set_rescue_names(self, *names: str) -> None:
        """Have its disks appear under other names from the next time on that it enters rescue mode.

        Args:
            names: As ``rescue_names`` of :meth:`TencentCloud.add_instance`.

        Raises:
            InvalidRequestError: A name is no disk's, or given twice.
        """
        rescue = self._machine.rescue
        rescue.shown = attrs.evolve(rescue.shown, names=names)

    def set_restricted(
        self, restrict_state: Literal["NORMAL", "EXPIRED", "PROTECTIVELY_ISOLATED"]
    ) -> None:
        """Set ``RestrictState``: an expired instance, say."""
        with self._world.lock:
            self._machine.restrict_state = restrict_state

    def begin_console_migration(self) -> None:
        """Do what the console's online migration does: the instance goes to ``SERVICE_LIVE_MIGRATE``."""
        with self._world.lock:
            self._world.begin(self._machine, "(console) begin", "")

    def end_console_migration(self) -> None:
        """Take the instance back from ``SERVICE_LIVE_MIGRATE`` to ``RUNNING``."""
        with self._world.lock:
            self._world.begin(self._machine, "(console) end", "")

    def wait_for(self, state: str, seconds: float = 60.0) -> None:
        """Wait until the instance is in a state.

        Raises:
            DeadlineError: It was not within *seconds*.
        """
        end = time.monotonic() + seconds
        while self.state != state:
            if time.monotonic() > end:
                raise DeadlineError(
                    f"{self.instance_id} is {self.state}, not {state}, after {seconds:g} s",
                    seconds=seconds,
                )
            time.sleep(0.01)


class TencentCloud:
    """A Tencent Cloud on this machine, for tests of your own automation.

    A context manager: a real HTTP server on a free port of *address*, which verifies signatures, keeps instances
    with their state machine and their refusals, takes time for operations, and fails on request.
    See ``docs/howto/test-without-a-cloud.md``.

    Args:
        address: Where to listen, the rescue systems' sshd included.
        operation_seconds: How long an asynchronous operation takes.
        snapshot_quota: Snapshots that a disk may have.
        folder: Where disks and snapshots lie; ``None``: a temporary folder that is removed at the end.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        operation_seconds: float = 0.1,
        snapshot_quota: int = 64,
        folder: Path | None = None,
    ) -> None:
        self._address = address
        self._operation_seconds = operation_seconds
        self._snapshot_quota = snapshot_quota
        self._folder = folder
        self._faults = Faults()
        self._stack = contextlib.ExitStack()
        self._parts: tuple[World, ApiServer] | None = None
        self._main: Credentials | None = None

    def __enter__(self) -> Self:
        """Start serving."""
        with contextlib.ExitStack() as stack:
            folder = self._folder
            if folder is None:
                folder = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix="cvm-migrate-cloud-"))
                )
            world = World(
                folder,
                operation_seconds=self._operation_seconds,
                snapshot_quota=self._snapshot_quota,
            )
            stack.callback(world.close)
            server = ApiServer(self._address, world, self._faults)
            server.start()
            stack.callback(server.stop)
            self._parts = world, server
            self._stack = stack.pop_all()
        self._main = self.new_credentials()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server and the rescue systems, and remove the disks."""
        self._stack.close()

    @property
    def _world(self) -> World:
        return self._open[0]

    @property
    def _open(self) -> tuple[World, ApiServer]:
        if self._parts is None:
            raise InvalidRequestError(
                "the simulated cloud is not running", remedy="Use it in a with statement"
            )
        return self._parts

    # How to reach it

    @property
    def endpoint(self) -> str:
        """The address of all services, such as ``http://127.0.0.1:8080``."""
        return f"http://{self._address}:{self._open[1].port}"

    @property
    def metadata_url(self) -> str:
        """What stands for ``http://metadata.tencentyun.com/latest/meta-data``."""
        return f"{self.endpoint}{METADATA}/latest/meta-data"

    @property
    def credentials(self) -> Credentials:
        """The account's first keys."""
        self._open  # noqa: B018 - raises where it is not running
        assert self._main is not None  # noqa: S101 - made on entering
        return self._main

    @property
    def secret_id(self) -> str:
        """Id of the account's first keys."""
        return self.credentials.secret_id

    @property
    def secret_key(self) -> str:
        """Key of the account's first keys."""
        return self.credentials.secret_key

    @property
    def account(self) -> str:
        """The account's number (UIN)."""
        return self._world.uin

    @property
    def environment(self) -> Mapping[str, str]:
        """The keys as the environment variables that Tencent's tools read."""
        return {
            "TENCENTCLOUD_SECRET_ID": self.secret_id,
            "TENCENTCLOUD_SECRET_KEY": self.secret_key,
        }

    def new_credentials(self, *, seconds: float | None = None) -> Credentials:
        """Make more keys; temporary ones, with a token, that live for *seconds* where given."""
        key = self._world.new_key(seconds=seconds)
        return Credentials(key.secret_id, key.secret_key, key.token)

    def add_role(self, name: str) -> str:
        """Make a role that the metadata service and ``AssumeRole`` know; return its resource name."""
        with self._world.lock:
            self._world.roles.add(name)
        return f"qcs::cam::uin/{self._world.uin}:roleName/{name}"

    # What is there

    def add_security_group(
        self,
        *,
        region: str = "ap-guangzhou",
        ingress: Sequence[Mapping[str, Any]] = (),
        egress: Sequence[Mapping[str, Any]] = (),
        name: str = "group",
    ) -> str:
        """Make a security group with rules as the API has them; return its id."""
        group = SecurityGroup(
            new_id("sg"),
            name,
            region,
            [dict(one) for one in ingress],
            [dict(one) for one in egress],
        )
        with self._world.lock:
            self._world.groups[group.id] = group
        return group.id

    def add_address_template(self, addresses: Sequence[str], *, name: str = "addresses") -> str:
        """Make a template of addresses, networks and ranges, which rules may name; return its id.

        A rule names it as ``"AddressTemplate": {"AddressId": id}``.
        """
        return self._add_template("ipm", addresses, name)

    def add_service_template(self, services: Sequence[str], *, name: str = "services") -> str:
        """Make a template of services such as ``tcp:80,443``, which rules may name; return its id.

        A rule names it as ``"ServiceTemplate": {"ServiceId": id}``, without protocol and port.
        """
        return self._add_template("ppm", services, name)

    def add_template_group(self, template_ids: Sequence[str], *, name: str = "templates") -> str:
        """Make a group of templates of one kind; return its id, for ``AddressGroupId`` or ``ServiceGroupId``.

        Raises:
            InvalidRequestError: They are of both kinds, none, or not there.
        """
        kinds = {one.partition("-")[0] for one in template_ids}
        if len(kinds) != 1 or not all(one in self._world.templates for one in template_ids):
            raise InvalidRequestError(f"not templates of one kind: {', '.join(template_ids)}")
        return self._add_template(f"{kinds.pop()}g", template_ids, name)

    def _add_template(self, prefix: str, members: Sequence[str], name: str) -> str:
        template = Template(new_id(prefix), name, list(members))
        with self._world.lock:
            self._world.templates[template.id] = template
        return template.id

    def add_instance(
        self,
        *,
        region: str = "ap-guangzhou",
        name: str = "target",
        system_disk: int | Path = 50 * GiB,
        data_disks: Sequence[int | Path] = (),
        disk_type: str = "CLOUD_PREMIUM",
        portable_data_disks: bool = True,
        state: str = "RUNNING",
        charge_type: Literal["POSTPAID_BY_HOUR", "PREPAID"] = "POSTPAID_BY_HOUR",
        restrict_state: Literal["NORMAL", "EXPIRED", "PROTECTIVELY_ISOLATED"] = "NORMAL",
        stop_charging_mode: Literal[
            "NOT_APPLICABLE", "KEEP_CHARGING", "STOP_CHARGING"
        ] = "NOT_APPLICABLE",
        architecture: Literal["x86_64", "arm64"] = "x86_64",
        instance_type: str | None = None,
        os_name: str = "CentOS 7.5 64bit",
        cpus: int = 2,
        memory: int = 4 * GiB,
        security_groups: Sequence[str] | None = None,
        public_address: str | None = "",
        private_address: str | None = None,
        rescue_system: Literal["sshd", "none"] = "sshd",
        rescue_names: Sequence[str] = (),
        rescue_serials: bool = True,
        rescue_disks: Mapping[str, Path] | None = None,
        python: Path | None = None,
        network: Path | None = None,
        boot: Literal["none", "qemu"] = "none",
    ) -> SimulatedInstance:
        """Make an instance.

        Args:
            region: Where.
            name: ``InstanceName``.
            system_disk: Bytes of a sparse file that is made, or a file to take as the disk.
            data_disks: The same for each data disk, in order.
            disk_type: ``LOCAL_BASIC``, say, for disks that know no snapshots.
            portable_data_disks: They can be detached.
            state: Where it begins; see :class:`SimulatedInstance`.
            charge_type: How it is paid for.
            restrict_state: ``EXPIRED``, say.
            stop_charging_mode: ``STOP_CHARGING`` for a stopped instance that costs nothing.
            architecture: ARM refuses rescue mode.
            instance_type: ``None``: one of the architecture.
            os_name: What the API believes to be installed.
            cpus: Number of processors.
            memory: Bytes.
            security_groups: Ids; ``None``: a group of its own which lets SSH in.
            public_address: ``None``: it has none; empty: the simulator's own address.
            private_address: ``None``: the simulator's own address.
            rescue_system: ``none``: in rescue mode there is the state, and nothing to log in to.
            rescue_names: Names of its disks in rescue mode, such as ``("vdb", "vda")``, the system disk's first; those
                for which there is none take the first ones free from ``vda`` on.
            rescue_serials: There each disk has its id as its serial number.
            rescue_disks: Disks that the rescue system has of its own: files by the names of the disks.
            python: The only Python of its rescue system, a path to an interpreter; ``None``: this machine's own.
            network: The network namespace of its rescue system, a file such as ``/run/netns/target``: sshd listens
                at *public_address* there, port 22. ``None``: this process's network, a port of its own.
            boot: ``qemu``: while it is running, its disks are booted in software emulation, and the port of
                :attr:`SimulatedInstance.ssh_address` leads to the guest's port 22.

        Raises:
            InvalidRequestError: No such region or state; a name is no disk's, or given twice.
            ConditionError: QEMU is not there, or does not start.
            NotFoundError: A file named as a disk is not there.
        """
        world = self._world
        if region not in REGIONS:
            raise InvalidRequestError(f"no such region: {region!r}")
        if state not in _tables.STATES or "RESCUE" in state:
            raise InvalidRequestError(f"an instance cannot begin in the state {state!r}")
        if security_groups is None:
            rule = {"Protocol": "TCP", "Port": "22", "CidrBlock": "0.0.0.0/0", "Action": "ACCEPT"}
            security_groups = [self.add_security_group(region=region, ingress=[rule])]
        instance_id = new_id("ins")
        zone = f"{region}-1"
        disks: list[Disk] = []
        for number, given in enumerate((system_disk, *data_disks)):
            if isinstance(given, Path) and not given.is_file():
                raise NotFoundError(f"{given} is no file", device=str(given))
            path = given if isinstance(given, Path) else world.new_file(given)
            disks.append(
                Disk(
                    new_id("disk"),
                    path,
                    path.stat().st_size,
                    "DATA_DISK" if number else "SYSTEM_DISK",
                    disk_type,
                    region,
                    zone,
                    instance_id,
                    portable=bool(number) and portable_data_disks,
                    charge_type=charge_type,
                )
            )
        public = self._address if public_address == "" else public_address
        arm = architecture == "arm64"
        rescue = RescueSystem(
            address=public or self._address,
            port=0,
            folder=world.folder,
            python=python,
            network=network,
            shown=Shown(tuple(rescue_names), rescue_serials, dict(rescue_disks or {})),
            simulated=rescue_system == "none",
        )
        guest = Guest(
            address=rescue.address,
            port=rescue.port,
            folder=world.folder,
            memory=memory,
            network=network,
            simulated=boot == "none",
        )
        machine = Machine(
            id=instance_id,
            name=name,
            region=region,
            zone=zone,
            state=state,
            charge_type=charge_type,
            architecture=architecture,
            instance_type=instance_type or ("SR1.MEDIUM4" if arm else "S5.MEDIUM4"),
            os_name=os_name,
            cpus=cpus,
            memory=memory,
            disks=disks,
            security_groups=list(security_groups),
            public_addresses=[public] if public else [],
            private_addresses=[private_address or self._address],
            restrict_state=restrict_state,
            stop_charging_mode=stop_charging_mode,
            rescue=rescue,
            guest=guest,
            history=[state],
        )
        with world.lock:
            world.machines[machine.id] = machine
            world.disks.update((disk.id, disk) for disk in disks)
        if state == "RUNNING":
            guest.start(machine.files)
        return SimulatedInstance(world, machine)

    def add_snapshot(self, disk_id: str, *, name: str = "Unnamed") -> str:
        """Make a snapshot of a disk as it is, done at once and whatever the quota says; return its id.

        Raises:
            NotFoundError: There is no such disk.
        """
        world = self._world
        with world.lock:
            disk = world.disks.get(disk_id)
            if disk is None:
                raise NotFoundError(f"there is no disk {disk_id}", device=disk_id)
        snapshot_id = new_id("snap")
        path = world.folder / f"{snapshot_id}.img"
        made = Snapshot(snapshot_id, name, disk, path, state="NORMAL")
        copy_disk(disk.path, made.path)
        with world.lock:
            world.snapshots[made.id] = made
        return made.id

    # What goes wrong

    def fail(
        self, kind: str, *, action: str | None = None, nth: int = 1, times: int | None = 1
    ) -> Fault:
        """Let calls fail.

        Args:
            kind: A name of the table in ``docs/howto/test-without-a-cloud.md``, or a code of Tencent's.
            action: Such as ``EnterRescueMode``; ``None``: any.
            nth: Which of these calls is the first to fail, counted from now; 1 is the next.
            times: How many fail from then on; ``None``: all.

        Returns:
            The fault; its ``hits`` says how often it has struck.

        Raises:
            InvalidRequestError: No such kind, or *nth* or *times* is below 1.
        """
        return self._faults.add(kind, action=action, nth=nth, times=times)

    def heal(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    def expire_tokens(self) -> int:
        """End the life of all temporary keys at once; return how many there were."""
        return self._world.expire_tokens()

    @property
    def clock_offset(self) -> float:
        """Seconds by which the cloud's clock is ahead of this machine's."""
        return self._world.clock_offset

    @clock_offset.setter
    def clock_offset(self, seconds: float) -> None:
        self._world.clock_offset = seconds

    # What happened

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """All requests of the API so far, without secrets."""
        return tuple(self._open[1].record)
