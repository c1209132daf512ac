"""The examples run as they are, and the notebook's cells do in order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capabilities import require

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(300)

# What a notebook does with a cell, without a kernel's sockets: it runs it, and shows the value of its last line.
CELLS = """
import ast, json, sys

names = {"__name__": "__main__"}
for number, text in enumerate(json.load(sys.stdin), 1):
    body = ast.parse(text, f"cell {number}").body
    last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
    if last is not None:
        value = eval(compile(last, f"cell {number}", "eval"), names)
        page = getattr(value, "_repr_html_", None)
        print(page() if page else repr(value), flush=True)
"""


def run(*words: str | Path, told: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        input=told,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_own_orchestration_rehearses_holds_and_cuts_over() -> None:
    require("root", "loop", "mkfs.ext4", "partx", "namespaces", "sshd", "sshpass")
    told = run(EXAMPLES / "own_orchestration.py")

    assert told.count("database paused") == 2
    assert "the copy is sound: True" in told


def test_a_fleet_is_mended_and_goes_on() -> None:
    told = run(EXAMPLES / "fleet.py")

    assert "2 finished, 1 failed" in told
    assert told.rstrip().splitlines()[-2] == "migrations  3 finished"
    assert told.count("web-1: services stopped") == 1


def notebook() -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((EXAMPLES / "migration.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_runs_from_its_first_cell_to_its_last() -> None:
    require("root", "loop", "mkfs.ext4", "partx")
    told = run("-c", CELLS, told=json.dumps(["".join(cell["source"]) for cell in notebook()]))

    assert "<table" in told
    assert "proven identical" in told
    assert told.rstrip().endswith("(True, True)")


def test_the_notebook_is_kept_without_outputs() -> None:
    assert notebook()
    for cell in notebook():
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
