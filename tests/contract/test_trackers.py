"""Every tracker, on real devices: what was written is reported, and a tracker that can't be sure says so."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

import cvm_migrate.agent
from capabilities import require, roomy_folder
from cvm_migrate.agent import tracking
from cvm_migrate.agent.tracking import ebpf, marks, system, tracefs
from cvm_migrate.agent.tracking.base import Refused, Tracker
from cvm_migrate.agent.tracking.instance import left_overs
from rig import loopdev
from rig.pythons import interpreters

MIB = 1 << 20
GIB = 1 << 30
NOISE = random.Random(3)
Spans = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root")


RUNGS: dict[str, Callable[[list[tracking.Device]], Tracker]] = {
    "ebpf-bytes": lambda devices: ebpf.start(devices, None, "bytes"),
    "ebpf-bits": lambda devices: ebpf.start(devices, None, "bits"),
    "tracefs": lambda devices: tracefs.start(devices, None),
}
SECTORS = [512, 4096]


@pytest.fixture(params=sorted(RUNGS))
def rung(request: pytest.FixtureRequest) -> Callable[[list[tracking.Device]], Tracker]:
    return RUNGS[request.param]


def as_device(path: Path) -> tracking.Device:
    number = path.stat().st_rdev
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
    return tracking.Device(str(path), size, os.major(number), os.minor(number))


def taken(tracker: Tracker, index: int = 0) -> tuple[Spans, Spans]:
    """Collect from a tracker that must be certain."""
    written, discarded, certain, reason, _ = tracker.collect(index)
    spans = list(written), list(discarded)

    assert certain, reason
    assert reason is None
    return spans


def write_at(device: Path, *offsets: int, length: int = 4096) -> None:
    """Write noise past the page cache."""
    with contextlib.ExitStack() as stack:
        fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        stack.callback(os.close, fd)
        buffer = stack.enter_context(mmap.mmap(-1, length))
        for offset in offsets:
            buffer[:] = NOISE.randbytes(length)
            os.pwrite(fd, buffer, offset)


def covers(spans: Spans, offset: int, length: int) -> bool:
    return any(start <= offset and offset + length <= start + size for start, size in spans)


def changed_pages(before: bytes, after: bytes) -> list[int]:
    """Offsets of the 4096-byte pieces that differ."""
    return [
        at
        for step in range(0, len(before), MIB)
        if before[step : step + MIB] != after[step : step + MIB]
        for at in range(step, min(step + MIB, len(before)), 4096)
        if before[at : at + 4096] != after[at : at + 4096]
    ]


def uncovered(pages: list[int], *many: Spans) -> list[int]:
    """Those pages that no range holds."""
    blocks = {
        at
        for spans in many
        for start, size in spans
        for at in range(start // 4096 * 4096, start + size, 4096)
    }
    return [at for at in pages if at not in blocks]


def check_shape(spans: Spans, size: int) -> None:
    end = -1
    for start, length in spans:
        assert start > end, "ranges ascend and do not touch"
        assert length > 0
        end = start + length
    assert end <= size


@pytest.mark.parametrize("sector", SECTORS)
def test_raw_writes_are_reported_once_and_only_they(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path, sector: int
) -> None:
    """First and last sector, and some between; nothing before, nothing after."""
    with (
        loopdev.loop_device(tmp_path / "disk", 128 * MIB, sector=sector) as path,
        rung([as_device(path)]) as tracker,
    ):
        assert taken(tracker) == ([], [])
        assert tracker.peek(0)[0] == 0
        offsets = [0, 5 * MIB + 4096, 77 * MIB, 128 * MIB - sector]
        write_at(path, *offsets, length=sector)
        assert tracker.peek(0)[0] == 4 * tracker.block
        written, discarded = taken(tracker)

        assert all(covers(written, offset, sector) for offset in offsets)
        assert sum(length for _, length in written) == 4 * tracker.block
        assert discarded == []
        check_shape(written, 128 * MIB)
        assert taken(tracker) == ([], [])
        assert tracker.peek(0)[3] >= 4


def test_the_end_of_a_disk_that_is_no_multiple_of_a_block_is_reported(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path
) -> None:
    size = 40 * MIB + 512 * 3
    with (
        loopdev.loop_device(tmp_path / "disk", size) as path,
        rung([as_device(path)]) as tracker,
    ):
        write_at(path, size - 512, length=512)
        written, _ = taken(tracker)

        assert covers(written, size - 512, 512)
        check_shape(written, size)


def test_a_long_write_is_reported_whole(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path
) -> None:
    """Ranges across pages and words of the map, at odd offsets."""
    chosen = random.Random(7)
    with (
        loopdev.loop_device(tmp_path / "disk", 512 * MIB) as path,
        rung([as_device(path)]) as tracker,
    ):
        for _ in range(30):
            length = chosen.randrange(1, 2048) * 4096
            offset = chosen.randrange(0, (512 * MIB - length) // 4096) * 4096
            write_at(path, offset, length=length)
            written, _ = taken(tracker)

            assert covers(written, offset, length)
            assert sum(size for _, size in written) <= length + 2 * tracker.block


@pytest.mark.parametrize("sector", SECTORS)
def test_discards_are_reported_apart_and_a_write_wins(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path, sector: int
) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 2 * GIB, sector=sector) as path,
        rung([as_device(path)]) as tracker,
    ):
        loopdev.run("blkdiscard", f"--offset={512 * MIB}", f"--length={GIB}", str(path))
        written, discarded = taken(tracker)

        assert written == []
        assert covers(discarded, 512 * MIB, GIB)
        assert taken(tracker) == ([], [])

        loopdev.run("blkdiscard", f"--offset={64 * MIB}", f"--length={8 * MIB}", str(path))
        write_at(path, 66 * MIB)
        write_at(path, 300 * MIB)
        loopdev.run("blkdiscard", f"--offset={300 * MIB}", f"--length={MIB}", str(path))
        written, discarded = taken(tracker)

        assert covers(written, 66 * MIB, 4096)
        assert covers(written, 300 * MIB, 4096)
        assert covers(discarded, 64 * MIB, MIB)
        assert covers(discarded, 67 * MIB, MIB)
        assert not covers(discarded, 66 * MIB, 4096)
        assert not covers(discarded, 300 * MIB, 4096)


def test_writing_zeroes_is_a_write(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path
) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", GIB) as path,
        rung([as_device(path)]) as tracker,
    ):
        loopdev.run(
            "blkdiscard", "--zeroout", f"--offset={32 * MIB}", f"--length={500 * MIB}", str(path)
        )
        written, discarded = taken(tracker)

        assert covers(written, 32 * MIB, 500 * MIB)
        assert discarded == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_what_a_file_system_changed_is_reported(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path, kind: str
) -> None:
    """Truth is the difference of two readings of the disk."""
    with loopdev.loop_device(tmp_path / "disk", 320 * MIB) as path:
        loopdev.make_file_system(path, kind)
        with rung([as_device(path)]) as tracker:
            before = loopdev.read_direct(path)
            reports: list[Spans] = []
            with loopdev.mounted(path, tmp_path / "mount") as at:
                for step in range(4):
                    folder = at / f"folder{step}"
                    folder.mkdir()
                    for n in range(60):
                        (folder / str(n)).write_bytes(NOISE.randbytes(20_000))
                    if step:
                        shutil.rmtree(at / f"folder{step - 1}")
                    loopdev.write_out(at)
                    reports += taken(tracker)
                loopdev.run("fstrim", str(at))
            reports += taken(tracker)
            after = loopdev.read_direct(path)
            # The file system can live on, and write, in a mount namespace that another process made meanwhile.
            reports += taken(tracker)
            pages = changed_pages(before, after)

            assert len(pages) > 100
            assert uncovered(pages, *reports) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sector", SECTORS)
def test_nothing_is_missed_while_collecting_from_a_busy_disk(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path, sector: int
) -> None:
    """Each collected range is read after the collection, as a copy would: the copy must become the disk."""
    size = 128 * MIB
    stop = threading.Event()
    counts = [0, 0]

    def write(path: Path, number: int) -> None:
        chosen = random.Random(number)
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, 32768) as buffer:
            while not stop.is_set():
                buffer[:8192] = chosen.randbytes(8192)
                length = chosen.choice([4096, 4096, 8192, 32768])
                offset = chosen.randrange(0, (size - length) // 4096 + 1) * 4096
                with memoryview(buffer) as view, view[:length] as piece:
                    os.pwrite(fd, piece, offset)
                counts[number] += 1
        os.close(fd)

    with (
        loopdev.loop_device(tmp_path / "disk", size, sector=sector) as path,
        rung([as_device(path)]) as tracker,
    ):
        copy = bytearray(loopdev.read_direct(path))
        threads = [threading.Thread(target=write, args=(path, n)) for n in range(2)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 12
        rounds = 0
        while time.monotonic() < end or sum(counts) < 4000:
            written, _ = taken(tracker)
            refresh(copy, path, written)
            rounds += 1
        stop.set()
        for thread in threads:
            thread.join()
        written, _ = taken(tracker)
        refresh(copy, path, written)

        assert rounds > 3
        assert changed_pages(bytes(copy), loopdev.read_direct(path)) == []
        assert taken(tracker) == ([], [])


def refresh(copy: bytearray, path: Path, spans: Spans) -> None:
    for offset, length in spans:
        copy[offset : offset + length] = loopdev.read_direct(path, offset, length)


def test_two_trackers_and_two_devices_do_not_mix(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        paths = [
            stack.enter_context(loopdev.loop_device(tmp_path / name, 64 * MIB)) for name in "abc"
        ]
        both = stack.enter_context(rung([as_device(paths[0]), as_device(paths[1])]))
        other = stack.enter_context(rung([as_device(paths[2])]))
        for n, path in enumerate(paths):
            write_at(path, n * MIB)
        block = both.block

        assert taken(both, 0) == ([(0, block)], [])
        assert taken(both, 1) == ([(MIB, block)], [])
        assert taken(other) == ([(2 * MIB, block)], [])


def test_writes_and_discards_through_a_partition_are_those_of_the_disk(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path
) -> None:
    with loopdev.loop_device(tmp_path / "disk", 256 * MIB) as path:
        loopdev.run("addpart", str(path), "1", str(32 * MIB // 512), str(128 * MIB // 512))
        try:
            part = Path(f"{path}p1")
            with rung([as_device(path)]) as tracker:
                write_at(part, MIB)
                loopdev.run(
                    "blkdiscard", f"--offset={64 * MIB}", f"--length={32 * MIB}", str(part)
                )
                written, discarded = taken(tracker)

                assert covers(written, 33 * MIB, 4096)
                assert covers(discarded, 96 * MIB, 32 * MIB)
            with pytest.raises(ValueError, match="partition"):
                tracking.start([as_device(part)], ["ebpf", "tracefs"], None)
        finally:
            loopdev.run("delpart", str(path), "1")


@contextlib.contextmanager
def zram(size: int) -> Generator[Path]:
    """A device that has bios only, no requests."""
    require("zram")
    control = Path("/sys/class/zram-control")
    number = (control / "hot_add").read_text().strip()
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
        yield Path(f"/dev/zram{number}")
    finally:
        end = time.monotonic() + 15
        while Path(f"/sys/block/zram{number}").exists():
            # Busy while udev or a probing program has it open.
            with contextlib.suppress(OSError):
                Path(f"/sys/block/zram{number}/reset").write_text("1")
                (control / "hot_remove").write_text(number)
            assert time.monotonic() < end


def test_bio_based_devices_are_tracked(
    rung: Callable[[list[tracking.Device]], Tracker],
) -> None:
    with zram(256 * MIB) as path, rung([as_device(path)]) as tracker:
        write_at(path, 0, 7 * MIB)
        loopdev.run("blkdiscard", f"--offset={64 * MIB}", f"--length={32 * MIB}", str(path))
        written, discarded = taken(tracker)

        assert written == [(0, tracker.block), (7 * MIB, tracker.block)]
        assert discarded == [(64 * MIB, 32 * MIB)]
        assert taken(tracker) == ([], [])


def test_partitions_that_come_make_one_collection_uncertain(tmp_path: Path) -> None:
    """Bios carry a partition's number, so the filter of tracefs has to be renewed."""
    with (
        loopdev.loop_device(tmp_path / "disk", 64 * MIB) as path,
        tracefs.start([as_device(path)], None) as tracker,
    ):
        loopdev.run("addpart", str(path), "1", "2048", "65536")
        try:
            assert tracker.collect(0)[2:4] == (False, "partitions came or went")
            assert taken(tracker) == ([], [])
            write_at(Path(f"{path}p1"), 0)
            assert taken(tracker)[0] == [(MIB, tracker.block)]
        finally:
            loopdev.run("delpart", str(path), "1")


