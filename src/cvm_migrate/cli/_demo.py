"""The demo: a disk that a program is writing to is moved to another, and the copy is proven.

As root the disk is a loop device with a partition table and a mounted ext4, and its target is the disk of a cloud
instance of the simulator. Without root it is an image file that is written to between the passes.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import tempfile
import threading
from pathlib import Path

import attrs

from cvm_migrate.cloud import CloudEndpoint, CvmInstance, StaticCredentials
from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.events import Observer
from cvm_migrate.migration import (
    CvmTarget,
    ImageFile,
    LocalHost,
    Migration,
    Options,
    Report,
    Result,
)
from cvm_migrate.testing import BusyDisk, Proof, TencentCloud, prove_copy
from cvm_migrate.units import KiB, MiB, TiB, format_size

_DOWNTIME = 1.0
_SECTOR = 512
_SMALLEST = 64 * MiB
# A PC partition table ends there.
_LARGEST = 1 * TiB


@attrs.frozen
class DemoResult(Result):
    """What the demo showed.

    Attributes:
        report: Of the migration.
        instance: The simulated cloud instance; ``None`` without root.
        states: The states it went through.
        proof: What was found on the mounted copy; ``None`` without root.
        identical: Without root: whether both image files are equal, byte for byte.
        not_shown: What could not be shown, and why.
    """

    report: Report
    instance: str | None
    states: tuple[str, ...]
    proof: Proof | None
    identical: bool | None
    not_shown: str | None

    @property
    def proven(self) -> bool:
        """Whether the copy is what it should be."""
        if self.proof is not None:
            return self.proof.holds and self.states[-1] == "RUNNING"
        return bool(self.identical)

    def to_text(self) -> str:
        """Return it as lines for a terminal."""
        lines = [self.report.to_text(), ""]
        if self.instance is not None:
            lines += [f"{self.instance}: {' -> '.join(self.states)}", ""]
        if self.proof is not None:
            proof = self.proof
            lines += [
                "the copy, mounted:",
                f"  file system    {'clean' if proof.clean else 'DAMAGED'} (e2fsck)",
                f"  SQLite         integrity_check: {proof.integrity}",
                (
                    f"  transactions   promised before the freeze up to {proof.promised}; in the copy up to "
                    f"{proof.last_transaction}, {proof.missing} missing"
                ),
                f"  files          {proof.files}",
            ]
        if self.identical is not None:
            lines.append(
                f"the copy is {'identical, byte for byte' if self.identical else 'DIFFERENT'}"
            )
        if self.not_shown is not None:
            lines.append(f"not shown: {self.not_shown}")
        lines.append("proven" if self.proven else "NOT PROVEN")
        return "\n".join(lines)


def demo(*, size: int, observer: Observer, without_root: bool = False) -> DemoResult:
    """Move a busy disk and prove the copy.

    Args:
        size: Bytes of the disk.
        observer: Sees the migration's events.
        without_root: Do what a caller without root can do.

    Raises:
        InvalidRequestError: No disk of that size can be shown.
    """
    if not _SMALLEST <= size <= _LARGEST or size % _SECTOR:
        raise InvalidRequestError(
            f"a disk of {size} bytes cannot be shown",
            remedy=f"Give a multiple of {_SECTOR} from {format_size(_SMALLEST)} to {format_size(_LARGEST)}",
        )
    with tempfile.TemporaryDirectory(prefix="cvm-migrate-demo-") as name:
        folder = Path(name)
        if without_root or not _is_root():
            return _with_image(folder, size, observer)
        return _with_disk(folder, size, observer)


def _is_root() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


def _with_disk(folder: Path, size: int, observer: Observer) -> DemoResult:
    promised: list[int] = []
    with BusyDisk(folder, size=size) as disk, TencentCloud() as cloud:
        simulated = cloud.add_instance(system_disk=size)
        instance = CvmInstance(
            simulated.instance_id,
            region=simulated.region,
            credentials=StaticCredentials(cloud.secret_id, cloud.secret_key),
            endpoint=CloudEndpoint(url=cloud.endpoint),
        )
        with Migration(
            source=LocalHost(disks=[str(disk.device)]),
            target=CvmTarget(instance, data_port=_free_port()),
            state=folder / "state",
            options=Options(max_downtime=_DOWNTIME),
            observer=observer,
        ) as migration:
            report = migration.run(on_quiesced=lambda: promised.append(disk.acknowledged))
        disk.stop_writer()
        proof = prove_copy(simulated.disks[0].path, folder, promised=promised[-1])
        return DemoResult(
            report=report,
            instance=simulated.instance_id,
            states=simulated.history,
            proof=proof,
            identical=None,
            not_shown="the cloud is the simulator: its rescue system is real, its API is checked against the SDK",
        )


def _free_port() -> int:
    """Return a port for the data: 443, as on a CVM, may be taken on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _with_image(folder: Path, size: int, observer: Observer) -> DemoResult:
    source, copy = folder / "source.img", folder / "copy.img"
    _fill(source, size)
    stop = threading.Event()
    writer = threading.Thread(target=_write, args=(source, size, stop), daemon=True)
    writer.start()

    def quiesce() -> None:
        stop.set()
        writer.join()

    try:
        with Migration(
            source=ImageFile(str(source)),
            target=ImageFile(str(copy)),
            state=folder / "state",
            options=Options(max_downtime=60, freeze_limit=300, rungs=()),
            observer=observer,
        ) as migration:
            report = migration.run(on_quiesced=quiesce)
    finally:
        quiesce()
    return DemoResult(
        report=report,
        instance=None,
        states=(),
        proof=None,
        identical=_equal(source, copy),
        not_shown="a mounted file system, change tracking by the kernel and a freeze need root; the source was an "
        f"image file of {format_size(size)} written to meanwhile, and digests were compared",
    )


def _fill(file: Path, size: int) -> None:
    """Make an image: a quarter noise, a quarter text, the rest a hole."""
    with file.open("wb") as image:
        for _ in range(0, size // 4, 1 << 20):
            image.write(os.urandom(1 << 20))
        line = b"a line of an old log that nobody reads\n" * 27000
        for _ in range(0, size // 4, len(line)):
            image.write(line)
        image.truncate(size)


def _write(file: Path, size: int, stop: threading.Event) -> None:
    """Overwrite a random 16 KiB about two hundred times a second until told to stop."""
    choose = random.Random(2)  # noqa: S311 - test data
    with file.open("r+b", buffering=0) as image:
        while not stop.wait(0.005):
            image.seek(choose.randrange(size // (16 * KiB)) * 16 * KiB)
            image.write(choose.randbytes(16 * KiB))


def _equal(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(1 << 20), right.read(1 << 20)
            if a != b:
                return False
            if not a:
                return True
