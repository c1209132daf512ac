"""The Pythons of this machine that the agent must run on."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path


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
