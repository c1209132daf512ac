"""The Pythons of this machine that the agent must run on."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

#: Those that the agent promises to run under and that can be had: tests ask for them with ``capabilities.python``.
VERSIONS = ("2.7", "3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
#: For tests that need not run under each: the two oldest kinds and the newest.
EXTREMES = ("2.7", "3.6", "3.13")


@functools.cache
def interpreters() -> dict[str, Path]:
    """Return the interpreters that pyenv has, by their short version: ``{"2.7": Path(...), "3.6": ...}``."""
    try:
        done = subprocess.run(["pyenv", "root"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    found: dict[tuple[int, int], Path] = {}
    for folder in Path(done.stdout.strip(), "versions").iterdir():
        version = re.fullmatch(r"(\d+)\.(\d+)\.\d+", folder.name)
        python = folder / "bin" / "python"
        if version is not None and python.exists():
            found[int(version[1]), int(version[2])] = python
    return {f"{major}.{minor}": found[major, minor] for major, minor in sorted(found)}
