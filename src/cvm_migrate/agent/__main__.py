"""``python agent.zip`` and ``python -m cvm_migrate.agent``."""

from __future__ import absolute_import

import sys

# Nothing may be written on the machine, not even the byte code of its own Python's modules.
sys.dont_write_bytecode = True

assert sys.platform != "win32", "the agent runs on Linux"  # noqa: S101 - tells type checkers

from cvm_migrate.agent import main  # noqa: E402

if __name__ == "__main__":
    main.main(sys.argv[1:])
