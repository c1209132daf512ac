"""The agent as one zip, made from the installed package itself.

Python runs it as ``python agent.zip``: any from 2.7, and any from 3.6 on.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

# The first moment that a zip can name: the same sources give the same bytes.
_TIME: Final = (1980, 1, 1, 0, 0, 0)


@functools.cache
def agent_bundle() -> bytes:
    """Return the agent as a zip file.

    The same sources give the same bytes with one version of zlib; no clock, path or user gets in.
    """
    members = dict(_sources(resources.files("cvm_migrate.agent"), "cvm_migrate/agent/"))
    # The package's own one is modern Python.
    members["cvm_migrate/__init__.py"] = b""
    members["__main__.py"] = members["cvm_migrate/agent/__main__.py"]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            target.writestr(entry, members[name])
    return archive.getvalue()


@functools.cache
def bundle_name() -> str:
    """Return the name of the bundle, which holds its digest: ``cvm-migrate-agent-0123456789abcdef.zip``."""
    return f"cvm-migrate-agent-{hashlib.sha256(agent_bundle()).hexdigest()[:16]}.zip"


def _sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            yield prefix + entry.name, entry.read_bytes()
