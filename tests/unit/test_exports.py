"""What packages export, and that importing them changes nothing."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

import cvm_migrate
from capabilities import require


def packages() -> list[str]:
    """Every package of ours but the agent, which is a program."""
    found = ["cvm_migrate"]
    found += [
        module.name
        for module in pkgutil.walk_packages(cvm_migrate.__path__, "cvm_migrate.")
        if module.ispkg and not module.name.startswith("cvm_migrate.agent")
    ]
    return found


def exported(module: ModuleType) -> list[str]:
    names: list[str] = getattr(module, "__all__", [])
    return names


def in_ruff_s_order(names: list[str]) -> list[str]:
    """Constants, then classes, then the rest, each by name: what ruff's RUF022 keeps."""

    def rank(name: str) -> tuple[int, str]:
        if name.isupper():
            return 0, name
        return (1 if name[:1].isupper() else 2), name

    return sorted(names, key=rank)


@pytest.mark.parametrize("name", packages())
def test_all_is_sorted_exists_and_names_nothing_twice(name: str) -> None:
    module = importlib.import_module(name)
    names = exported(module)

    assert names == in_ruff_s_order(names)
    assert len(set(names)) == len(names)
    for public in names:
        assert hasattr(module, public), f"{name}.{public} does not exist"


@pytest.mark.parametrize("name", packages())
def test_what_is_exported_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)

    assert module.__doc__
    for public in exported(module):
        value: object = getattr(module, public)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert value.__doc__, f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", ["model", "delta", "disk", "osdetect"])
def test_packages_of_values_export_what_they_define(name: str) -> None:
    module = importlib.import_module(f"cvm_migrate.{name}")
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and not isinstance(value, ModuleType) and key != "annotations"
    }

    assert public == set(exported(module))


LIBRARY = [
    name
    for name in packages()
    if name.split(".")[-1] not in {"cli", "testing"} and ".testing" not in name
]

SCRIPT = """
import json, logging, os, signal, sys, threading, warnings

before = {
    "modules": set(sys.modules),
    "root": (logging.getLogger().level, list(logging.getLogger().handlers)),
    "disabled": logging.root.manager.disable,
    "filters": list(warnings.filters),
    "showwarning": warnings.showwarning,
    "signals": {n: signal.getsignal(n) for n in signal.valid_signals()},
    "excepthook": sys.excepthook,
    "environment": dict(os.environ),
    "directory": os.getcwd(),
    "umask": os.umask(0o22),
    "path": list(sys.path),
    "threads": threading.active_count(),
}
os.umask(before["umask"])

import importlib

without = json.loads(sys.argv[2])
if without:
    # The standard library has decided what system it is on, and imports what it needs.
    import concurrent.futures, ctypes, shutil, socket, sqlite3, ssl, subprocess, tempfile, types

    sys.platform = "win32"
    sys.modules["msvcrt"] = types.ModuleType("msvcrt")
    for name in without:
        sys.modules[name] = None
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)

umask = os.umask(0o22)
os.umask(umask)
loggers = {
    name: logger.handlers
    for name, logger in logging.root.manager.loggerDict.items()
    if isinstance(logger, logging.Logger) and name.startswith("cvm_migrate")
    and (logger.handlers or logger.level)
}
changed = [
    what
    for what, now in {
        "root": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "disabled": logging.root.manager.disable,
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "excepthook": sys.excepthook,
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "umask": umask,
        "path": list(sys.path),
        "threads": threading.active_count(),
    }.items()
    if now != before[what]
]
print(json.dumps({
    "changed": changed,
    "loggers": sorted(loggers),
    "modules": sorted(set(sys.modules) - before["modules"]),
}))
"""


def imported(
    names: list[str],
    *,
    prefix: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    without: Sequence[str] = (),
) -> dict[str, list[str]]:
    """What importing *names* did in a new interpreter; on Windows, as far as we can tell, if it lacks modules."""
    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-c", SCRIPT, json.dumps(names), json.dumps(without)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        cwd="/",
        env=dict(os.environ) if environment is None else environment,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    result: dict[str, list[str]] = json.loads(done.stdout)
    return result


def test_importing_the_library_changes_nothing() -> None:
    """No logging, warnings, signals, hooks, environment, threads."""
    result = imported(LIBRARY)

    assert result["changed"] == []
    assert result["loggers"] == []


def test_importing_the_library_does_not_import_the_sdk_or_what_only_linux_has() -> None:
    """The cloud's SDK takes a second and changes logging; it is imported when it is used."""
    modules = imported(["cvm_migrate"])["modules"]

    roots = {name.split(".")[0] for name in modules}
    assert roots.isdisjoint({"tencentcloud", "fcntl", "distributed", "dask"})


def test_all_of_the_library_can_be_imported_where_neither_the_sdk_nor_linux_is() -> None:
    """As on Windows, and where the extra for the cloud was not installed."""
    missing = ["tencentcloud", "fcntl", "grp", "pty", "pwd", "resource", "spwd", "termios", "tty"]

    result = imported(LIBRARY, without=missing)

    assert result["changed"] == []


@pytest.mark.parametrize("name", ["model", "delta", "disk", "osdetect", "events", "interfaces"])
def test_the_lower_layers_need_no_system_of_their_own(name: str) -> None:
    modules = imported([f"cvm_migrate.{name}"])["modules"]

    assert {"fcntl", "resource", "tencentcloud", "ssl"}.isdisjoint(modules)


def test_it_can_be_imported_by_a_user_that_nobody_knows() -> None:
    """As a service's user without a home, on a machine whose files are another one's."""
    require("user namespaces")

    result = imported(
        ["cvm_migrate"],
        prefix=["unshare", "--user"],
        environment={"PATH": os.environ["PATH"]},
    )

    assert result["changed"] == []


def test_it_can_be_imported_without_home() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}

    assert imported(["cvm_migrate"], environment=environment)["changed"] == []


def test_the_version_is_one() -> None:
    assert cvm_migrate.__version__.split(".")[0].isdigit()
