"""Sessions of the project; ``./run`` sets up what they need and calls them.

They run in the environment that called nox: ``./run`` has made it, and a second one would cost minutes.
"""

from __future__ import annotations

import os
import sys

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "old-pythons", "docs", "changelog", "tests"]

PYTHON = sys.executable
IN_CI = os.environ.get("CI") == "true"
# More workers than processors: most tests wait for disks, processes and time.
WORKERS = str((os.cpu_count() or 1) + 1)


def _tool(session: nox.Session, *command: str) -> None:
    session.run(PYTHON, "-m", *command)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    _tool(session, "ruff", "check", ".")
    _tool(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with two checkers, for Linux and for Windows."""
    _tool(session, "mypy", "--platform", "linux")
    # The agent asks Linux for its disks; its Windows reader comes in a later issue. What imports it must be right
    # on Windows too.
    agent = ("--exclude", "src/cvm_migrate/agent/", "--follow-imports", "silent")
    _tool(session, "mypy", "--platform", "win32", *agent, "src/cvm_migrate")
    _tool(session, "pyright", "--pythonpath", PYTHON)


@nox.session
def layers(session: nox.Session) -> None:
    """Check that imports point downwards only."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    session.run(PYTHON, "-c", program)


@nox.session(name="old-pythons")
def old_pythons(session: nox.Session) -> None:
    """Check that the agent says nothing that Python 2.7 and 3.6 would not understand."""
    session.run(
        PYTHON,
        "-c",
        "from vermin import main; main()",
        "--quiet",
        "--no-tips",
        "--violations",
        "--backport",
        "typing",
        "--eval-annotations",
        "-t=2.7-",
        "-t=3.6-",
        "src/cvm_migrate/agent",
    )


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    _tool(session, "sphinx", "-W", "-n", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session
def changelog(session: nox.Session) -> None:
    """Check that the fragments make a changelog."""
    session.run(PYTHON, "-m", "towncrier", "build", "--draft", "--version", "next", silent=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests: side by side, then those that measure time, with nothing beside them.

    Without ``CI=true``, slow ones are left out. Arguments replace the choice of tests.
    """
    if session.posargs:
        _tool(session, "pytest", *session.posargs)
        return
    if not IN_CI:
        choice = "not alone and not cloud and not slow"
        _tool(session, "pytest", "-n", WORKERS, "--dist", "worksteal", "-m", choice)
        return
    # Thousands of real processes, disks and mounts on a shared machine: one that fails is tried once more, and the
    # summary lists it as RERUN, so that it is seen and mended. A defect that shows twice is a failure.
    again = ("--reruns", "1", "-raR", "--durations=25")
    _tool(
        session,
        "pytest",
        "-n",
        WORKERS,
        "--dist",
        "worksteal",
        "-m",
        "not alone and not cloud",
        *again,
    )
    _tool(session, "pytest", "-m", "alone and not cloud", *again)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmark against other tools, on the same disks in one run: over loopback, then over a slower link.

    Arguments replace both runs by one.
    """
    if session.posargs:
        session.run(PYTHON, "-m", "benchmarks.macro", *session.posargs)
        return
    session.run(PYTHON, "-m", "benchmarks.macro")
    session.run(PYTHON, "-m", "benchmarks.macro", "--link", "1gbit", "--no-slowdown")
