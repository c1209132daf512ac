"""Results can be stored, printed and shown."""

from __future__ import annotations

import json
import re

import pytest

from cvm_migrate import CheckReport, CutoverResult, Finding, Report, Severity, SyncResult
from cvm_migrate.migration import DiskPair, DiskPass

MiB = 1 << 20
_PASS = SyncResult(
    number=2,
    kind="delta",
    disks=(DiskPass(0, 3 * MiB, 2 * MiB, MiB, 0, 3 * MiB, 0, certain=True),),
    seconds=1.5,
    rate=2.0 * MiB,
    dirty_bytes=4096,
    dirty_rate=1000.0,
    predicted_downtime=0.5,
    verdict="fits",
    reason="it fits",
)
_CUTOVER = CutoverResult(
    at=1.0,
    downtime=0.25,
    predicted_downtime=0.5,
    frozen=("/mnt",),
    refused={"/boot/efi": "FAT has no freeze"},
    freeze_seconds=0.05,
    final_bytes=8192,
    proven={"read back": 5 * MiB},
    findings=(Finding(Severity.WARNING, "<b>odd</b>", "seen", "mend it"),),
)
_REPORT = Report(
    state="finished",
    source="local:/dev/sdb",
    target="image:/x.img",
    disks=(DiskPair("/dev/sdb", "/x.img", 8 * MiB, 8 * MiB),),
    started=0.0,
    seconds=10.0,
    passes=(_PASS,),
    rung="tracefs",
    refused={"ebpf": "lockdown"},
    cutover=_CUTOVER,
    findings=_CUTOVER.findings,
)


def test_json_holds_the_numbers_and_the_totals() -> None:
    """Predicted and actual downtime, bytes by proof, totals of all passes."""
    plain = json.loads(_REPORT.to_json())

    assert plain["sent"] == 3 * MiB
    assert plain["wire"] == 2 * MiB
    assert plain["proven"] is True
    assert plain["cutover"]["downtime"] == 0.25
    assert plain["cutover"]["predicted_downtime"] == 0.5
    assert plain["cutover"]["proven"] == {"read back": 5 * MiB}
    assert plain["findings"][0]["severity"] == "warning"


def test_a_stored_result_comes_back() -> None:
    """What the checkpoint stores is what the next process reads."""
    assert SyncResult.from_dict(json.loads(_PASS.to_json())) == _PASS
    assert CutoverResult.from_dict(json.loads(_CUTOVER.to_json())) == _CUTOVER


def test_the_text_says_what_matters() -> None:
    """Downtime, what could not be frozen, the tracker and why no better one, each pass."""
    text = _REPORT.to_text()

    for part in ("0.25 s (predicted 0.50 s)", "/boot/efi: FAT", "tracefs (ebpf: lockdown)"):
        assert part in text
    assert "3.00 MiB" in text


@pytest.mark.parametrize(
    ("used", "at_least", "says"),
    [
        (3 * MiB, False, "3.00 MiB"),
        (3 * MiB, True, "at least 3.00 MiB"),
        (None, False, "unknown"),
        (None, True, "unknown"),
    ],
)
def test_a_check_says_what_is_in_use_and_whether_that_is_all(
    used: int | None,
    at_least: bool,  # noqa: FBT001 - a parameter of the table
    says: str,
) -> None:
    report = CheckReport(
        (), "local:/dev/sdb", "image:/x.img", 8 * MiB, used_bytes=used, used_at_least=at_least
    )
    plain = json.loads(report.to_json())

    assert re.search(rf"(?m)^in use +{says}$", report.to_text())
    assert re.search(rf"in use</th><td[^>]*>{says}</td>", report.to_html())
    assert (plain["used_bytes"], plain["used_at_least"]) == (used, at_least)


def test_html_shows_nothing_unescaped() -> None:
    """Names and messages come from other machines."""
    for page in (_REPORT.to_html(), _CUTOVER.to_html()):
        assert "<b>odd" not in page
        assert "&lt;b&gt;odd" in page


def test_a_forecast_that_is_not_known_does_not_fit() -> None:
    """Unknown is not zero."""
    assert _PASS.fits(max_downtime=0.5)
    assert not _PASS.fits(max_downtime=0.4)
    unknown = SyncResult.from_dict({**_PASS.to_dict(), "predicted_downtime": None})
    assert not unknown.fits(max_downtime=1e9)
