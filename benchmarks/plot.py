"""A bar chart as SVG, made by hand: seconds of the full copy and of the second pass."""

from __future__ import annotations

from html import escape

WIDTH, LABEL, ROW, TOP = 860, 230, 40, 60


def svg(found: dict[str, object]) -> str:
    """Draw two bars a tool; red marks a result with wrong bytes."""
    rows = found["rows"]
    longest = max([1.0, *(row["full"] for row in rows)])
    scale = (WIDTH - LABEL - 150) / longest
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{TOP + ROW * len(rows) + 20}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="22" font-size="16">Full copy and second pass, seconds (shorter is better)</text>',
        '<rect x="10" y="32" width="12" height="12" fill="#2b6cb0"/><text x="27" y="43">full copy</text>',
        '<rect x="110" y="32" width="12" height="12" fill="#90cdf4"/><text x="127" y="43">second pass</text>',
        '<rect x="230" y="32" width="12" height="12" fill="#c53030"/><text x="247" y="43">left wrong bytes</text>',
    ]
    for index, row in enumerate(rows):
        y = TOP + index * ROW
        parts.append(
            f'<text x="{LABEL - 8}" y="{y + 20}" text-anchor="end">{escape(row["tool"])}</text>'
        )
        for key, wrong, color, at in (
            ("full", "wrong_full", "#2b6cb0", y + 2),
            ("second", "wrong_second", "#90cdf4", y + 17),
        ):
            seconds = row.get(key)
            if seconds is None:
                continue
            fill = "#c53030" if row.get(wrong) else color
            width = max(1.0, seconds * scale)
            note = f"{seconds:.1f}" + (
                f", {row[wrong] / 2**20:.3g} MiB wrong" if row.get(wrong) else ""
            )
            parts.append(
                f'<rect x="{LABEL}" y="{at}" width="{width:.1f}" height="13" fill="{fill}"/>'
            )
            parts.append(
                f'<text x="{LABEL + width + 5:.1f}" y="{at + 11}" font-size="11">{note}</text>'
            )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