def test_a_lost_answer_makes_the_next_collection_uncertain(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path
) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path,
        rung([as_device(path)]) as tracker,
    ):
        tracker.doubt(0, "it was lost")

        assert tracker.peek(0)[1:3] == (False, "it was lost")
        assert tracker.collect(0)[2:4] == (False, "it was lost")
        assert taken(tracker) == ([], [])


def test_a_tracker_can_be_closed_twice(
    rung: Callable[[list[tracking.Device]], Tracker], tmp_path: Path
) -> None:
    with loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path:
        tracker = rung([as_device(path)])
        tracker.close()
        tracker.close()


def instances() -> list[str]:
    with system.Tracefs() as root:
        return [each.name for each in Path(root.path, "instances").iterdir()]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_overflow_makes_one_collection_uncertain(tmp_path: Path) -> None:
    """A stopped tracer cannot read, so a small ring overflows; then all is well again."""
    with (
        loopdev.loop_device(tmp_path / "disk", 64 * MIB) as path,
        tracefs.start([as_device(path)], None, buffer_kb=8) as tracker,
    ):
        os.kill(tracker.pid, signal.SIGSTOP)
        write_at(path, *[n * 16384 for n in range(4096)], length=512)
        os.kill(tracker.pid, signal.SIGCONT)
        _, _, certain, reason, _ = tracker.collect(0)

        assert not certain
        assert reason is not None
        assert "overflowed" in reason
        assert taken(tracker) == ([], [])
        write_at(path, MIB)
        assert taken(tracker) == ([(MIB, tracker.block)], [])


