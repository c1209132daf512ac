"""A target's disk forgets no piece unproven, however many come."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from cvm_migrate.agent import blockio, digests
from cvm_migrate.agent.pump import frames, slots
from cvm_migrate.agent.pump.target import TargetDisk
from cvm_migrate.agent.verbs import AgentError

_BLOCK = 4096
_SIZE = 256 * _BLOCK
_LIMIT = 32


@pytest.fixture(name="handle")
def _handle(tmp_path: Path) -> Generator[blockio.OpenHandle]:
    handle = blockio.open_disk(str(tmp_path / "disk.img"), "write", create_size=_SIZE)
    yield handle
    handle.close()


@pytest.fixture(name="disk")
def _disk(handle: blockio.OpenHandle) -> TargetDisk:
    made = TargetDisk(handle, limit=_LIMIT)
    made.use("sha256")
    return made


def _write(disk: TargetDisk, offset: int, data: bytes) -> None:
    slot = slots.Slot(len(data))
    slot.buffer.put(data, slots.DATA)
    digest = frames.pad_digest(digests.digest("sha256", data))
    disk.write(slot, offset, len(data), digest)


def _read_back(disk: TargetDisk) -> dict[str, Any]:
    return disk.read_back(lambda: None, lambda _done: None)


def test_beyond_its_limit_it_proves_the_oldest_pieces_by_itself(disk: TargetDisk) -> None:
    for number in range(256):
        _write(disk, number * _BLOCK, os.urandom(_BLOCK))
    proof = _read_back(disk)

    assert (proof["bytes"], proof["pieces"]) == (_SIZE, 256)
    assert proof["wrong"] == proof["unproven"] == []
    assert _read_back(disk)["bytes"] == 0


def test_what_was_proven_early_and_overwritten_later_counts_once(disk: TargetDisk) -> None:
    for turn in range(4):
        for number in range(64):
            _write(disk, number * _BLOCK, bytes([turn + 1]) * _BLOCK)
    proof = _read_back(disk)

    assert proof["bytes"] == 64 * _BLOCK
    assert proof["wrong"] == proof["unproven"] == []


def test_what_was_wrong_early_is_told_and_what_was_mended_is_not(
    disk: TargetDisk, handle: blockio.OpenHandle
) -> None:
    _write(disk, 0, b"a" * _BLOCK)
    _write(disk, _BLOCK, b"b" * _BLOCK)
    handle.write(0, b"x" * _BLOCK)
    handle.write(_BLOCK, b"y" * _BLOCK)
    for number in range(2, 200):
        _write(disk, number * _BLOCK, b"c" * _BLOCK)
    _write(disk, 0, b"a" * _BLOCK)
    proof = _read_back(disk)

    assert proof["wrong"] == [[_BLOCK, _BLOCK]]
    assert proof["bytes"] == 199 * _BLOCK


def test_the_rest_of_a_piece_that_was_overwritten_in_part_is_unproven(disk: TargetDisk) -> None:
    _write(disk, 0, b"a" * 4 * _BLOCK)
    _write(disk, _BLOCK, b"b" * _BLOCK)
    disk.zero(8 * _BLOCK, 8 * _BLOCK)
    _write(disk, 10 * _BLOCK, b"c" * _BLOCK)
    proof = _read_back(disk)

    assert proof["bytes"] == 9 * _BLOCK
    assert proof["zero"] == 7 * _BLOCK
    assert proof["unproven"] == [[0, _BLOCK], [2 * _BLOCK, 2 * _BLOCK]]
    assert proof["wrong"] == []


def test_a_reading_that_was_called_off_forgets_nothing(disk: TargetDisk) -> None:
    _write(disk, 0, b"a" * _BLOCK)

    def check() -> None:
        raise AgentError("cancelled", "enough")

    with pytest.raises(AgentError, match="enough"):
        disk.read_back(check, lambda _done: None)

    assert _read_back(disk)["bytes"] == _BLOCK


def test_a_chunk_with_another_digest_is_not_written(
    disk: TargetDisk, handle: blockio.OpenHandle
) -> None:
    slot = slots.Slot(_BLOCK)
    slot.buffer.put(b"a" * _BLOCK, slots.DATA)
    with pytest.raises(AgentError, match="digest"):
        disk.write(slot, 0, _BLOCK, b"\0" * 32)

    assert handle.read(0, _BLOCK) == b"\0" * _BLOCK
    assert _read_back(disk)["bytes"] == 0


def test_the_digests_cannot_change_under_way(disk: TargetDisk) -> None:
    disk.use("sha256")
    with pytest.raises(AgentError) as caught:
        disk.use("xxh3-128")

    assert caught.value.code == "bad-request"


def test_a_flush_that_failed_once_fails_for_ever(
    disk: TargetDisk, handle: blockio.OpenHandle
) -> None:
    handle.close()
    messages = set[str]()
    for _ in range(2):
        with pytest.raises(AgentError) as caught:
            disk.flush()
        messages.add(caught.value.message)

    assert len(messages) == 1
