"""The page about the simulated cloud says what the tables say."""

from __future__ import annotations

import re
from pathlib import Path

from cvm_migrate.testing._faults import KINDS
from cvm_migrate.testing._server import SERVICES

_PAGE = Path(__file__).parents[3] / "docs/howto/test-without-a-cloud.md"


def test_every_kind_of_fault_is_documented_with_what_becomes_of_the_work() -> None:
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| .* \| (done|not done) \|$", _PAGE.read_text(), re.MULTILINE
    )

    assert dict(rows) == {
        name: "done" if kind.after else "not done" for name, kind in KINDS.items()
    }


def test_every_action_is_documented() -> None:
    page = _PAGE.read_text()
    documented = {
        (name.lower(), version): set(re.findall(r"`(\w+)`", actions))
        for name, version, actions in re.findall(
            r"^\| ([A-Z]{3}) (\d{4}-\d\d-\d\d) \| (.*) \|$", page, re.MULTILINE
        )
    }

    assert documented == {service: set(actions) for service, actions in SERVICES.items()}
