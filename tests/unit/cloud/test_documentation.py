"""The pages about the cloud say what the tables say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cvm_migrate.cloud import STATES, CloudClient, state_diagram

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def states() -> str:
    return (DOCS / "howto/instance-states.md").read_text(encoding="utf-8")


def test_the_page_of_states_has_the_diagram_of_the_table(states: str) -> None:
    assert f"```text\n{state_diagram()}\n```" in states


def test_the_page_of_states_has_a_row_for_each_state(states: str) -> None:
    for state, rule in STATES.items():
        assert f"| `{state}` | {rule.kind.value} | {rule.meaning} | {rule.advice} |" in states


def test_the_page_of_calls_lists_the_actions_that_the_client_has() -> None:
    page = (DOCS / "reference/cloud.md").read_text(encoding="utf-8")
    section = page.partition("## Calls")[2].partition("\n## ")[0]
    listed = {
        action
        for row in re.findall(r"^\| (?:cvm|cbs|vpc|sts|msp) \| (.*) \|$", section, re.MULTILINE)
        for action in re.findall(r"`(\w+)`", row)
    }
    methods = {
        "".join(word.capitalize() for word in name.split("_"))
        for name, value in vars(CloudClient).items()
        if not name.startswith("_") and callable(value) and name != "call"
    }

    assert listed == methods
