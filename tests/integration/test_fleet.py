"""Many migrations over threads, processes and dask; from the command line; called off, mended, continued."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import attrs
import pytest

from capabilities import require
from cvm_migrate import Options, events
from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import InvalidRequestError, TransientError
from cvm_migrate.fleet import Outcome, Plan, check_many, migrate_many
from cvm_migrate.testing import SimulatedInstance, TencentCloud
from rig import fleets, loopdev
from rig.disks import Pair, check, mounted_pair
from rig.fleets import plans, same
from rig.processes import wait_until
from rig.writers import writing

MiB = 1 << 20

pytestmark = pytest.mark.timeout(240)


@contextlib.contextmanager
def processes(count: int) -> Generator[concurrent.futures.Executor]:
    """A pool of processes; not forked, as this process has threads."""
    with concurrent.futures.ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        yield pool


class Record:
    """Remembers who had which events."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, events.Event]] = []

    def __call__(self, name: str, event: events.Event) -> None:
        self.seen.append((name, event))

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.seen}


def test_one_that_fails_does_not_hurt_the_others_and_a_repeat_does_what_is_missing(
    tmp_path: Path,
) -> None:
    given = plans(tmp_path, "a", "b", "c")
    (tmp_path / "b.img").rename(tmp_path / "elsewhere")
    ended: list[str] = []

    first = migrate_many(
        given, state=tmp_path / "state", on_done=lambda outcome: ended.append(outcome.name)
    )

    assert not first.done
    assert [outcome.state for outcome in first.outcomes] == ["finished", "failed", "finished"]
    assert sorted(ended) == ["a", "b", "c"]
    assert same(tmp_path, "a")
    assert same(tmp_path, "c")
    failure = first["b"].failure
    assert failure is not None
    assert failure.type == "NotFoundError"
    assert "b.img" in failure.message
    assert json.loads(first.to_json())["states"] == {"finished": 2, "failed": 1}
    assert "b.img" in first.to_text()
    assert "b.img" in first.to_html()

    (tmp_path / "elsewhere").rename(tmp_path / "b.img")
    record = Record()
    second = migrate_many(given, state=tmp_path / "state", observer=record)

    assert second.done
    assert same(tmp_path, "b")
    assert [outcome.earlier for outcome in second.outcomes] == [True, False, True]
    assert second["a"].report == first["a"].report
    steps = {name for name, e in record.seen if isinstance(e, events.PassStarted)}
    assert steps == {"b"}


def test_a_check_of_all_changes_nothing_and_says_which_are_possible(tmp_path: Path) -> None:
    given = plans(tmp_path, "a", "b")
    (tmp_path / "b.img").unlink()
    before = sorted(tmp_path.iterdir())

    report = check_many(given, state=tmp_path / "state")

    assert [outcome.state for outcome in report.outcomes] == ["possible", "not possible"]
    assert report["a"].check is not None
    assert not report.done
    assert "b.img" in report.to_text()
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_finished_is_not_checked_again(tmp_path: Path) -> None:
    given = plans(tmp_path, "a")
    migrate_many(given, state=tmp_path / "state")
    report = check_many(given, state=tmp_path / "state")

    assert report.done
    assert report["a"].state == "finished"
    assert report["a"].earlier


def test_a_plan_whose_disks_have_changed_is_not_taken_for_done(tmp_path: Path) -> None:
    (given,) = plans(tmp_path, "a")
    assert migrate_many([given], state=tmp_path / "state").done
    (tmp_path / "other.img").write_bytes(bytes(MiB))
    changed = attrs.evolve(given, source=f"image:{tmp_path}/other.img")

    outcome = migrate_many([changed], state=tmp_path / "state")["a"]

    assert outcome.state == "failed"
    assert outcome.failure is not None
    assert outcome.failure.type == "InvalidRequestError"
    assert "other.img" in outcome.failure.message
    assert "another name" in str(outcome.failure)
    assert same(tmp_path, "a")


