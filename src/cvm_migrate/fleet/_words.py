"""What to write instead of a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def or_rather(word: str, known: Sequence[str]) -> str:
    """Return the sentence that names the nearest known word, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"Write {near[0]}"
    return f"Use one of {', '.join(known)}"
