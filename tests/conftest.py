"""What every test run needs: left-overs of killed runs go first, and nothing may be left behind."""

from __future__ import annotations

import hypothesis
import pytest

from rig import loopdev

# How long an example takes says more about the machine's other work than about the code.
hypothesis.settings.register_profile(
    "ours", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ours")


def pytest_sessionstart(session: pytest.Session) -> None:
    del session
    loopdev.sweep()


def pytest_sessionfinish(session: pytest.Session) -> None:
    del session
    loopdev.sweep()