@pytest.mark.slow
def test_called_off_running_ones_end_others_do_not_start_and_a_repeat_finishes(
    tmp_path: Path,
) -> None:
    given = plans(tmp_path, "a", "b", size=24 * MiB, bandwidth=MiB, batch=4 * MiB)
    cancel = CancelToken()

    def observe(name: str, event: events.Event) -> None:
        del name
        if isinstance(event, events.PassStarted):
            cancel.cancel()

    report = migrate_many(
        given, state=tmp_path / "state", workers=1, observer=observe, cancel=cancel
    )

    assert [outcome.state for outcome in report.outcomes] == ["cancelled", "not started"]
    assert list((tmp_path / "state").glob(".cancel*")) == []
    fast = [
        attrs.evolve(plan, options=attrs.evolve(plan.options, bandwidth=None)) for plan in given
    ]
    again = migrate_many(fast, state=tmp_path / "state")
    assert again.done
    assert same(tmp_path, "a")
    assert same(tmp_path, "b")


def test_a_fault_in_a_hook_is_that_plan_s_alone(tmp_path: Path) -> None:
    given = plans(tmp_path, "a", "b")

    def quiesce(plan: Plan) -> None:
        if plan.name == "a":
            fleets.fail(plan)

    report = migrate_many(given, state=tmp_path / "state", on_quiesced=quiesce)

    failure = report["a"].failure
    assert failure is not None
    assert failure.type == "LookupError"
    assert "no service called a" in failure.message
    assert failure.trace is not None
    assert "fleets.py" in failure.trace
    assert report["b"].done
    assert same(tmp_path, "b")


def test_a_fault_in_the_caller_ends_all_before_it_is_raised(tmp_path: Path) -> None:
    given = plans(tmp_path, "a")
    slow = plans(tmp_path, "b", size=24 * MiB, bandwidth=MiB)

    def done(outcome: Outcome) -> None:
        raise LookupError(outcome.name)

    before = set(threading.enumerate())
    with pytest.raises(LookupError, match="a"):
        migrate_many([*given, *slow], state=tmp_path / "state", on_done=done)

    left = {thread for thread in threading.enumerate() if thread.name.startswith("cvm-migrate")}
    assert left <= before


def test_processes_do_the_work_with_hooks_and_observers_of_modules(tmp_path: Path) -> None:
    given = plans(tmp_path, "a", "b")
    with processes(2) as pool:
        report = migrate_many(
            given,
            state=tmp_path / "state",
            executor=pool,
            observer=fleets.ignore,
            on_quiesced=fleets.say_where,
        )

    assert report.done, report.to_text()
    for name in ("a", "b"):
        assert same(tmp_path, name)
        assert int((tmp_path / f"{name}.pid").read_text()) != os.getpid()
        assert report[name].report is not None


def test_what_cannot_be_sent_to_a_process_says_so(tmp_path: Path) -> None:
    given = plans(tmp_path, "a")
    with processes(1) as pool:
        report = migrate_many(
            given, state=tmp_path / "state", executor=pool, on_quiesced=lambda _: None
        )

    failure = report["a"].failure
    assert failure is not None
    assert failure.type == "InvalidRequestError"
    assert "functions of a module" in str(failure)
    assert not (tmp_path / "a.copy").exists()


def test_a_worker_that_dies_is_reported_and_another_pool_continues(tmp_path: Path) -> None:
    given = plans(tmp_path, "a")
    with processes(1) as pool:
        report = migrate_many(
            given, state=tmp_path / "state", executor=pool, on_quiesced=fleets.die_once
        )

    failure = report["a"].failure
    assert failure is not None
    assert isinstance(failure.error, TransientError)
    with processes(1) as pool:
        again = migrate_many(
            given, state=tmp_path / "state", executor=pool, on_quiesced=fleets.die_once
        )
    assert again.done, again.to_text()
    assert same(tmp_path, "a")


def test_an_executor_that_was_shut_down_is_named(tmp_path: Path) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.shutdown()
    report = migrate_many(plans(tmp_path, "a"), state=tmp_path / "state", executor=pool)

    failure = report["a"].failure
    assert failure is not None
    assert "shut down" in str(failure)


def test_wrong_calls_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    given = plans(tmp_path, "a")
    with pytest.raises(InvalidRequestError, match="0 workers"):
        migrate_many(given, state=tmp_path / "state", workers=0)
    with pytest.raises(InvalidRequestError, match="two plans are named a"):
        migrate_many([*given, *given], state=tmp_path / "state")

    assert not (tmp_path / "state").exists()


