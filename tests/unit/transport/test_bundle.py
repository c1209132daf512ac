"""The agent's zip."""

from __future__ import annotations

import io
import zipfile

from cvm_migrate.transport import agent_bundle, bundle_name
from cvm_migrate.transport._bundle import agent_bundle as cached


def test_the_bundle_holds_the_agent_and_nothing_of_the_library() -> None:
    with zipfile.ZipFile(io.BytesIO(agent_bundle())) as archive:
        names = archive.namelist()
        assert archive.read("cvm_migrate/__init__.py") == b""
        assert archive.testzip() is None
    assert {"__main__.py", "cvm_migrate/__init__.py", "cvm_migrate/agent/wire.py"} <= set(names)
    assert all(
        name in {"__main__.py", "cvm_migrate/__init__.py"} or name.startswith("cvm_migrate/agent/")
        for name in names
    )


def test_the_same_sources_give_the_same_bytes_whenever_the_bundle_is_made() -> None:
    first = agent_bundle()
    cached.cache_clear()
    assert agent_bundle() == first


def test_the_name_of_the_bundle_holds_its_digest() -> None:
    assert bundle_name().startswith("cvm-migrate-agent-")
    assert len(bundle_name()) == len("cvm-migrate-agent-.zip") + 16


def test_the_bundle_is_small_enough_to_send_over_a_slow_line() -> None:
    assert len(agent_bundle()) < 300_000