def test_a_killed_tracer_is_uncertain_for_ever_and_its_instance_goes(tmp_path: Path) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path,
        tracefs.start([as_device(path)], None) as tracker,
    ):
        assert tracker.instance in instances()
        os.kill(tracker.pid, signal.SIGKILL)

        for _ in range(2):
            assert tracker.collect(0)[2:4] == (False, "the tracer died")
        assert tracker.peek(0)[1] is False
        assert tracker.instance not in instances()


def test_a_terminated_tracer_removes_its_instance(tmp_path: Path) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path,
        tracefs.start([as_device(path)], None) as tracker,
    ):
        os.kill(tracker.pid, signal.SIGTERM)
        wait_until(lambda: tracker.instance not in instances())

        assert tracker.collect(0)[2] is False


SCRIPT = """
    import json, os, sys
    sys.dont_write_bytecode = True
    sys.path.insert(0, sys.argv[1])
    from cvm_migrate.agent import tracking
    from cvm_migrate.agent.tracking import ebpf, tracefs
    path, size, rung = sys.argv[2], int(sys.argv[3]), sys.argv[4]
    number = os.stat(path).st_rdev
    devices = [tracking.Device(path, size, os.major(number), os.minor(number))]
    if rung == "tracefs":
        tracker = tracefs.start(devices, None)
    else:
        tracker = ebpf.start(devices, None, rung)
    def say(value):
        sys.stdout.write(json.dumps(value) + "\\n")
        sys.stdout.flush()
    say([getattr(tracker, "pid", 0), getattr(tracker, "instance", "")])
    for line in iter(sys.stdin.readline, ""):
        written, discarded, certain, reason, events = tracker.collect(0)
        say([list(written), list(discarded), certain, reason, events, tracker.block])
    tracker.close()
"""


