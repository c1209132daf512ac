"""Image files as sources and targets: capture, restore, resume, and what needs no root."""

from __future__ import annotations

import importlib.util
import random
import venv
from pathlib import Path

import pytest

from capabilities import require
from cvm_migrate import ImageFile, LocalHost, Migration, Options, events
from cvm_migrate.errors import (
    CancelledError,
    CvmMigrateError,
    InvalidRequestError,
    NotFoundError,
    StepOrderError,
)
from cvm_migrate.transport import AgentSession
from rig import loopdev
from rig.disks import check, mounted_pair
from rig.writers import writing

MiB = 1 << 20


def _image(path: Path, size: int, *, seed: int = 1) -> None:
    """A file with noise, text and a hole."""
    noise = random.Random(seed)
    with path.open("wb") as file:
        file.write(noise.randbytes(size // 3))
        file.write(b"a line of an old log\n" * (size // 3 // 21))
        file.truncate(size)


@pytest.mark.parametrize("size", [16 * MiB, 16 * MiB + 512, 512, 5 * 4096 + 1024])
def test_an_image_is_copied_whatever_its_size(size: int, tmp_path: Path) -> None:
    """Every byte arrives, also of a size that is no multiple of a chunk or of 4 KiB."""
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    _image(source, size)
    with Migration(ImageFile(source), ImageFile(target)) as migration:
        report = migration.run()

    assert target.read_bytes() == source.read_bytes()
    assert report.proven
    assert report.cutover is not None
    assert report.cutover.proven["read back"] == size
    assert report.cutover.proven["frozen"] == size


def test_the_comparison_of_the_final_pass_is_in_the_forecast(tmp_path: Path) -> None:
    """Without a tracker everything is compared in the end; but nobody stands still, so that no limit forbids it."""
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    _image(source, 16 * MiB)
    with Migration(
        ImageFile(source), ImageFile(target), options=Options(max_downtime=0.05)
    ) as migration:
        migration.prepare()
        full = migration.full_sync()
        report = migration.run()

    assert full.rate is not None
    assert full.predicted_downtime is not None
    # Nothing was compared before: the rate of sending stands for that of comparing.
    assert full.predicted_downtime >= 16 * MiB / full.rate * 0.999
    assert full.verdict == "fits"
    assert report.proven
    assert report.cutover is not None
    assert report.cutover.predicted_downtime is not None
    assert report.cutover.proven["frozen"] == 16 * MiB


def test_a_running_disk_is_captured_and_restored(tmp_path: Path) -> None:
    """A mounted, busy disk into an image, and the image onto another disk: identical and clean."""
    require("loop", "mkfs.ext4")
    image = tmp_path / "capture.img"
    found: list[bool] = []
    with mounted_pair(tmp_path) as pair:
        with (
            writing(pair.mount),
            Migration(
                LocalHost(disks=[pair.source]),
                ImageFile(image),
                options=Options(max_downtime=20),
            ) as migration,
        ):
            migration.run(
                on_proven=lambda: found.append(
                    loopdev.read_direct(pair.source) == image.read_bytes()
                )
            )
        with Migration(ImageFile(image), LocalHost(disks=[pair.target])) as migration:
            restored = migration.run()

        assert found == [True]
        assert restored.proven
        assert loopdev.read_direct(pair.target) == image.read_bytes()
        with loopdev.mounted(pair.target, tmp_path / "copy"):
            pass
        assert check("ext4", pair.target)[0] == 0


def test_two_images_are_two_disks(tmp_path: Path) -> None:
    """A list of image files is a host with several disks."""
    for name in ("a", "b"):
        _image(tmp_path / name, 4 * MiB, seed=ord(name))
    with Migration(
        [ImageFile(tmp_path / "a"), ImageFile(tmp_path / "b")],
        [ImageFile(tmp_path / "c"), ImageFile(tmp_path / "d")],
    ) as migration:
        migration.run()

    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "d").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_new_process_goes_on_and_sends_less(tmp_path: Path) -> None:
    """After a full sync was ended in the middle, another Migration sends only what is missing."""
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    source.write_bytes(random.Random(1).randbytes(48 * MiB))
    ends = ImageFile(source), ImageFile(target)
    options = Options(batch=8 * MiB, bandwidth=24 * MiB)

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.done >= 4 * MiB:
            migration.cancel()

    with Migration(
        *ends, state=tmp_path / "state", options=options, observer=observe
    ) as migration:
        migration.prepare()
        with pytest.raises(CancelledError):
            migration.full_sync()
    data, done = source.read_bytes(), target.read_bytes()
    arrived = sum(done[at : at + MiB] == data[at : at + MiB] for at in range(0, len(done), MiB))
    assert 4 <= arrived < 48
    with Migration(*ends, state=tmp_path / "state") as migration:
        assert migration.status().state == "prepared"
        report = migration.run()

    assert target.read_bytes() == source.read_bytes()
    assert report.proven
    assert report.passes[0].sent <= (48 - arrived) * MiB + MiB


def test_a_target_that_holds_the_data_is_compared(tmp_path: Path) -> None:
    """With compare=True only what differs goes over the network."""
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    _image(source, 16 * MiB)
    data = bytearray(source.read_bytes())
    data[5 * MiB + 17] ^= 1
    target.write_bytes(data)
    with Migration(
        ImageFile(source), ImageFile(target), options=Options(compare=True)
    ) as migration:
        migration.prepare()
        full = migration.full_sync()

    assert target.read_bytes() == source.read_bytes()
    assert full.compared == 16 * MiB
    assert full.sent == 64 << 10


def test_what_changes_in_a_source_without_a_tracker_is_found(tmp_path: Path) -> None:
    """Without a tracker, every pass compares; what was written meanwhile arrives."""
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    _image(source, 16 * MiB)
    with Migration(ImageFile(source), ImageFile(target)) as migration:
        migration.prepare()
        migration.full_sync()
        with source.open("r+b") as file:
            file.seek(16 * MiB - 1)
            file.write(b"x")
        delta = migration.delta_sync()
        with source.open("r+b") as file:
            file.write(b"y")
        migration.cutover()

    assert target.read_bytes() == source.read_bytes()
    assert delta.sent == 64 << 10
    assert not delta.disks[0].certain


def test_a_cancelled_step_can_be_followed_in_a_new_migration(tmp_path: Path) -> None:
    """Cancelling ends a step with CancelledError, and nothing more is done with this object."""
    _image(tmp_path / "a", 4 * MiB)
    with Migration(ImageFile(tmp_path / "a"), ImageFile(tmp_path / "b")) as migration:
        migration.prepare()
        migration.cancel()
        with pytest.raises(CancelledError):
            migration.full_sync()


def test_an_aborted_migration_is_not_bootable_and_can_begin_again(tmp_path: Path) -> None:
    """After abort the target is marked unusable; prepare() begins again and compares."""
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    _image(source, 8 * MiB)
    ends = ImageFile(source), ImageFile(target)
    with Migration(*ends, state=tmp_path / "state") as migration:
        migration.prepare()
        migration.full_sync()
        report = migration.abort()
        assert report.state == "aborted"
        assert not migration.status().bootable
        with pytest.raises(StepOrderError, match=r"prepare\(\)"):
            migration.full_sync()
    with Migration(*ends, state=tmp_path / "state") as migration:
        migration.prepare()
        full = migration.full_sync()
        migration.cutover()
        report = migration.finish()

    assert full.sent == 0
    assert full.compared == 8 * MiB
    assert report.proven


def test_a_finished_migration_gives_its_report_again(tmp_path: Path) -> None:
    """The report of a finished migration is in the state directory."""
    _image(tmp_path / "a", 4 * MiB)
    ends = ImageFile(tmp_path / "a"), ImageFile(tmp_path / "b")
    with Migration(*ends, state=tmp_path / "state") as migration:
        first = migration.run()
    with Migration(*ends, state=tmp_path / "state") as migration:
        again = migration.run()
        with pytest.raises(StepOrderError, match="state directory of its own"):
            migration.prepare()

    assert again.to_dict() == first.to_dict()
    assert again.to_html().startswith("<!doctype html>")
    assert "proven identical" in again.to_text()


@pytest.mark.parametrize("other", ["source", "target"])
def test_the_end_of_one_migration_is_not_told_of_another(other: str, tmp_path: Path) -> None:
    """A state directory that is used once more must not call a target proven that was never written."""
    ends = {"source": tmp_path / "source.img", "target": tmp_path / "target.img"}
    _image(ends["source"], 1 * MiB)
    state = tmp_path / "state"
    with Migration(*map(ImageFile, ends.values()), state=state) as migration:
        report = migration.run()
        assert 0 < report.seconds < 100

    others = ends | {other: tmp_path / "other.img"}
    with Migration(*map(ImageFile, others.values()), state=state) as migration:
        with pytest.raises(
            InvalidRequestError, match=f"of {ImageFile(ends['source']).description}"
        ):
            migration.run()
        assert not others[other].exists()

    with Migration(*map(ImageFile, ends.values()), state=state) as migration:
        assert migration.run().proven


def test_modules_that_an_agent_finds_by_its_environment_serve_its_pump_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of ``pip install --user`` or ``PYTHONPATH``: what one has, it agrees on for both."""
    venv.create(tmp_path / "python", symlinks=True)
    found = importlib.util.find_spec("xxhash")
    assert found is not None
    assert found.origin is not None
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "xxhash").symlink_to(Path(found.origin).parent)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    _image(source, 1 * MiB)
    python = str(tmp_path / "python" / "bin" / "python")
    with Migration(
        ImageFile(source, python=python), ImageFile(target, python=python)
    ) as migration:
        migration.prepare()
        agent = migration.agents[0]
        assert isinstance(agent, AgentSession)
        assert agent.digests[0] == "xxh3-128"
        assert migration.run().proven
    assert target.read_bytes() == source.read_bytes()


def test_a_source_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """No target is made for a source that does not exist."""
    with (
        Migration(ImageFile(tmp_path / "none"), ImageFile(tmp_path / "b")) as migration,
        pytest.raises(NotFoundError, match="none"),
    ):
        migration.run()

    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("source", "target", "remedy"),
    [("source.img", "no folder/copy.img", "Make the folder"), (".", "copy.img", "a file in it")],
)
def test_a_name_that_is_no_file_says_what_to_do(
    source: str, target: str, remedy: str, tmp_path: Path
) -> None:
    _image(tmp_path / "source.img", 1 * MiB)
    with Migration(ImageFile(tmp_path / source), ImageFile(tmp_path / target)) as migration:
        with pytest.raises(CvmMigrateError) as refused:
            migration.prepare()
        assert refused.value.remedy is not None
        assert remedy in refused.value.remedy
