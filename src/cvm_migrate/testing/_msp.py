"""The actions of MSP 2018-03-19: the ledger of third-party migration tools."""

from __future__ import annotations

from typing import Any, Final

from cvm_migrate.testing._actions import Action, page
from cvm_migrate.testing._api_errors import ApiError
from cvm_migrate.testing._world import Call, MigrationTask, World, new_id, utc

Answer = dict[str, Any]

_STATES: Final = ("unstart", "migrating", "finish", "fail")
_TYPES: Final = ("database", "file", "host")
_PLACE: Final = {"Region": str, "Ip": str, "Port": str, "InstanceId": str}


def _task(world: World, call: Call) -> MigrationTask:
    task = world.tasks.get(call.params["TaskId"])
    if task is None:
        raise ApiError("ResourceUnavailable", f"There is no task `{call.params['TaskId']}`.")
    return task


def _register(world: World, call: Call) -> Answer:
    if call.params["TaskType"] not in _TYPES:
        raise ApiError("InvalidParameterValue", "TaskType must be database, file or host.")
    task = MigrationTask(new_id("msp"), call.params, [("unstart", world.now())])
    with world.lock:
        world.tasks[task.id] = task
    return {"TaskId": task.id}


def _modify(world: World, call: Call) -> Answer:
    status: str = call.params["Status"]
    if status not in _STATES:
        raise ApiError("InvalidParameterValue", f"Status must be one of {', '.join(_STATES)}.")
    with world.lock:
        _task(world, call).states.append((status, world.now()))
    return {}


def _describe(world: World, call: Call) -> Answer:
    with world.lock:
        return {
            "TaskStatus": [
                {
                    "Status": status,
                    "Progress": "100" if status == "finish" else "0",
                    "UpdateTime": utc(moment),
                }
                for status, moment in _task(world, call).states
            ]
        }


def _list(world: World, call: Call) -> Answer:
    with world.lock:
        tasks = list(world.tasks.values())
        return {
            "TotalCount": len(tasks),
            "Tasks": [
                {
                    "TaskId": task.id,
                    "TaskName": task.params["TaskName"],
                    "MigrationType": task.params["TaskType"],
                    "Status": task.states[-1][0],
                    "ProjectId": 0,
                    "ProjectName": "",
                    "SrcInfo": task.params["SrcInfo"],
                    "DstInfo": task.params["DstInfo"],
                    "Updated": utc(task.states[-1][1]),
                }
                for task in page(tasks, {"Limit": 10, **call.params})
            ],
        }


def _deregister(world: World, call: Call) -> Answer:
    with world.lock:
        del world.tasks[_task(world, call).id]
    return {}


_REQUIRED: Final = (
    "TaskType",
    "TaskName",
    "ServiceSupplier",
    "CreateTime",
    "UpdateTime",
    "MigrateClass",
    "SrcInfo",
    "DstInfo",
)

ACTIONS: Final[dict[str, Action]] = {
    "RegisterMigrationTask": Action(
        _register,
        {
            **dict.fromkeys(_REQUIRED, str),
            "SrcInfo": _PLACE,
            "DstInfo": _PLACE,
            "SrcAccessType": str,
            "SrcDatabaseType": str,
            "DstAccessType": str,
            "DstDatabaseType": str,
        },
        frozenset(_REQUIRED),
        regional=False,
    ),
    "ModifyMigrationTaskStatus": Action(
        _modify,
        {"Status": str, "TaskId": str},
        frozenset({"Status", "TaskId"}),
        regional=False,
    ),
    "DescribeMigrationTask": Action(
        _describe, {"TaskId": str}, frozenset({"TaskId"}), regional=False
    ),
    "ListMigrationTask": Action(
        _list, {"Offset": int, "Limit": int, "ProjectId": int}, regional=False
    ),
    "DeregisterMigrationTask": Action(
        _deregister, {"TaskId": str}, frozenset({"TaskId"}), regional=False
    ),
}
