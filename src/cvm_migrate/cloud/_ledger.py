"""The progress of a migration in Tencent's Migration Service Platform, for those who follow it in the console.

It is a ledger only: it moves nothing, and a migration does not depend on it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Literal

from cvm_migrate.cloud._calls import InstanceCalls

LedgerStatus = Literal["unstart", "migrating", "finish", "fail"]


class MigrationLedger:
    """One entry in the ledger.

    Args:
        instance: The target.
        now: The time, with its zone.
    """

    def __init__(
        self,
        instance: InstanceCalls,
        *,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._instance = instance
        self._now = now

    def register(self, name: str, *, source: str = "") -> str:
        """Make an entry, and return its id.

        A reply that is lost may leave a second entry behind, which does no harm.

        Args:
            name: What the console calls the migration.
            source: Address of the source.
        """
        # The console shows the times as those of China.
        time = self._now().astimezone(dt.timezone(dt.timedelta(hours=8)))
        text = time.strftime("%Y-%m-%d %H:%M:%S")
        answer = self._instance.read(
            lambda: self._instance.client.register_migration_task(
                {
                    "TaskType": "host",
                    "TaskName": name,
                    "ServiceSupplier": "cvm_migrate",
                    "CreateTime": text,
                    "UpdateTime": text,
                    "MigrateClass": "host:cvm",
                    "SrcInfo": {"Ip": source},
                    "DstInfo": {
                        "Region": self._instance.region,
                        "InstanceId": self._instance.instance_id,
                    },
                }
            ),
            doing="registering the migration",
        )
        return str(answer["TaskId"])

    def update(self, task_id: str, status: LedgerStatus) -> None:
        """Set how far the entry's migration is."""
        self._instance.read(
            lambda: self._instance.client.modify_migration_task_status(task_id, status),
            doing="reporting progress",
        )
