"""What an inspection found, and what to do about it."""

from __future__ import annotations

import enum

import attrs


class Severity(enum.Enum):
    """How much a finding matters.

    Attributes:
        BLOCKER: Going on is refused until it is mended.
        WARNING: Going on is possible; the caller should know the consequence.
        INFO: Good to know.
    """

    BLOCKER = "blocker"
    WARNING = "warning"
    INFO = "info"


@attrs.frozen
class Finding:
    """One thing that an inspection found.

    Attributes:
        severity: How much it matters.
        title: What is so, as one sentence without its full stop.
        evidence: What was seen that says so; empty where the title says it all.
        remedy: The sentence that says what to do; empty where there is nothing to do.
    """

    severity: Severity
    title: str
    evidence: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """Return it as one line for a terminal or a log."""
        text = f"{self.severity.value}: {self.title}"
        if self.evidence:
            text += f" ({self.evidence})"
        if self.remedy:
            text += f". {self.remedy}"
        return text
