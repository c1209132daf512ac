"""What processes that are started here inherit: the caller's environment, but for the cloud's keys."""

from __future__ import annotations

import os
from typing import Final

# None of ours reads them: the cloud is called from the caller's process alone. An environment can be read by whoever
# has the same user, and OpenSSH's client may be configured to send it on.
_CLOUD: Final = "TENCENTCLOUD_"


def inherited(**more: str) -> dict[str, str]:
    """Return the environment for a child.

    Args:
        more: Variables beside the inherited ones.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_CLOUD)}
    return {**kept, **more}
