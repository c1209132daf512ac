"""Your own order of steps: a rehearsal, a maintenance window, a database that is paused for the cutover.

Everything is on this machine: a disk that programs write to, and a simulated Tencent Cloud. Needs Linux and root.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvm_migrate import CvmTarget, LocalHost, Migration, Options
from cvm_migrate.cloud import CloudEndpoint, CvmInstance, StaticCredentials
from cvm_migrate.testing import BusyDisk, TencentCloud, prove_copy
from cvm_migrate.units import MiB, format_seconds


class Database:
    """A service of the source that should be at rest when it is cut over.

    Yours has a command for this: ``FLUSH TABLES WITH READ LOCK``, ``pg_backup_start()``, ``systemctl stop``.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._over = threading.Event()
        self._may_write = threading.Lock()
        self._thread = threading.Thread(target=self._serve)
        self.orders = 0

    def _serve(self) -> None:
        with contextlib.closing(sqlite3.connect(self._file)) as database:
            database.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY)")
            while not self._over.wait(0.02):
                # Not for ever: if a cutover fails, nobody resumes.
                if not self._may_write.acquire(timeout=0.1):
                    continue
                try:
                    with database:
                        database.execute("INSERT INTO orders VALUES (?)", (self.orders + 1,))
                    self.orders += 1
                finally:
                    self._may_write.release()

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Serve until the block ends."""
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()

    def pause(self) -> None:
        """Finish the order that is being written, take no other."""
        self._may_write.acquire()
        print(f"database paused after order {self.orders}")

    def resume(self) -> None:
        """Go on."""
        self._may_write.release()
        print("database goes on")


def free_port() -> int:
    """Return a port for the data: 443, as on a CVM, may be taken on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def migrate(
    migration: Migration, disk: BusyDisk, database: Database, window_opens: datetime
) -> int:
    """Put the steps in our own order.

    Returns:
        The last transaction that the disk's own program, which nobody pauses, was promised before the cutover.
    """
    found = migration.check()
    print(found.to_text())
    if not found.possible:
        raise SystemExit("not possible: mend the blockers above")

    migration.prepare()
    migration.full_sync()

    # A rehearsal: how long will it take? The source stays the one in service, so it is taken back.
    rehearsal = migration.cutover(on_quiesced=database.pause, on_thawed=database.resume)
    print(f"rehearsal: {format_seconds(rehearsal.downtime)} of downtime")
    migration.delta_sync()

    # The copy is kept close until the window opens.
    print(f"holding until {window_opens:%H:%M:%S}")
    migration.hold(until=lambda: datetime.now(UTC) >= window_opens, interval=1.0)

    # This one is meant: what is in the copy is what the database had when it was paused. It goes on for the sake of
    # this example alone; yours stays at rest, as the copy is the server from here on.
    promised = disk.acknowledged
    migration.cutover(on_quiesced=database.pause, on_thawed=database.resume)
    return promised


def main() -> None:
    """Make a source and a cloud, migrate, look at the copy."""
    with (
        tempfile.TemporaryDirectory(prefix="own-orchestration-") as name,
        BusyDisk(Path(name), size=96 * MiB) as disk,
        TencentCloud() as cloud,
    ):
        simulated = cloud.add_instance(system_disk=disk.size)
        instance = CvmInstance(
            simulated.instance_id,
            region=simulated.region,
            credentials=StaticCredentials(cloud.secret_id, cloud.secret_key),
            endpoint=CloudEndpoint(url=cloud.endpoint),
        )
        database = Database(disk.mount_point / "orders.sqlite")
        with (
            database.running(),
            Migration(
                source=LocalHost(disks=[disk.device]),
                target=CvmTarget(instance, data_port=free_port()),
                state=Path(name, "state"),
                options=Options(max_downtime=30),
            ) as migration,
        ):
            promised = migrate(migration, disk, database, datetime.now(UTC) + timedelta(seconds=2))
            report = migration.finish()
        print(report.to_text())
        disk.stop_writer()
        proof = prove_copy(simulated.disks[0].path, Path(name), promised=promised)
        print(f"{simulated.instance_id} is {simulated.state}, the copy is sound: {proof.holds}")
        if not (report.proven and proof.holds and simulated.state == "RUNNING"):
            raise SystemExit("that should not be")


if __name__ == "__main__":
    main()
