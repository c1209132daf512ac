"""What every test run needs: left-overs of killed runs go first, and nothing may be left behind."""

from __future__ import annotations

import pytest

from rig import loopdev


def pytest_sessionstart(session: pytest.Session) -> None:
    del session
    loopdev.sweep()


def pytest_sessionfinish(session: pytest.Session) -> None:
    del session
    loopdev.sweep()
