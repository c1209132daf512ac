"""The benchmark: ``python -m benchmarks.macro``; writes a table, a plot and the numbers.

Every tool gets the same source (a mounted ext4, half full), a fresh target of zeroes, and, for its second pass,
1 % of the disk rewritten through the file system. Other tools get the source frozen while they run, which is
kinder than life; ours runs while a program writes. The first column is what matters: wrong bytes.

With ``--link 1gbit`` all of it runs in a network namespace whose loopback carries no more than that, as a network
between two machines would: there the path is the limit, not the two processors that are both ends at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import limits, ours, peers, plot, table
from benchmarks.rig import Cost, Disks, GiB, disks, frozen, measured, mutate, wrong_bytes
from cvm_migrate.units import parse_size

# One disk that is source and target at once, shared with other machines, would be what is measured.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory

# Says that this is the process inside the namespace.
SHAPED = "CVM_MIGRATE_BENCHMARK_SHAPED"

OURS = {
    "cvm_migrate 1 stream": {"streams": 1},
    "cvm_migrate 4 streams": {"streams": 4},
    "cvm_migrate 4 streams zstd -3": {"streams": 4, "codec": "zstd", "level": 3},
}


def _row(name: str, full: Cost, wrong: int | None) -> dict[str, Any]:
    return {
        "tool": name,
        "wrong_full": wrong,
        "full": full.seconds,
        "full_cpu": full.cpu,
        "full_wire": full.wire,
        "memory": full.memory,
    }


def _run_ours(name: str, work: Disks) -> dict[str, Any]:
    result = ours.migrate(work, **OURS[name])
    return {
        **_row(name, result.full, result.wrong),
        "wrong_second": result.wrong_second,
        "second": result.second.seconds,
        "second_cpu": result.second.cpu,
        "second_wire": result.second.wire,
        "changed": result.changed,
        "pause": result.pause,
        "predicted": result.predicted,
        "rung": result.rung,
        "live": True,
    }


def _run_peer(peer: peers.Peer, work: Disks, folder: Path) -> dict[str, Any]:
    with frozen(work.mount):
        with measured() as full:
            peer.full(work, folder)
        wrong = wrong_bytes(work.source, work.target, work.size) if peer.is_disk else None
    row = {**_row(peer.name, full[0], wrong), "tls": peer.tls}
    if peer.second is not None:
        mutate(work.mount, work.size)
        with frozen(work.mount):
            with measured() as second:
                peer.second(work, folder)
            again = wrong_bytes(work.source, work.target, work.size) if peer.is_disk else None
        row |= {
            "wrong_second": again,
            "second": second[0].seconds,
            "second_cpu": second[0].cpu,
            "second_wire": second[0].wire,
        }
    return row


def _limits(work: Disks, folder: Path) -> dict[str, float]:
    size = min(work.size, 2 * GiB)
    found = {
        "read": limits.read_rate(work.source, work.size),
        "write": limits.write_rate(work.target, size),
        "tls": limits.send_rate(folder, size, tls=True),
        "tcp": limits.send_rate(folder, size, tls=False),
    }
    work.new_target()
    found["copy_seconds"] = limits.copy_seconds(work.source, work.target, work.size, folder)
    return found


def _best(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Merge two rounds of a tool: the faster seconds, the more wrong bytes, the larger of everything else."""
    if old is None:
        return new
    merged = dict(new)
    for key, value in old.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            faster = key in {"full", "full_cpu", "second", "second_cpu"}
            merged[key] = min(value, new[key]) if faster else max(value, new[key])
    return merged


