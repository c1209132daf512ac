"""The benchmark: ``python -m benchmarks.macro``; writes a table, a plot and the numbers.

Every tool gets the same source (a mounted ext4, half full), a fresh target of zeroes, and, for its second pass,
1 % of the disk rewritten through the file system. Other tools get the source frozen while they run, which is
kinder than life; ours runs while a program writes. The first column is what matters: wrong bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from benchmarks import limits, ours, peers, plot
from benchmarks.rig import Cost, Disks, GiB, MiB, disks, frozen, measured, mutate, run, wrong_bytes
from cvm_migrate.units import parse_size

OURS = {
    "cvm_migrate 1 stream": {"streams": 1},
    "cvm_migrate 4 streams": {"streams": 4},
    "cvm_migrate 4 streams zstd": {"streams": 4, "codec": "zstd"},
}


def _row(name: str, full: Cost, wrong: int | None) -> dict[str, object]:
    return {
        "tool": name,
        "wrong_full": wrong,
        "full": full.seconds,
        "full_cpu": full.cpu,
        "full_wire": full.wire,
        "memory": full.memory,
    }


def _run_ours(name: str, work: Disks) -> dict[str, object]:
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


def _run_peer(peer: peers.Peer, work: Disks, folder: Path) -> dict[str, object]:
    with frozen(work.mount):
        with measured() as full:
            peer.full(work, folder)
        wrong = wrong_bytes(work.source, work.target, work.size) if peer.is_disk else None
    row = _row(peer.name, full[0], wrong)
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
    return {
        "read": limits.read_rate(work.source, size),
        "write": limits.write_rate(work.target, size),
        "tls": limits.send_rate(folder, size, tls=True),
        "tcp": limits.send_rate(folder, size, tls=False),
    }


def _number(value: object, unit: float = 1, digits: int = 1) -> str:
    return "" if value is None else f"{float(str(value)) / unit:,.{digits}f}"


def table(found: dict[str, object]) -> str:
    """The table of docs/explanation/benchmarks.md."""
    rows = found["rows"]
    lines = [
        "| tool | wrong MiB, full | full s | CPU s | wire MB | largest process MiB | wrong MiB, second | second s | wire MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        name = row["tool"] + (" (live, written to)" if row.get("live") else "")
        cells = [
            name,
            _number(row["wrong_full"], MiB) or "repository",
            _number(row["full"]),
            _number(row["full_cpu"]),
            _number(row["full_wire"], 1e6, 0),
            _number(row["memory"], MiB, 0),
            _number(row.get("wrong_second"), MiB),
            _number(row.get("second")),
            _number(row.get("second_wire"), 1e6, 0),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if found["limits"]:
        lines += [
            "",
            "Limits in the same run, MiB/s: "
            + ", ".join(f"{name} {rate:,.0f}" for name, rate in found["limits"].items()),
        ]
    for row in rows:
        if row.get("pause") is not None:
            lines.append(
                f"\n{row['tool']}: source paused {row['pause']:.2f} s at 5 MB/s of random 16 KiB writes"
                f" (predicted {_number(row['predicted'], 1, 2) or 'nothing'}), tracker {row['rung']}."
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--size", type=parse_size, default=4 * GiB, help="of the disks")
    parser.add_argument("--tools", help="names separated by commas; all by default")
    parser.add_argument("--no-limits", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the disks' files lie")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    every = {peer.name: peer for peer in peers.PEERS}
    names = chosen.tools.split(",") if chosen.tools else [*OURS, *every]
    unknown = [name for name in names if name not in OURS and name not in every]
    if unknown:
        parser.error(f"no such tool: {', '.join(unknown)}; there are {', '.join([*OURS, *every])}")
    found: dict[str, object] = {
        "machine": {
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "size": chosen.size,
        },
        "limits": {},
        "rows": [],
    }
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        for tool in names:
            place = folder / f"{len(found['rows'])}"
            place.mkdir()
            peer = every.get(tool)
            if peer is not None and peer.missing:
                print(f"{tool}: left out, {peer.missing} is not installed", file=sys.stderr)
                continue
            # A fresh pair for each: none profits from what another has left in a cache.
            with disks(place, chosen.size) as work:
                row = _run_peer(peer, work, place) if peer else _run_ours(tool, work)
                print(json.dumps(row), file=sys.stderr)
                found["rows"].append(row)
            run("rm", "-rf", str(place))
        if not chosen.no_limits:
            place = folder / "limits"
            place.mkdir()
            with disks(place, chosen.size) as work:
                found["limits"] = _limits(work, place)
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "macro.json").write_text(json.dumps(found, indent=2) + "\n")
    text = table(found)
    (chosen.output / "macro.md").write_text(text)
    (chosen.output / "macro.svg").write_text(plot.svg(found))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