def test_two_calls_for_one_state_do_not_work_on_one_migration(tmp_path: Path) -> None:
    given = plans(tmp_path, "a", size=24 * MiB, bandwidth=2 * MiB, batch=4 * MiB)
    inner: list[Outcome] = []

    def observe(name: str, event: events.Event) -> None:
        if isinstance(event, events.PassStarted) and not inner:
            inner.append(migrate_many(given, state=tmp_path / "state")[name])

    cancel = CancelToken()

    def end() -> None:
        wait_until(lambda: bool(inner), "the second call ends")
        cancel.cancel()

    timer = threading.Thread(target=end)
    timer.start()
    migrate_many(given, state=tmp_path / "state", observer=observe, cancel=cancel)
    timer.join()

    failure = inner[0].failure
    assert failure is not None
    assert "another process works with the state directory" in failure.message


def test_busy_disks_are_moved_side_by_side(tmp_path: Path) -> None:
    require("root", "loop", "mkfs.ext4")
    with contextlib.ExitStack() as stack:
        given: list[Plan] = []
        pairs: dict[str, Pair] = {}
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            pair = pairs[name] = stack.enter_context(mounted_pair(tmp_path / name))
            stack.enter_context(writing(pair.mount))
            given.append(
                Plan(
                    name=name,
                    source=f"local:{pair.source}",
                    target=f"local:{pair.target}",
                    options=Options(max_downtime=30),
                )
            )
        proven: dict[str, bool] = {}

        def compare(plan: Plan) -> None:
            pair = pairs[plan.name]
            proven[plan.name] = loopdev.read_direct(pair.source) == loopdev.read_direct(
                pair.target
            )

        report = migrate_many(given, state=tmp_path / "state", on_proven=compare)

        assert report.done, report.to_text()
        assert proven == {"a": True, "b": True}
        for name, pair in pairs.items():
            with loopdev.mounted(pair.target, tmp_path / f"copy-{name}"):
                pass
            assert check("ext4", pair.target)[0] == 0


# From the command line.


def plan_file(folder: Path, *names: str, options: str = "") -> Path:
    file = folder / "plans.toml"
    tables = [
        f'[[migrations]]\nname = "{name}"\nsource = "image:{folder}/{name}.img"\n'
        f'target = "image:{folder}/{name}.copy"\n'
        for name in names
    ]
    file.write_text(f"[defaults.options]\n{options}\n" + "\n".join(tables))
    return file


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "cvm_migrate", "fleet", *map(str, words)]


def call(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **more},
    )


def test_the_command_does_a_file_and_its_code_says_what_is_left(tmp_path: Path) -> None:
    plans(tmp_path, "a", "b")
    file = plan_file(tmp_path, "a", "b", "missing")
    state = tmp_path / "state"

    dry = call(file, "--dry-run", "--json")
    assert dry.returncode == 7, dry.stderr
    assert json.loads(dry.stdout)["states"] == {"possible": 2, "not possible": 1}

    first = call(file, "--state", state, "--json", "--report", tmp_path / "report.html")
    assert first.returncode == 2, first.stderr
    assert json.loads(first.stdout)["states"] == {"finished": 2, "failed": 1}
    assert "a: pass 1" in first.stderr
    assert "missing" in (tmp_path / "report.html").read_text()

    plans(tmp_path, "missing")
    second = call(file, "--state", state, "--workers", "2", "--quiet")
    assert second.returncode == 0, second.stderr
    assert second.stderr == ""
    assert "finished earlier" in second.stdout
    assert all(same(tmp_path, name) for name in ("a", "b", "missing"))


def test_a_wrong_file_or_call_ends_the_command_with_code_2(tmp_path: Path) -> None:
    plans(tmp_path, "a")
    file = plan_file(tmp_path, "a", options="max_downtme = 3")

    wrong = call(file, "--state", tmp_path / "state")
    assert wrong.returncode == 2
    assert "defaults: options: max_downtme: there is no such key here. Write max_downtime" in (
        wrong.stderr
    )
    no_state = call(plan_file(tmp_path, "a"))
    assert no_state.returncode == 2
    assert "--state" in no_state.stderr
    assert not (tmp_path / "a.copy").exists()


