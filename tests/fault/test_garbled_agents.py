"""Far sides that send what no agent sends: a documented error, bounded memory, and no hang."""

from __future__ import annotations

import random
import struct
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from cvm_migrate.agent import wire
from cvm_migrate.errors import AgentLostError, CvmMigrateError, ProtocolError
from cvm_migrate.model import ExtentMap, OpenDisk
from cvm_migrate.transport import AgentSession
from cvm_migrate.transport._child import Child
from rig.far_side import HELLO, far_side

DISK = OpenDisk(
    handle=1,
    path="/dev/test",
    kind="block",
    size=1 << 30,
    logical_block_size=512,
    physical_block_size=4096,
    identity="block:7:0",
    direct=True,
)

GARBAGE = {
    "text": b"Last login: Tue Nov 26 from 10.0.0.1\n",
    "another-magic": b"CVMB" + bytes(16),
    "another-version": b"CVMA\x09" + bytes(15),
    "unknown-kind": b"CVMA\x01\x63" + bytes(14),
    "reserved-not-zero": struct.pack(">4sBBHIII", b"CVMA", 1, wire.RESULT, 7, 1, 2, 0) + b"{}",
    "header-too-long": struct.pack(">4sBBHIII", b"CVMA", 1, wire.RESULT, 0, 1, 1 << 31, 0),
    "blob-too-long": struct.pack(">4sBBHIII", b"CVMA", 1, wire.RESULT, 0, 1, 2, 1 << 31),
    "not-json": struct.pack(">4sBBHIII", b"CVMA", 1, wire.RESULT, 0, 1, 3, 0) + b"{[}",
    "no-object": struct.pack(">4sBBHIII", b"CVMA", 1, wire.RESULT, 0, 1, 2, 0) + b"[]",
    "request-from-an-agent": wire.encode(wire.REQUEST, 1, {"verb": "facts", "args": {}}),
    "cancel-from-an-agent": wire.encode(wire.CANCEL, 1, {}),
    "answer-to-nobody": wire.encode(wire.RESULT, 4_000_000, {}),
    "second-greeting": wire.encode(wire.HELLO, 0, HELLO),
    "error-without-code": wire.encode(wire.ERROR, 1, {"message": "no"}),
    "error-of-unknown-code": wire.encode(wire.ERROR, 1, {"code": "moon", "message": "no"}),
}


def slowly(digests: Iterator[object]) -> None:
    """Take digests more slowly than they come, so that they pile up."""
    for _ in digests:
        time.sleep(0.01)


def session(child: Child) -> AgentSession:
    return AgentSession(child, description="the test's agent")


@pytest.mark.parametrize("name", sorted(GARBAGE))
def test_an_answer_that_is_none_is_a_protocol_error(name: str) -> None:
    program = "hello()\nrequest()\nraw(bytes(bytearray(garbage)))\nrequest()"
    with (
        session(far_side(program, garbage=list(GARBAGE[name]))) as agent,
        pytest.raises(ProtocolError),
    ):
        agent.facts()


@pytest.mark.parametrize(
    "name", sorted(set(GARBAGE) - {"second-greeting"} | {"nothing but zeroes"})
)
def test_a_greeting_that_is_none_is_a_protocol_error(name: str) -> None:
    garbage = GARBAGE.get(name, bytes(64))
    with pytest.raises(ProtocolError):
        session(far_side("raw(bytes(bytearray(garbage)))\nrequest()", garbage=list(garbage)))


def test_a_protocol_error_ends_the_agent_and_every_later_call() -> None:
    with session(far_side("hello()\nrequest()\nraw(b'x' * 100)\ntime.sleep(1000)")) as agent:
        for _ in range(2):
            with pytest.raises(ProtocolError, match="sent what no agent sends"):
                agent.facts()
        agent.close()
        assert agent.exit_status is not None


@pytest.mark.parametrize("cut", [1, 19, 20, 25, 30])
def test_an_agent_that_ends_inside_a_frame_is_lost(cut: int) -> None:
    program = """
hello()
one = request()
raw(wire.encode(wire.RESULT, one.id, {"seconds": 1}, b"x" * 100)[:cut])
"""
    with (
        session(far_side(program, cut=cut)) as agent,
        pytest.raises(AgentLostError, match="ended with exit status 0"),
    ):
        agent.flush(DISK)


ANSWERS: dict[str, dict[str, object]] = {
    "empty": {},
    "null": {"handle": None},
    "text": {"handle": "1", "size": "many"},
    "nested": {"handle": [[[1]]]},
    "negative": {
        "handle": 1,
        "path": "/dev/x",
        "kind": "block",
        "size": -1,
        "logical_block_size": 512,
        "physical_block_size": 512,
        "identity": "block:7:0",
        "direct": True,
    },
    "unknown-kind": {
        "handle": 1,
        "path": "/dev/x",
        "kind": "tape",
        "size": 1,
        "logical_block_size": 512,
        "physical_block_size": 512,
        "identity": "block:7:0",
        "direct": True,
    },
}


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_an_answer_with_wrong_fields_is_a_protocol_error(name: str) -> None:
    program = "hello()\none = request()\nsend(wire.RESULT, one.id, answer)\nrequest()"
    with session(far_side(program, answer=ANSWERS[name])) as agent, pytest.raises(ProtocolError):
        agent.open_disk("/dev/x")


