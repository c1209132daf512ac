"""The fixture ``tencent_cloud`` for your own tests: ``pytest_plugins = ["cvm_migrate.testing.pytest_plugin"]``."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from cvm_migrate.testing import TencentCloud


@pytest.fixture
def tencent_cloud() -> Generator[TencentCloud]:
    """A simulated Tencent Cloud of this test alone; its operations take 20 ms."""
    with TencentCloud(operation_seconds=0.02) as cloud:
        yield cloud
