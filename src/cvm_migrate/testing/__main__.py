"""``python -m cvm_migrate.testing``: a simulated Tencent Cloud with one instance, until it is interrupted.

What a caller needs is printed as one line of JSON; the keys in it are made for this run and worth nothing elsewhere.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from cvm_migrate.errors import CvmMigrateError
from cvm_migrate.testing import TencentCloud
from cvm_migrate.units import GiB, parse_size


def _disk(text: str) -> int | Path:
    """Return a size, or the path of an existing file."""
    if Path(text).is_file():
        return Path(text)
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"neither a file nor a size: {text!r}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cvm_migrate.testing",
        description="A simulated Tencent Cloud with one instance, until it is interrupted.",
    )
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--region", default="ap-guangzhou", help="the instance's (%(default)s)")
    parser.add_argument(
        "--system-disk",
        type=_disk,
        default=20 * GiB,
        metavar="SIZE|FILE",
        help="bytes, such as 20G (the default), of a sparse file that is made, or a file",
    )
    parser.add_argument(
        "--data-disk", type=_disk, action="append", default=[], metavar="SIZE|FILE"
    )
    parser.add_argument(
        "--state", default="RUNNING", choices=("RUNNING", "STOPPED"), help="(%(default)s)"
    )
    parser.add_argument(
        "--operation-seconds",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="how long an asynchronous operation takes (%(default)s)",
    )
    parser.add_argument(
        "--python", type=Path, help="the only Python of the rescue system: path of an interpreter"
    )
    parser.add_argument(
        "--rescue-system",
        choices=("sshd", "none"),
        default="sshd",
        help="'none' needs no root: in rescue mode there is nothing to log in to (%(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulator; return the exit code."""
    options = _parser().parse_args(arguments)
    end = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        end.set()

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)
    try:
        with TencentCloud(
            address=options.address, operation_seconds=options.operation_seconds
        ) as cloud:
            instance = cloud.add_instance(
                region=options.region,
                system_disk=options.system_disk,
                data_disks=options.data_disk,
                state=options.state,
                python=options.python,
                rescue_system=options.rescue_system,
            )
            facts = {
                "endpoint": cloud.endpoint,
                "metadata_url": cloud.metadata_url,
                "secret_id": cloud.secret_id,
                "secret_key": cloud.secret_key,
                "region": instance.region,
                "instance_id": instance.instance_id,
                "ssh_host": instance.ssh_address[0],
                "ssh_port": instance.ssh_address[1],
                "disks": [str(disk.path) for disk in instance.disks],
            }
            print(json.dumps(facts), flush=True)
            end.wait()
    except CvmMigrateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