def test_an_interrupted_command_ends_all_and_can_be_repeated(tmp_path: Path) -> None:
    plans(tmp_path, "a", "b", size=24 * MiB)
    file = plan_file(tmp_path, "a", "b", options='bandwidth = "1M"\nbatch = "4M"')
    state = tmp_path / "state"
    with subprocess.Popen(
        command(file, "--state", state), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as running:
        copies = [tmp_path / "a.copy", tmp_path / "b.copy"]
        wait_until(lambda: all(copy.exists() for copy in copies), "both have begun")
        time.sleep(0.5)
        running.send_signal(signal.SIGTERM)
        output, _ = running.communicate(timeout=100)

    assert running.returncode == 130, output
    assert list(state.glob(".cancel*")) == []
    again = call(plan_file(tmp_path, "a", "b"), "--state", state)
    assert again.returncode == 0, again.stderr
    assert same(tmp_path, "a")
    assert same(tmp_path, "b")


@pytest.mark.slow
def test_the_command_moves_images_onto_instances_side_by_side(tmp_path: Path) -> None:
    require("root", "loop", "namespaces", "sshd", "sshpass")
    with TencentCloud(operation_seconds=0.02) as cloud:
        tables: list[str] = []
        instances: list[SimulatedInstance] = []
        for name in ("a", "b"):
            (tmp_path / f"{name}.img").write_bytes(os.urandom(6 * MiB))
            made = cloud.add_instance(system_disk=6 * MiB)
            instances.append(made)
            tables.append(
                f'[[migrations]]\nname = "{name}"\nsource = "image:{tmp_path}/{name}.img"\n'
                f'target = "cvm:{made.region}/{made.instance_id}"\n'
            )
        file = tmp_path / "plans.toml"
        defaults = f'[defaults]\ntarget = {{ endpoint = "{cloud.endpoint}", snapshots = false'
        # Both rescue systems are on this machine, so only one can have port 443, or any other.
        ports = iter(_free_ports(2))
        file.write_text(
            f"{defaults} }}\n"
            + "\n".join(
                table.replace('target = "', 'target = { at = "').rstrip()
                + f", data_port = {next(ports)} }}\n"
                for table in tables
            )
        )
        state = tmp_path / "state"
        cloud.fail("unauthorized", action="ExitRescueMode", times=None)
        left = call(file, "--state", state, "--json", **cloud.environment)
        waiting = [made.state for made in instances]
        cloud.heal()
        done = call(file, "--state", state, "--json", **cloud.environment)

        # What it leaves half way has a code of its own, and is told of each.
        assert left.returncode == 8, left.stdout + left.stderr
        assert waiting == ["RESCUE_MODE", "RESCUE_MODE"]
        document = json.loads(left.stdout)
        assert document["half_way"] == ["a", "b"]
        last = left.stderr.splitlines()[-2:]
        for line, name, made in zip(last, ("a", "b"), instances, strict=True):
            assert line.startswith(f"cvm-migrate: {name}: half way: {made.instance_id} ")
            assert str(state / name) in line
        assert json.loads(done.stdout)["half_way"] == []
        assert done.returncode == 0, done.stdout + done.stderr
        assert cloud.secret_key not in done.stdout + done.stderr + file.read_text()
        for name, made in zip(("a", "b"), instances, strict=True):
            assert made.state == "RUNNING"
            assert made.disks[0].path.read_bytes() == (tmp_path / f"{name}.img").read_bytes()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_dask_does_the_work_on_several_worker_processes(tmp_path: Path) -> None:
    require("distributed")
    distributed = importlib.import_module("distributed")
    given = plans(tmp_path, "a", "b", "c")
    (tmp_path / "b.img").unlink()
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=str(tmp_path / "dask"),
        ) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        report = migrate_many(
            given, state=tmp_path / "state", executor=executor, on_quiesced=fleets.say_where
        )

    assert [outcome.state for outcome in report.outcomes] == ["finished", "failed", "finished"]
    assert same(tmp_path, "a")
    assert same(tmp_path, "c")
    assert report["b"].failure is not None
    assert report["b"].failure.type == "NotFoundError"
    assert int((tmp_path / "a.pid").read_text()) != os.getpid()
