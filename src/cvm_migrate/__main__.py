"""``python -m cvm_migrate`` is ``cvm-migrate``."""

from __future__ import annotations

import sys

from cvm_migrate.cli import main

if __name__ == "__main__":
    sys.exit(main())
