"""The whole story: a disk moved onto a simulated CVM in waiting for migration, over its real sshd."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import pytest

from capabilities import require
from cvm_migrate import (
    CvmTarget,
    ImageFile,
    Migration,
    Options,
    Severity,
    SshHost,
    parse_endpoint,
)
from cvm_migrate.cloud import StaticCredentials
from cvm_migrate.errors import (
    ConditionError,
    CredentialsError,
    CvmMigrateError,
    HostKeyError,
    InvalidRequestError,
    NotFoundError,
    StepOrderError,
    UnsafeTargetError,
)
from cvm_migrate.migration import parse_cvm
from cvm_migrate.testing import SimulatedInstance, TencentCloud
from cvm_migrate.units import GiB, MiB
from rig.cloud import instance
from rig.sshd import sshd


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def simulated() -> Iterator[TencentCloud]:
    require("root", "loop", "namespaces", "sshd", "sshpass")
    with TencentCloud(operation_seconds=0.02) as running:
        yield running


def target(simulated: TencentCloud, made: SimulatedInstance) -> CvmTarget:
    return CvmTarget(instance(simulated, made), data_port=free_port())


def image(folder: Path, *sizes: int) -> tuple[ImageFile, list[bytes]]:
    """Make a source of image files with zeroes and other bytes; return it with what it holds."""
    paths: list[str] = []
    contents: list[bytes] = []
    for number, size in enumerate(sizes):
        content = os.urandom(size // 2) + bytes(size - size // 2)
        path = folder / f"source{number}.img"
        path.write_bytes(content)
        paths.append(str(path))
        contents.append(content)
    return ImageFile(paths), contents


def held(made: SimulatedInstance, contents: list[bytes]) -> list[bool]:
    found: list[bool] = []
    for disk, content in zip(made.disks, contents, strict=True):
        # They may be far larger than what was written.
        with disk.path.open("rb") as file:
            found.append(file.read(len(content)) == content)
    return found


def occupied(simulated: TencentCloud) -> tuple[SimulatedInstance, bytes]:
    """An instance with a system of its own on its disk, and that disk's content."""
    made = simulated.add_instance(system_disk=8 * MiB)
    before = os.urandom(8 * MiB)
    made.disks[0].path.write_bytes(before)
    return made, before


def assert_is_as_before(simulated: TencentCloud, made: SimulatedInstance, before: bytes) -> None:
    """It runs its own system again, and no port is open for a migration."""
    assert made.state == "RUNNING"
    assert held(made, [before]) == [True]
    assert rules(simulated, made) == []


def rules(simulated: TencentCloud, made: SimulatedInstance) -> list[str]:
    cvm = instance(simulated, made)
    listed = cvm.security_groups.rules(cvm.describe().security_groups)
    return [rule.description for rule in listed if "cvm_migrate" in rule.description]