class Script:
    """A tracker in a process under another Python, as the agent's zip would have it."""

    def __init__(self, python: Path, folder: Path, path: Path, rung: str) -> None:
        root = folder / "tree"
        if not root.exists():
            agent = Path(cvm_migrate.agent.__file__).parent
            shutil.copytree(
                agent, root / "cvm_migrate/agent", ignore=shutil.ignore_patterns("__pycache__")
            )
            (root / "cvm_migrate/__init__.py").touch()
        device = as_device(path)
        command = [str(python), "-E", "-s", "-c", textwrap.dedent(SCRIPT), str(root)]
        self.process = subprocess.Popen(
            [*command, str(path), str(device.size), rung],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.pid, self.instance = json.loads(self.stdout.readline())

    def collect(self) -> tuple[Spans, Spans, bool, str | None, int, int]:
        self.stdin.write("\n")
        self.stdin.flush()
        written, discarded, certain, reason, events, block = json.loads(self.stdout.readline())
        return (
            [(start, length) for start, length in written],
            [(start, length) for start, length in discarded],
            certain,
            reason,
            events,
            block,
        )

    def close(self) -> int:
        self.stdin.close()
        self.process.wait(60)
        self.stdout.close()
        return self.process.returncode


@contextlib.contextmanager
def script(python: Path, folder: Path, path: Path, rung: str) -> Generator[Script]:
    running = Script(python, folder, path, rung)
    try:
        yield running
    finally:
        running.close()


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.13"])
@pytest.mark.parametrize("name", ["bytes", "bits", "tracefs"])
def test_it_is_the_same_under_other_pythons(tmp_path: Path, version: str, name: str) -> None:
    require(f"python {version}")
    python = interpreters()[version]
    with loopdev.loop_device(tmp_path / "disk", 256 * MIB) as path:
        with script(python, tmp_path, path, name) as running:
            assert running.collect()[:4] == ([], [], True, None)
            write_at(path, 0, 9 * MIB, 256 * MIB - 4096)
            loopdev.run("blkdiscard", f"--offset={64 * MIB}", f"--length={64 * MIB}", str(path))
            written, discarded, certain, reason, events, block = running.collect()

            assert written == [(0, block), (9 * MIB, block), (256 * MIB - block, block)]
            assert discarded == [(64 * MIB, 64 * MIB)]
            assert (certain, reason) == (True, None)
            assert events >= 4
            assert running.collect()[:2] == ([], [])
        assert running.process.returncode == 0


def test_a_tracer_ends_with_its_killed_parent_and_removes_its_instance(tmp_path: Path) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path,
        script(Path(sys.executable), tmp_path, path, "tracefs") as running,
    ):
        assert running.instance in instances()
        running.process.kill()
        running.process.wait(30)
        wait_until(lambda: not Path(f"/proc/{running.pid}").exists())

        assert running.instance not in instances()


