"""The memory of the caller does not grow with the disk: neither while it is sent nor while digests are compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TiB = 1 << 40

# A process of its own: the tests' own one has grown by who knows how much.
_PROGRAM = """
import json, sys, threading
from pathlib import Path
from cvm_migrate import ImageFile, Migration, Options
from cvm_migrate.errors import CancelledError

def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

source, target, compare = sys.argv[1:]
options = Options(rungs=(), compare=compare == "compare")
with Migration(ImageFile(source), ImageFile(target), options=options) as migration:
    migration.prepare()
    before = kib("VmRSS")
    threading.Timer(6, migration.cancel).start()
    try:
        migration.full_sync()
    except CancelledError:
        pass
    print(json.dumps({"before": before, "most": kib("VmHWM")}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["send", "compare"])
def test_a_disk_of_2_tib_costs_the_caller_a_few_mib(how: str, tmp_path: Path) -> None:
    source = tmp_path / "source.img"
    with source.open("wb") as file:
        file.write(b"the beginning")
        file.truncate(2 * TiB)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, source, tmp_path / "target.img", how],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)

    # In KiB. All digests of such a disk would be 128 MiB, a byte for each of its chunks of 64 KiB 32 MiB.
    assert memory["most"] - memory["before"] < 32 << 10, memory