@pytest.mark.parametrize(
    "verb", ["facts", "freeze", "thaw", "track", "collect", "read_back", "reach", "measure"]
)
def test_every_kind_of_answer_is_checked(verb: str) -> None:
    program = """
hello()
while True:
    one = request()
    send(wire.RESULT, one.id, {"refused": [1], "frozen": {}, "held": "long", "wrong": [[1]], "bytes": 1,
                               "seconds": 1, "certain": "yes", "disks": 7, "rung": 7})
"""
    with session(far_side(program)) as agent:
        calls: dict[str, Callable[[], object]] = {
            "facts": agent.facts,
            "freeze": lambda: agent.freeze(["/"], limit=1.0),
            "thaw": agent.thaw,
            "track": lambda: agent.start_tracking([DISK], rungs=["ebpf"]),
            "collect": lambda: agent.collect_changes(DISK),
            "read_back": lambda: agent.read_back(1, 0),
            "reach": lambda: agent.reach("localhost", 1, timeout=1.0),
            "measure": lambda: agent.measure(1, seconds=1.0),
        }
        with pytest.raises(ProtocolError):
            calls[verb]()


def test_a_read_that_is_too_short_is_a_protocol_error() -> None:
    program = "hello()\none = request()\nsend(wire.RESULT, one.id, {}, b'x' * 511)\nrequest()"
    with (
        session(far_side(program)) as agent,
        pytest.raises(ProtocolError, match="511 bytes, not 512"),
    ):
        agent.read(DISK, 0, 512)


@pytest.mark.parametrize(("count", "length"), [(0, 0), (3, 32), (1, 1), (1, 65), (2, 0)])
def test_digests_that_do_not_add_up_are_a_protocol_error(count: int, length: int) -> None:
    program = """
hello()
one = request()
send(wire.PART, one.id, {"offset": 0, "count": count}, b"x" * length)
send(wire.RESULT, one.id, {"bytes": 1, "seconds": 1})
request()
"""
    with (
        session(far_side(program, count=count, length=length)) as agent,
        pytest.raises(ProtocolError, match="digests"),
    ):
        list(agent.digest(DISK, ExtentMap.whole(1 << 20), chunk=65536, algorithm="sha256"))


def test_an_agent_that_sends_parts_for_ever_is_stopped_at_what_the_request_can_have() -> None:
    program = """
hello()
one = request()
while True:
    send(wire.PART, one.id, {"offset": 0, "count": 1}, b"x" * 32)
"""
    with session(far_side(program)) as agent:
        digests = agent.digest(DISK, ExtentMap.whole(1 << 20), chunk=65536, algorithm="sha256")
        with pytest.raises(ProtocolError, match="more parts"):
            slowly(digests)


def test_progress_for_ever_takes_no_memory_and_can_be_called_off() -> None:
    program = """
hello()
one = request()
while True:
    for i in range(1000):
        send(wire.PART, one.id, {"done": i})
    import select
    if select.select([0], [], [], 0)[0]:
        two = request()
        if two.kind == wire.REQUEST:
            send(wire.ERROR, one.id, {"code": "cancelled", "message": "ending"})
            send(wire.RESULT, two.id, {})
            break
"""
    with session(far_side(program)) as agent:
        seen: list[int] = []

        def progress(done: int) -> None:
            seen.append(done)
            if len(seen) == 20:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            agent.read_back(1, 0, on_progress=progress)
        assert len(seen) == 20


@pytest.mark.parametrize("seed", range(40))
def test_whatever_bytes_come_the_error_is_one_of_the_library(seed: int) -> None:
    chance = random.Random(seed)
    good = wire.encode(wire.HELLO, 0, HELLO) + b"".join(
        wire.encode(kind, 1, {"seconds": 1, "code": "read", "message": "no"}, b"x" * 50)
        for kind in (wire.PART, wire.RESULT)
    )
    if seed % 2:
        data = bytearray(good)
        for _ in range(chance.randrange(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    else:
        data = bytearray(good[: chance.randrange(len(good))] + chance.randbytes(200))
    child = Child(
        [
            sys.executable,
            "-S",
            "-c",
            "import os, sys; os.write(1, bytes.fromhex(sys.argv[1])); os.read(0, 1)",
            data.hex(),
        ]
    )
    try:
        with AgentSession(child, description="the test's agent", silence=20, patience=5) as agent:
            agent.flush(DISK)
    except CvmMigrateError:
        pass
    assert child.returncode is not None


def test_standard_error_for_ever_takes_no_memory_and_holds_nothing_up() -> None:
    program = """
hello()
one = request()
for i in range(200):
    os.write(2, b"x" * 65536)
os.write(2, b"the end of it")
send(wire.RESULT, one.id, {"seconds": 1})
request()
sys.exit(5)
"""
    child = far_side(program)
    with session(child) as agent:
        assert agent.flush(DISK) == 1
        with pytest.raises(AgentLostError, match="the end of it"):
            agent.flush(DISK)
    assert len(child.errors) <= 64 << 10