def test_a_server_s_disks_are_moved_onto_an_instance_which_then_runs_them(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    made = simulated.add_instance(system_disk=12 * MiB, data_disks=[6 * MiB])
    source, contents = image(tmp_path, 12 * MiB, 5 * MiB)
    to = target(simulated, made)

    with Migration(source, to, state=tmp_path / "state") as migration:
        report = migration.run()

    assert report.proven
    assert held(made, contents) == [True, True]
    assert made.state == "RUNNING"
    assert to.health is not None
    assert to.health.healthy
    assert rules(simulated, made) == []
    assert made.history == (
        "RUNNING",
        "ENTER_RESCUE_MODE",
        "RESCUE_MODE",
        "EXIT_RESCUE_MODE",
        "STOPPED",
        "STARTING",
        "RUNNING",
    )


@pytest.mark.parametrize(
    ("names", "serials", "own"),
    [(("vdc", "vdb"), True, True), (("sdb", "sda"), False, False)],
    ids=["by serial numbers, beside the rescue system's own disk", "by sizes"],
)
def test_disks_that_come_under_other_names_get_what_is_theirs(
    simulated: TencentCloud,
    tmp_path: Path,
    names: tuple[str, str],
    serials: bool,  # noqa: FBT001 - a parameter
    own: bool,  # noqa: FBT001 - a parameter
) -> None:
    rescue = tmp_path / "rescue.img"
    rescue.write_bytes(b"rescue" * MiB)
    # The API counts in whole GiB: only such sizes tell disks apart.
    made = simulated.add_instance(
        system_disk=4 * MiB if serials else 2 * GiB,
        data_disks=[4 * MiB if serials else GiB],
        rescue_names=names,
        rescue_serials=serials,
        rescue_disks={"vda": rescue} if own else {},
    )
    source, contents = image(tmp_path, 4 * MiB, 4 * MiB)
    to = CvmTarget(instance(simulated, made), data_port=free_port(), snapshots=False)

    with Migration(source, to) as migration:
        prepared = migration.prepare()
        migration.full_sync()
        migration.cutover()
        migration.finish()

    assert [disk.target for disk in prepared.disks] == [f"/dev/{name}" for name in names]
    assert held(made, contents) == [True, True]
    assert rescue.read_bytes() == b"rescue" * MiB


def test_disks_that_cannot_be_told_apart_are_refused_before_anything_is_written(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    """Two of one size without serial numbers, whose names may follow any order."""
    made = simulated.add_instance(
        system_disk=4 * MiB,
        data_disks=[4 * MiB],
        rescue_names=("vdb", "vda"),
        rescue_serials=False,
    )
    before = [os.urandom(4 * MiB) for _ in made.disks]
    for disk, content in zip(made.disks, before, strict=True):
        disk.path.write_bytes(content)
    source, contents = image(tmp_path, 4 * MiB, 4 * MiB)

    with Migration(source, target(simulated, made)) as migration:
        with pytest.raises(UnsafeTargetError, match="cannot be told which disk") as caught:
            migration.prepare()
        assert held(made, before) == [True, True]
        migration.abort()
    named = CvmTarget(
        instance(simulated, made), disks=["/dev/vdb", "/dev/vda"], data_port=free_port()
    )
    with Migration(source, named) as migration:
        migration.run()

    for disk in made.disks:
        assert disk.disk_id in caught.value.message
    assert "name the target's disks" in str(caught.value.remedy)
    assert made.state == "RUNNING"
    assert held(made, contents) == [True, True]


def test_the_data_s_port_is_tried_before_the_rescue_mode_and_measured_in_it(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    """The source asks whether its packets get there, and once an agent is there, how fast they go."""
    made = simulated.add_instance(system_disk=8 * MiB)
    source, _ = image(tmp_path, 8 * MiB)
    port = free_port()

    with Migration(source, CvmTarget(instance(simulated, made), data_port=port)) as migration:
        before = migration.check().findings
        assert made.state == "RUNNING"
        after = migration.prepare().findings
        again = migration.prepare().findings
        migration.abort()

    (tried,) = [one for one in before if f"port {port} of 127.0.0.1" in one.title]
    assert tried.severity is Severity.INFO
    assert "answers the source" in tried.title
    (measured,) = [one for one in after if one.title.startswith("data goes to 127.0.0.1")]
    assert measured.severity is Severity.INFO
    assert f"port {port}, at " in measured.title
    assert "MTU" in measured.title
    assert after == again


def test_a_port_that_the_source_cannot_reach_is_named_before_the_rescue_mode(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    """What will be done instead is said as well."""
    made = simulated.add_instance(system_disk=8 * MiB)
    source, _ = image(tmp_path, 8 * MiB)
    ways: list[tuple[Literal["auto", "direct"], str]] = [
        ("auto", "through SSH"),
        ("direct", "prepare() fails"),
    ]
    for route, says in ways:
        # "This network" can be no one's address: the system refuses at once.
        to = CvmTarget(instance(simulated, made), data_port=free_port(), data_host="0.0.0.1")
        with Migration(source, to, options=Options(route=route)) as migration:
            report = migration.check()

        (warning,) = [one for one in report.findings if "of 0.0.0.1" in one.title]
        assert warning.severity is Severity.WARNING
        assert "unreachable" in warning.evidence
        assert "data_host=" in warning.remedy
        assert says in warning.remedy
    assert made.state == "RUNNING"


def test_a_migration_that_is_given_up_leaves_the_instance_as_it_was(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    made, before = occupied(simulated)
    source, contents = image(tmp_path, 8 * MiB)

    with Migration(source, target(simulated, made), state=tmp_path / "state") as migration:
        migration.prepare()
        migration.full_sync()
        assert held(made, contents) == [True]
        # The rescue system in which the disk is looked at once it has been put back is another one.
        made.set_rescue_names("vdc")
        migration.abort()

    assert_is_as_before(simulated, made, before)


@pytest.mark.parametrize("failures", [1, 2])
def test_disks_that_were_put_back_are_looked_at_before_anything_is_started(
    simulated: TencentCloud, tmp_path: Path, failures: int
) -> None:
    """The API takes the roll-back, which then fails, and says nothing."""
    made, before = occupied(simulated)
    source, contents = image(tmp_path, 8 * MiB)
    with Migration(source, target(simulated, made), state=tmp_path / "state") as migration:
        migration.prepare()
        migration.full_sync()
    simulated.fail("failed-operation", action="ApplySnapshot", times=failures)

    to = target(simulated, made)
    with Migration(source, to, state=tmp_path / "state") as another:
        if failures == 2:
            with pytest.raises(ConditionError, match="not what they were") as caught:
                another.abort()
            assert "do not start it" in str(caught.value.remedy)
            assert made.state == "STOPPED"
            assert held(made, contents) == [True]
            assert "abort()" in str(another.half_way)
        report = another.abort()

    assert report.state == "aborted"
    assert to.aborted is not None
    assert any("looked at in rescue mode" in text for text in to.aborted.done)
    assert_is_as_before(simulated, made, before)


def test_a_new_process_goes_on_in_a_rescue_mode_whose_password_it_does_not_know(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    made = simulated.add_instance(system_disk=8 * MiB)
    source, contents = image(tmp_path, 8 * MiB)
    with Migration(source, target(simulated, made), state=tmp_path / "state") as first:
        first.prepare()
        first.full_sync()

    other = simulated.add_instance(system_disk=8 * MiB)
    with pytest.raises(InvalidRequestError, match=f"{made.instance_id}.*{other.instance_id}"):
        Migration(source, target(simulated, other), state=tmp_path / "state")
    assert other.history == ("RUNNING",)

    with Migration(source, target(simulated, made), state=tmp_path / "state") as second:
        findings = second.check().findings
        report = second.run()

    assert not [one.title for one in findings if one.severity is Severity.BLOCKER]
    assert report.proven
    assert held(made, contents) == [True]
    assert made.history.count("RESCUE_MODE") == 2
    assert made.state == "RUNNING"


def test_what_forbids_it_is_refused_before_anything_is_touched(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    small = simulated.add_instance(system_disk=1 << 30)
    arm = simulated.add_instance(architecture="arm64")
    expired = simulated.add_instance(restrict_state="EXPIRED")
    big = tmp_path / "big.img"
    with big.open("wb") as file:
        file.truncate(2 << 30)

    for made, says in ((small, "smaller"), (arm, "ARM"), (expired, "expired")):
        with Migration(ImageFile(str(big)), target(simulated, made)) as migration:
            blockers = [
                finding.title
                for finding in migration.check().findings
                if finding.severity is Severity.BLOCKER
            ]
            with pytest.raises(ConditionError, match=says) as caught:
                migration.prepare()

        assert any(says in title for title in blockers), blockers
        assert caught.value.remedy
        assert made.history == (made.history[0],)
    assert all(request.action.startswith("Describe") for request in simulated.requests)


def test_what_does_not_fit_is_refused_by_prepare_alone_too(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    """Nobody called check(): the instance's own system must not be stopped for nothing."""
    made = simulated.add_instance(system_disk=1 << 30)
    big, missing = tmp_path / "big.img", tmp_path / "missing.img"
    with big.open("wb") as file:
        file.truncate(2 << 30)

    for source, error in (
        (ImageFile(str(big)), ConditionError),
        (ImageFile([str(big), str(big) + "2"]), CvmMigrateError),
        (ImageFile(str(missing)), NotFoundError),
    ):
        with (
            Migration(source, target(simulated, made)) as migration,
            pytest.raises(error) as caught,
        ):
            migration.prepare()
        assert caught.value.remedy or caught.value.device

    assert made.history == ("RUNNING",)
    assert all(request.action.startswith("Describe") for request in simulated.requests)


@pytest.mark.parametrize("lasting", [True, False])
def test_a_migration_that_another_process_could_not_give_up_is_warned_of(
    simulated: TencentCloud,
    tmp_path: Path,
    lasting: bool,  # noqa: FBT001 - a parameter
) -> None:
    made = simulated.add_instance(system_disk=MiB, rescue_system="none")
    source, _ = image(tmp_path, MiB)
    state = tmp_path / "state" if lasting else None

    with Migration(source, target(simulated, made), state=state) as migration:
        titles = [finding.title for finding in migration.check().findings]

    assert any("no state directory" in title for title in titles) is not lasting


def test_bad_names_are_refused_before_anything_is_touched(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    made = simulated.add_instance(region="ap-beijing", rescue_system="none")
    source, _ = image(tmp_path, MiB)
    elsewhere = CvmTarget(instance(simulated, made, region="ap-guangzhou"))

    with (
        Migration(source, elsewhere) as migration,
        pytest.raises(NotFoundError, match="region"),
    ):
        migration.prepare()
    with pytest.raises(StepOrderError, match="prepare"):
        elsewhere.open_agent()
    with pytest.raises(InvalidRequestError, match="cannot be a source"):
        elsewhere.check("source")


def test_no_failure_of_the_way_in_leaves_an_instance_that_abort_does_not_mend(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    """The instance waits for migration, but no agent can be started there."""
    made = simulated.add_instance(system_disk=8 * MiB)
    source, _ = image(tmp_path, 8 * MiB)
    to = CvmTarget(instance(simulated, made), python="/no/such/python", data_port=free_port())

    with Migration(source, to, state=tmp_path / "state") as migration:
        with pytest.raises(CvmMigrateError):
            migration.prepare()
        assert made.state == "RESCUE_MODE"
        migration.abort()

    assert made.state == "RUNNING"


class Watcher:
    """Reads what others can read while something runs: command lines, environments, and files below some folders."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        # Of each command line.
        self.environments: dict[bytes, set[bytes]] = {}
        self.files: dict[Path, set[bytes]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            over = self._over.is_set()
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                # Processes come and go, and so do files.
                with contextlib.suppress(OSError):
                    # In this order: until a new process has a program of its own, both are those of its parent.
                    command = file.read_bytes()
                    environment = file.with_name("environ").read_bytes()
                    self.environments.setdefault(command, set()).add(environment)
            for folder in self._folders:
                for file in folder.rglob("*"):
                    with contextlib.suppress(OSError):
                        if file.is_file():
                            self.files.setdefault(file, set()).add(file.read_bytes())
            if over:
                return
            self._over.wait(0.02)

    def everything(self) -> bytes:
        return b"\n".join(
            part
            for found in (self.environments, self.files)
            for name, parts in found.items()
            for part in (os.fsencode(name), *parts)
        )


def test_no_secret_is_on_a_command_line_in_an_environment_a_file_a_log_or_an_event_while_it_runs(
    simulated: TencentCloud,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the first call to the last, the way back of one that is given up included."""
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, name)
    made = simulated.add_instance(system_disk=4 * MiB)
    source, _ = image(tmp_path, 4 * MiB)
    keys = simulated.new_credentials(seconds=3600)
    assert keys.token is not None
    cvm = instance(
        simulated,
        made,
        credentials=StaticCredentials(keys.secret_id, keys.secret_key, keys.token),
    )
    state, temporary = tmp_path / "state", tmp_path / "tmp"
    temporary.mkdir()
    # Python's own way to say where temporary files go, of this process and of every child.
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    told: list[str] = []
    passwords: list[str] = []

    def migration() -> Migration:
        return Migration(
            source,
            CvmTarget(cvm, data_port=free_port()),
            state=state,
            observer=lambda event: told.append(repr(event)),
        )

    with Watcher(state, temporary) as watcher:
        with migration() as given_up:
            told.append(repr(given_up.check()))
            given_up.prepare()
            # The password is known to this object, which does not enter again.
            passwords.append(cvm.enter_migration().password)
            given_up.full_sync()
            simulated.fail("unauthorized", action="ApplySnapshot")
            with pytest.raises(CvmMigrateError) as caught:
                given_up.abort()
            told.append("".join(traceback.format_exception(caught.value)))
            given_up.abort()
        with migration() as again:
            again.prepare()
            passwords.append(cvm.enter_migration().password)
            again.full_sync()
            again.cutover()
            told.append(repr(again.finish().to_dict()))

    shown = watcher.everything().decode(errors="replace") + "".join(told) + caplog.text
    assert any(b"ssh" in command for command in watcher.environments)
    assert any(file.name == "state.sqlite3" for file in watcher.files)
    assert any("known-hosts" in file.name for file in watcher.files)
    assert len(set(passwords)) == 2
    for secret in (*passwords, keys.secret_key, keys.token, simulated.secret_key):
        assert secret not in shown
    # Of the agents' TLS, whose keys nobody but they ever sees.
    # In a PEM text, or in what repr() and JSON make of its line ends.
    assert not re.search(r"PRIVATE KEY-----(\s|\\n)+[A-Za-z0-9+/]{40}", shown)


@pytest.mark.slow
def test_the_command_line_moves_a_disk_onto_an_instance(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    made = simulated.add_instance(system_disk=8 * MiB)
    source, contents = image(tmp_path, 8 * MiB)
    to = f"cvm:{made.region}/{made.instance_id}?endpoint={simulated.endpoint}&data_port={free_port()}"
    command = [sys.executable, "-m", "cvm_migrate", "run", "--source", source.description]
    command += ["--target", to, "--state", str(tmp_path / "state"), "--json"]
    keys = simulated.new_credentials(seconds=3600)
    assert keys.token is not None
    given = {
        "TENCENTCLOUD_SECRET_ID": keys.secret_id,
        "TENCENTCLOUD_SECRET_KEY": keys.secret_key,
        "TENCENTCLOUD_TOKEN": keys.token,
    }

    with Watcher() as watcher:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, **given},
        )

    assert done.returncode == 0, done.stderr
    assert held(made, contents) == [True]
    assert made.state == "RUNNING"
    for secret in (keys.secret_key, keys.token):
        assert secret not in done.stdout + done.stderr
    # What it was given in its environment, it gives to none of its children.
    own = watcher.environments.pop(b"".join(os.fsencode(word) + b"\0" for word in command))
    assert any(keys.secret_key.encode() in environment for environment in own)
    names = b" ".join(watcher.environments)
    assert b"--pump" in names
    assert b"ServerAliveInterval" in names
    shown = watcher.everything()
    for secret in (keys.secret_key, keys.token):
        assert secret.encode() not in shown


@pytest.mark.parametrize("bandwidth", [None, 8 * MiB])
def test_the_time_is_the_least_while_nothing_is_known_of_the_way_to_an_instance(
    bandwidth: int | None, simulated: TencentCloud, tmp_path: Path
) -> None:
    made = simulated.add_instance(system_disk=8 * MiB, rescue_system="none")
    source, _ = image(tmp_path, 8 * MiB)

    with Migration(
        source, CvmTarget(instance(simulated, made)), options=Options(bandwidth=bandwidth)
    ) as migration:
        report = migration.check()

    assert report.estimated_seconds is not None
    assert report.estimated_at_least is (bandwidth is None)
    assert ("full sync, at least" in report.to_text()) is (bandwidth is None)


def test_a_source_whose_host_key_is_not_known_is_refused_before_the_instance_is_touched(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    require("sshd")
    made = simulated.add_instance(system_disk=8 * MiB, rescue_system="none")
    image(tmp_path, 8 * MiB)
    empty = tmp_path / "known_hosts"
    empty.touch()
    with sshd(tmp_path / "server", path=Path("/usr/bin")) as server:
        told = server.target
        source = SshHost(
            told.destination,
            port=told.port,
            disks=[str(tmp_path / "source0.img")],
            identity=told.identity,
            known_hosts=empty,
        )
        with Migration(source, CvmTarget(instance(simulated, made))) as migration:
            report = migration.check()
            with pytest.raises(HostKeyError, match="fingerprint"):
                migration.prepare()

    assert any("host key" in one.title and one.remedy for one in report.blockers)
    assert made.state == "RUNNING"
    assert all(one.action.startswith("Describe") for one in simulated.requests)


def test_a_dry_run_shows_the_plan_and_touches_nothing(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    made = simulated.add_instance(system_disk=8 * MiB, rescue_system="none")
    source, _ = image(tmp_path, 8 * MiB)
    to = f"cvm:{made.region}/{made.instance_id}?endpoint={simulated.endpoint}"
    command = [sys.executable, "-m", "cvm_migrate", "run", "--dry-run", "--source"]

    done = subprocess.run(
        [*command, source.description, "--target", to, "--report", str(tmp_path / "plan.html")],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **simulated.environment},
    )

    assert done.returncode == 0, done.stderr
    assert "its own system will be shut down" in done.stdout
    assert "prepare() opens it" in done.stdout
    assert made.instance_id in (tmp_path / "plan.html").read_text()
    assert made.history == ("RUNNING",)
    assert all(request.action.startswith("Describe") for request in simulated.requests)


@pytest.mark.slow
def test_a_fresh_process_gives_up_what_the_command_left_half_way(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    made, before = occupied(simulated)
    source, contents = image(tmp_path, 8 * MiB)
    to = f"cvm:{made.region}/{made.instance_id}?endpoint={simulated.endpoint}&data_port={free_port()}"
    state = str(tmp_path / "state")
    simulated.fail("unauthorized", action="ExitRescueMode", times=None)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cvm_migrate", *words, "--state", state, "--json", "--quiet"],
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, **simulated.environment},
        )

    ran = call("run", "--source", source.description, "--target", to)
    stuck, written = made.state, held(made, contents)
    simulated.heal()
    aborted = call("abort")

    assert (stuck, written) == ("RESCUE_MODE", [True])
    assert ran.returncode == 8, ran.stderr
    assert "rescue mode" in json.loads(ran.stdout)["error"]["half_way"]
    assert "abort --state" in ran.stderr.splitlines()[-1]
    assert aborted.returncode == 0, aborted.stderr
    assert_is_as_before(simulated, made, before)


def test_a_report_says_when_the_instance_is_half_way(
    simulated: TencentCloud, tmp_path: Path
) -> None:
    made = simulated.add_instance(system_disk=4 * MiB)
    source, _ = image(tmp_path, 4 * MiB)

    def told(migration: Migration) -> list[str]:
        titles = [finding.title for finding in migration.report().findings]
        return [title for title in titles if "half way" in title]

    with Migration(source, target(simulated, made), state=tmp_path / "state") as migration:
        assert (migration.half_way, told(migration)) == (None, [])
        migration.prepare()
        assert "rescue mode" in str(migration.half_way)
        # Nobody could know its host key: which one was taken is reported.
        (pinned,) = [one for one in migration.report().findings if "host key" in one.title]
        assert str(made.host_key).split()[1] in pinned.evidence
        assert len(told(migration)) == 1
        migration.full_sync()
        migration.cutover()
        simulated.fail("unauthorized", action="ExitRescueMode")
        with pytest.raises(CvmMigrateError) as refused:
            migration.finish()
        assert refused.value.remedy
        assert made.state == "RESCUE_MODE"
        assert len(told(migration)) == 1
        assert "This migration is half way" in migration.report().to_text()
        migration.finish()
        assert (migration.half_way, told(migration)) == (None, [])
    assert made.state == "RUNNING"


def test_the_command_line_s_text_names_region_instance_disks_and_settings() -> None:
    plain = parse_cvm("cvm:ap-guangzhou/ins-0a1b2c3d")
    full = parse_endpoint(
        "cvm:ap-guangzhou/ins-0a1b2c3d/dev/vda,/dev/vdb?endpoint=http://127.0.0.1:80&data_port=8443&snapshots=no",
        more={"cvm": parse_cvm},
    )

    assert plain.disks == ("/dev/vda",)
    assert plain.instance.description == "cvm:ap-guangzhou/ins-0a1b2c3d"
    assert full.description == "cvm:ap-guangzhou/ins-0a1b2c3d/dev/vda,/dev/vdb"
    assert full.data_port == 8443


@pytest.mark.parametrize(
    "text",
    [
        "cvm:ins-0a1b2c3d",
        "cvm:ap-guangzhou/sg-1",
        "cvm:ap-guangzhou-3/ins-0a1b2c3d",
        "cvm:ap-guangzhou/ins-0a1b2c3d?port=1",
        "cvm:ap-guangzhou/ins-0a1b2c3d?data_port=x",
        "cvm:ap-guangzhou/ins-0a1b2c3d?data_port=0",
        "cvm:ap-guangzhou/ins-0a1b2c3d?snapshots=maybe",
        "cvm:ap-guangzhou/ins-0a1b2c3d/dev/vda,vdb",
    ],
)
def test_a_text_that_names_no_instance_says_how_to_write_one(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_cvm(text)

    assert caught.value.remedy


def test_missing_credentials_are_an_error_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", "AKID")
    source, _ = image(tmp_path, MiB)

    with (
        Migration(source, parse_cvm("cvm:ap-guangzhou/ins-0a1b2c3d")) as migration,
        pytest.raises(CredentialsError, match="TENCENTCLOUD_SECRET_KEY"),
    ):
        migration.prepare()