def _best_limits(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {
        key: (min if key == "copy_seconds" else max)(one[key] for one in rounds)
        for key in rounds[0]
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--size", type=parse_size, default=4 * GiB, help="of the disks")
    parser.add_argument("--tools", help="names separated by commas; all by default")
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="of ours, of the other tools over TLS and of the limits; the best counts, and the most wrong bytes",
    )
    parser.add_argument("--no-limits", action="store_true")
    parser.add_argument("--no-slowdown", action="store_true", help="leave out what tracking costs")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the disks' files lie; by default in memory (/dev/shm) if they have room there",
    )
    parser.add_argument(
        "--link", metavar="RATE", help="what loopback may carry, as tc writes it: 1gbit"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/explanation/benchmarks"),
        help="folder of the results",
    )
    chosen = parser.parse_args()
    if chosen.link and SHAPED not in os.environ:
        return _on_a_link(chosen.link)
    every = {peer.name: peer for peer in peers.PEERS}
    names = chosen.tools.split(",") if chosen.tools else [*OURS, *every]
    unknown = [name for name in names if name not in OURS and name not in every]
    if unknown:
        parser.error(f"no such tool: {', '.join(unknown)}; there are {', '.join([*OURS, *every])}")
    rows: dict[str, dict[str, Any]] = {}
    measured_limits: list[dict[str, float]] = []
    slowdown: dict[str, float] = {}
    # Disks, mount and processes are cleared away when this is killed, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place = chosen.folder or _roomy(chosen.size)
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        for number in range(chosen.rounds):
            for index, tool in enumerate(names):
                peer = every.get(tool)
                if number and peer is not None and not peer.tls:
                    continue
                if peer is not None and peer.missing:
                    print(f"{tool}: left out, {peer.missing} is not installed", file=sys.stderr)
                    continue
                # A fresh pair for each: none profits from what another has left in a cache.
                with _place(folder / f"{number}-{index}", chosen.size) as work:
                    row = _run_peer(peer, work, work.folder) if peer else _run_ours(tool, work)
                print(json.dumps(row), file=sys.stderr)
                rows[tool] = _best(rows.get(tool), row)
            if not chosen.no_limits:
                with _place(folder / f"{number}-limits", chosen.size) as work:
                    measured_limits.append(_limits(work, work.folder))
                print(json.dumps(measured_limits[-1]), file=sys.stderr)
        if not chosen.no_slowdown:
            with _place(folder / "slowdown", min(chosen.size, GiB)) as work:
                slowdown = ours.slowdown(work)
            print(json.dumps(slowdown), file=sys.stderr)
    found: dict[str, Any] = {
        "machine": {
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "size": chosen.size,
            "rounds": chosen.rounds,
            "link": chosen.link,
            "memory": place == SHARED_MEMORY,
        },
        "limits": _best_limits(measured_limits) if measured_limits else {},
        "slowdown": slowdown,
        "rows": list(rows.values()),
    }
    chosen.output.mkdir(parents=True, exist_ok=True)
    name = f"results-{chosen.link}" if chosen.link else "results"
    (chosen.output / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    text = table.markdown(found)
    (chosen.output / f"{name}.md").write_text(text)
    (chosen.output / f"{name}.svg").write_text(plot.svg(found))
    print(text)
    return 0


def _roomy(size: int) -> Path | None:
    """Return the file system in memory if both disks and a repository have room, None for the usual folder."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        free = shutil.disk_usage(SHARED_MEMORY).free
    except FileNotFoundError:
        return None
    return SHARED_MEMORY if min(free, memory) > 3 * size else None


def _on_a_link(rate: str) -> int:
    """Run all of this again in a network namespace of its own, whose loopback carries *rate*."""
    # One packet of loopback has up to 64 KiB; what would wait longer than the latency is dropped, as by a switch.
    shape = 'tc qdisc add dev lo root tbf rate "$1" burst 256k latency 20ms'
    script = f'ip link set lo up && {shape} && shift && exec "$@"'
    program = (sys.executable, "-m", "benchmarks.macro", *sys.argv[1:])
    return subprocess.run(
        ["unshare", "--net", "sh", "-c", script, "sh", rate, *program],
        check=False,
        env={**os.environ, SHAPED: "1"},
    ).returncode


@contextlib.contextmanager
def _place(folder: Path, size: int) -> Iterator[Disks]:
    """Disks in a folder of their own, which is gone afterwards."""
    folder.mkdir()
    try:
        with disks(folder, size) as work:
            yield work
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
