"""``python agent.zip`` and ``python -m cvm_migrate.agent``."""

from __future__ import absolute_import

import sys

# Nothing may be written on the machine, not even the byte code of its own Python's modules.
sys.dont_write_bytecode = True

from cvm_migrate.agent import main  # noqa: E402

if __name__ == "__main__":
    main.main(sys.argv[1:])
