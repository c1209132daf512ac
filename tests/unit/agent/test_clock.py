"""The agent's deadlines go by a clock that nobody sets."""

from __future__ import annotations

from pathlib import Path

import cvm_migrate.agent


def test_only_the_facts_ask_for_the_time_of_day() -> None:
    """It jumps when it is set, as NTP does after a boot: a deadline by it would pass early, or never."""
    folder = Path(cvm_migrate.agent.__file__).parent
    asking = {
        path.relative_to(folder).as_posix(): count
        for path in folder.rglob("*.py")
        if (count := path.read_text(encoding="utf-8").count("time.time("))
    }

    assert asking == {"facts.py": 1}
