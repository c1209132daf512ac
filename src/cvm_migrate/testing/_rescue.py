"""The rescue system of an instance, as the simulated cloud starts and ends it."""

from __future__ import annotations

from pathlib import Path


class RescueSystem:
    """Placeholder until the real one is here."""

    def __init__(self, address: str, folder: Path, python: Path | None) -> None:
        self.address = address
        self.port = 22

    def start(self, password: str, disks: list[Path]) -> None:
        """Start."""

    def stop(self) -> None:
        """Stop."""

    def restart(self) -> None:
        """Restart."""

    def close(self) -> None:
        """Stop for good."""
