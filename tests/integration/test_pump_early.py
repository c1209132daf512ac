"""What is written is read back while more arrives: what that sees of a disk that is damaged meanwhile, and what not."""

from __future__ import annotations

import os
from pathlib import Path

from capabilities import require
from cvm_migrate import LocalHost, Migration
from cvm_migrate.model import ExtentMap
from rig import loopdev, pumps
from rig.pumps import MiB, Pair

_SIZE = 240 * MiB
# So many bytes wait before a batch of as many is read.
_BATCH = 64 * MiB


def _damage(device: Path, offset: int) -> None:
    """Change a sector behind everyone's back."""
    before = loopdev.read_direct(device, offset, 4096)
    fd = os.open(device, os.O_WRONLY | os.O_DSYNC)
    try:
        os.pwrite(fd, bytes(byte ^ 0xFF for byte in before[:512]), offset)
    finally:
        os.close(fd)


def _read(pair: Pair) -> int:
    """Bytes that the receiving pump has read from disks, by the kernel's count."""
    (pump,) = pumps.pump_pids(pair.target)
    fields = Path(f"/proc/{pump}/io").read_text().split()
    return int(fields[fields.index("read_bytes:") + 1])


def test_damage_is_told_where_it_was_there_when_it_was_read(tmp_path: Path) -> None:
    """Before the early reading, or before the last one: wrong. After its early reading: nobody sees it here."""
    require("root", "loop")
    with (
        pumps.disks(tmp_path, _SIZE, kinds="n", target_content=False) as (source, target),
        pumps.pair(source, target, streams=1) as pair,
    ):
        # One lane: what was sent first has arrived first, and is the oldest.
        pair.connect(streams=1)
        before = _read(pair)
        first = ExtentMap([(0, 160 * MiB)])
        assert pair.stream(first, codec="raw").acked == 160 * MiB
        # Two batches; 32 MiB are too few for a third.
        pumps.wait_until(lambda: _read(pair) - before >= 2 * _BATCH)
        seen_right, not_seen_yet, not_written_yet = 10 * MiB, 140 * MiB, 170 * MiB
        for offset in (seen_right, not_seen_yet, not_written_yet):
            _damage(target, offset)
        rest = ExtentMap([(160 * MiB, 80 * MiB)])
        assert pair.stream(rest, codec="raw").acked == 80 * MiB
        # What was left of the first stream is in the third batch, with others behind it; 48 MiB are left.
        pumps.wait_until(lambda: _read(pair) - before >= 3 * _BATCH)
        seen_last = 230 * MiB
        _damage(target, seen_last)
        early = _read(pair) - before
        proof = pair.read_back()

        assert proof.wrong == ExtentMap([(not_seen_yet, MiB), (seen_last, MiB)])
        assert proof.bytes + proof.wrong.total == _SIZE
        # Most were read early, and all of them once; some MiB may be of the pump's own program.
        assert early < _SIZE
        assert _SIZE <= _read(pair) - before < _SIZE + _BATCH
        # Sent again, they are right: but for what nobody has seen.
        assert pair.stream(proof.wrong, codec="raw").acked == 2 * MiB
        again = pair.read_back()
        assert (again.bytes, again.wrong) == (2 * MiB, ExtentMap())
        assert loopdev.first_difference(source, target) == seen_right


def test_the_proof_before_a_cutover_finds_what_was_damaged_after_it_was_read_back(
    tmp_path: Path,
) -> None:
    """By default both disks are compared afresh: the damage is sent again, and told."""
    require("root", "loop")
    size = 32 * MiB
    found: list[int | None] = []
    with (
        pumps.disks(tmp_path, size, kinds="n", target_content=False) as (source, target),
        Migration(LocalHost(disks=[source]), LocalHost(disks=[target])) as migration,
    ):
        migration.prepare()
        migration.full_sync()
        _damage(target, 10 * MiB)
        cut = migration.cutover(
            on_proven=lambda: found.append(loopdev.first_difference(source, target))
        )

    assert found == [None]
    assert any("differed from" in finding.title for finding in cut.findings)
    assert 0 < cut.proven["running"] < size
