"""The numbers of a run as Markdown: every tool, the limits of the machine, and whether each aim was reached."""

from __future__ import annotations

from typing import Any

from benchmarks.rig import MiB


def _number(value: object, unit: float = 1, digits: int = 1) -> str:
    return "" if value is None else f"{float(str(value)) / unit:,.{digits}f}"


def _wrong(value: int | None) -> str:
    """Return MiB; two blocks are not nothing."""
    return "" if value is None else f"{value / MiB:.3g}"


def _ratio(value: float | None, best: float) -> str:
    return "" if value is None else f"{value / best:.1f}"


def markdown(found: dict[str, Any]) -> str:
    """Return the page part that docs/explanation/benchmarks.md shows."""
    rounds = found["machine"]["rounds"]
    said = f"Rounds of ours and of the other tools over TLS: {rounds}; the best counts, and the most wrong bytes."
    if found["machine"].get("memory"):
        said += " The disks' files lie in memory."
    parts = [*_tools(found["rows"]), "", said, *_limits(found), "", *_aims(found)]
    return "\n".join(parts) + "\n"


def _tools(rows: list[dict[str, Any]]) -> list[str]:
    fastest = min(row["full"] for row in rows)
    quickest = min(row["second"] for row in rows if row.get("second") is not None)
    lines = [
        "| tool | wrong MiB, full | full s | ratio | CPU s | wire MB | largest process MiB"
        " | wrong MiB, second | second s | ratio | CPU s | wire MB |",
        "| --- " * 12 + "|",
    ]
    for row in rows:
        is_disk = row["wrong_full"] is not None
        cells = [
            row["tool"].replace("|", "\\|") + (" (live, written to)" if row.get("live") else ""),
            _wrong(row["wrong_full"]) if is_disk else "a repository",
            _number(row["full"]),
            _ratio(row["full"], fastest),
            _number(row["full_cpu"]),
            _number(row["full_wire"], 1e6, 0),
            _number(row["memory"], MiB, 0),
            _wrong(row.get("wrong_second")),
            _number(row.get("second")),
            _ratio(row.get("second"), quickest),
            _number(row.get("second_cpu")),
            _number(row.get("second_wire"), 1e6, 0),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _limits(found: dict[str, Any]) -> list[str]:
    limits = found["limits"]
    if not limits:
        return []
    path = found["machine"].get("link") or "loopback"
    return [
        f"Limits in the same run: `O_DIRECT` read {limits['read']:,.0f} MiB/s, write {limits['write']:,.0f} MiB/s,"
        f" TLS over {path} {limits['tls']:,.0f} MiB/s, plain TCP {limits['tcp']:,.0f} MiB/s."
        " What a proven copy asks of this machine, all at once but with no order, digests or frames (see below):"
        f" {limits['copy_seconds']:.1f} s."
    ]


def _aims(found: dict[str, Any]) -> list[str]:
    """Return a line an aim of the project, with what was measured."""
    rows = {row["tool"]: row for row in found["rows"]}
    ours = [row for row in found["rows"] if row.get("live")]
    peers = [row for row in found["rows"] if row.get("tls")]
    if not ours:
        return []
    lines = ["| aim | measured | reached |", "| --- | --- | --- |"]

    def aim(text: str, measured: str, reached: object) -> None:
        lines.append(f"| {text} | {measured} | {'yes' if reached else 'no'} |")

    plain = [row for row in ours if "zstd" not in row["tool"]]
    best = min(plain or ours, key=lambda row: row["full"])
    wrong = sum(row["wrong_full"] + row["wrong_second"] for row in ours)
    aim("no wrong byte", f"{wrong}", wrong == 0)
    if peers:
        peer = min(peers, key=lambda row: row["full"])
        aim(
            "full copy of the live disk faster than the fastest tool over TLS with the disk at rest",
            f"{best['full']:.1f} s against {peer['full']:.1f} s ({peer['tool']})",
            best["full"] < peer["full"],
        )
        second = min(peers, key=lambda row: row["second"])
        slowest = max(row["second"] for row in ours)
        aim(
            "second pass at least 6 times faster than the fastest tool's over TLS",
            f"{slowest:.2f} s against {second['second']:.1f} s: {second['second'] / slowest:.0f} times",
            second["second"] >= 6 * slowest,
        )
    limits = found["limits"]
    if limits:
        name = min(("read", "tls", "tcp"), key=lambda one: limits[one])
        seconds = found["machine"]["size"] / MiB / limits[name]
        aim(
            "full copy at 80 % of the slower limit or more",
            f"{100 * seconds / best['full']:.0f} % of `{name}`"
            f" ({100 * limits['copy_seconds'] / best['full']:.0f} % of all that at once)",
            seconds >= 0.8 * best["full"],
        )
    packed, pipe = rows.get("cvm_migrate 4 streams zstd -3"), rows.get("dd | zstd -1 | ssh")
    if packed and pipe:
        aim(
            'fewer bytes on the wire than `dd \\| zstd -1 \\| ssh` (with `codec="zstd", level=3`)',
            f"{packed['full_wire'] / 1e6:,.0f} MB against {pipe['full_wire'] / 1e6:,.0f} MB",
            packed["full_wire"] < pipe["full_wire"],
        )
    wire = max(row["second_wire"] / row["changed"] for row in ours)
    aim("second pass sends about what has changed", f"{100 * wire:.0f} % of it", wire < 1.1)
    pause = max(row["pause"] for row in ours)
    aim(
        "source paused for less than 1 s at 5 MB/s of random 16 KiB writes",
        f"{pause:.2f} s",
        pause < 1,
    )
    memory = max(row["memory"] for row in ours)
    aim("each agent below 150 MiB", f"{memory / MiB:.0f} MiB", memory < 150 * MiB)
    if found["slowdown"]:
        slower = found["slowdown"]["slowdown"]
        aim(
            "the workload slowed by less than 5 % while only tracking",
            f"{100 * slower:.1f} %; {100 * found['slowdown']['in_programs']:.1f} % of the time is spent in the tracker",
            slower < 0.05,
        )
    return lines