def test_what_a_killed_pair_left_is_cleared_by_the_next_start(tmp_path: Path) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path,
        script(Path(sys.executable), tmp_path, path, "tracefs") as running,
    ):
        # The parent first: it would clear up after its tracer.
        os.kill(running.process.pid, signal.SIGSTOP)
        os.kill(running.pid, signal.SIGKILL)
        running.process.kill()
        running.process.wait(30)
        wait_until(lambda: system.start_time(running.pid) is None)
        with tracefs.start([as_device(path)], None) as tracker:
            assert running.instance not in instances()
            assert tracker.instance in instances()


def test_a_live_tracer_is_no_left_over(tmp_path: Path) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path,
        tracefs.start([as_device(path)], None) as tracker,
        system.Tracefs() as root,
    ):
        assert tracker.instance not in left_overs(root.path + "/instances")


def test_probing_finds_both_rungs() -> None:
    assert tracking.probe() == {"ebpf": None, "tracefs": None}


def test_the_first_rung_that_can_is_taken_and_refusals_are_told(tmp_path: Path) -> None:
    with loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path:
        devices = [as_device(path)]
        for rungs in (["ebpf", "tracefs"], ["tracefs", "ebpf"]):
            tracker, refused = tracking.start(devices, rungs, 65536)
            assert tracker is not None
            with tracker:
                assert (tracker.rung, tracker.block, refused) == (rungs[0], 65536, {})
        tracker, refused = tracking.start(devices, [], None)
        assert (tracker, refused) == (None, {})


@pytest.mark.parametrize("block", [3000, 2048, 12288, 1 << 30])
def test_a_block_that_cannot_be_is_refused(tmp_path: Path, block: int) -> None:
    with (
        loopdev.loop_device(tmp_path / "disk", 16 * MIB) as path,
        pytest.raises(ValueError, match="block"),
    ):
        tracking.start([as_device(path)], ["ebpf"], block)


def test_without_rights_both_rungs_are_refused_with_the_reason() -> None:
    code = textwrap.dedent("""
        import os, json
        from cvm_migrate.agent import tracking
        # A Python in root's home can import nothing more after this.
        from cvm_migrate.agent.tracking import ebpf, tracefs
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        print(json.dumps(tracking.probe()))
        print(json.dumps(tracking.start([tracking.Device("d", 1 << 20, 7, 0)], ["ebpf", "tracefs"], None)))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    probed, (tracker, refused) = map(json.loads, done.stdout.splitlines())

    assert tracker is None
    for reasons in (probed, refused):
        assert "not permitted" in reasons["ebpf"]
        assert "root" in reasons["tracefs"]


def test_a_disk_of_16_tib_costs_little_memory() -> None:
    """Sizes of the maps; a write at the far end is found."""
    require("loop", "sparse 16 TiB")
    size = 16 << 40
    backing = roomy_folder() / f"cvm-migrate-{os.getpid()}"
    try:
        with backing.open("wb") as file:
            file.truncate(size)
        with loopdev.loop_device(backing) as path:
            for start in RUNGS.values():
                before = resident()
                with start([as_device(path)]) as tracker:
                    write_at(path, 0, size - 4096)
                    written, _ = taken(tracker)

                    assert covers(written, size - 4096, 4096)
                    assert resident() - before < 80 * MIB
    finally:
        backing.unlink(missing_ok=True)


def resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * mmap.PAGESIZE


def test_the_maps_of_any_disk_are_bounded() -> None:
    for form, generations in (("bits", 2), ("bytes", 1)):
        for shift in range(20, 56):
            block = marks.choose_block([1 << shift], form)
            pages = generations * (
                marks.pages_for(1 << shift, block, form)
                + marks.pages_for(1 << shift, block * marks.DISCARD_FACTOR, form)
            )
            assert pages * marks.PAGE <= 40 * MIB


def test_a_refusal_carries_its_reason() -> None:
    assert Refused("because").reason == "because"
