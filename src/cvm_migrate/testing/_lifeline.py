"""Runs a command for as long as whoever started this program lives; never imported.

``python _lifeline.py COMMAND...``: the command is killed when standard input ends, which it does when the other end
is closed or its owner dies, however it dies.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys


def main() -> int:
    """Run the command; return its exit code."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=2)
    while process.poll() is None:
        readable, _, _ = select.select([0], [], [], 0.1)
        if readable and not os.read(0, 1):
            process.kill()
            process.wait()
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
