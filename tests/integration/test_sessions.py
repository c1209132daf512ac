"""The line to an agent, with far sides that do what a test tells them to."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from cvm_migrate.deadline import CancelToken
from cvm_migrate.errors import (
    AgentLostError,
    CancelledError,
    CvmMigrateError,
    InvalidRequestError,
    ProtocolError,
    SourceReadError,
)
from cvm_migrate.interfaces import Agent
from cvm_migrate.model import ExtentMap, OpenDisk, Streamed, TlsIdentity
from cvm_migrate.transport import AgentSession
from cvm_migrate.transport._link import ERRORS
from rig.far_side import HELLO, far_side
from rig.processes import runs

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

STREAMED = {"acked": 10, "wire": 5, "zero": 1, "read": 10, "seconds": 0.5}
STREAM_END = {**STREAMED, "codec": "zstd", "reconnects": 1, "flush_seconds": 0.25}


def session(program: str, *, silence: float = 30.0, **names: object) -> AgentSession:
    return AgentSession(
        far_side(program, **names), description="the test's agent", silence=silence
    )


def as_agent(session: AgentSession) -> Agent:
    """Checked by the type checkers: a session is what upper layers ask for."""
    return session


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Call in a thread; what it returned or raised is appended to the list."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except CvmMigrateError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_answers_find_their_callers_in_whatever_order_they_come() -> None:
    program = """
hello()
asked = [request() for _ in range(4)]
for one in reversed(asked):
    offset = one.header["args"]["offset"]
    send(wire.RESULT, one.id, {}, bytes(bytearray([offset // 512])) * 512)
request()
"""
    with session(program) as agent:
        calls = [
            in_thread(lambda i=i: agent.read(DISK, i * 512, 512))  # type: ignore[misc]
            for i in range(4)
        ]
        for thread, _ in calls:
            thread.join(60)
        assert [outcome for _, outcome in calls] == [[bytes([i]) * 512] for i in range(4)]


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_each_code_of_an_error_becomes_its_exception_with_all_facts(code: str) -> None:
    program = """
hello()
one = request()
send(wire.ERROR, one.id, {"code": code, "message": "it would not", "errno": 5, "device": "/dev/test",
     "offset": 512, "length": 1024, "remedy": "Try another"})
request()
"""
    with session(program, code=code) as agent:
        with pytest.raises(ERRORS[code]) as caught:
            agent.read(DISK, 0, 4096)
        error = caught.value
        assert type(error) is ERRORS[code]
        assert (error.code, error.errno, error.device, error.offset, error.length) == (
            code,
            5,
            "/dev/test",
            512,
            1024,
        )
        assert str(error).startswith("the test's agent: it would not")
        assert str(error).endswith("Try another")


def test_facts_of_an_error_may_be_null() -> None:
    program = """
hello()
one = request()
send(wire.ERROR, one.id, {"code": "read", "message": "no", "errno": None, "device": None,
     "offset": None, "length": None, "remedy": None})
request()
"""
    with session(program) as agent, pytest.raises(SourceReadError, match="no"):
        agent.read(DISK, 0, 4096)


def test_an_agent_that_ends_is_reported_to_all_who_wait_with_its_status_and_last_words() -> None:
    program = """
hello()
request(), request()
os.write(2, b"first line\\nthe disk is on fire\\n")
sys.exit(7)
"""
    with session(program) as agent:
        calls = [in_thread(lambda: agent.read(DISK, 0, 512)) for _ in range(2)]
        for thread, _ in calls:
            thread.join(60)
        for _, outcome in calls:
            assert isinstance(outcome[0], AgentLostError)
            assert "exit status 7" in str(outcome[0])
            assert "the disk is on fire" in str(outcome[0])
        first, second = (outcome[0] for _, outcome in calls)
        assert first is not second, "two threads must not share a traceback"
        with pytest.raises(AgentLostError, match="exit status 7"):
            agent.flush(DISK)


def test_an_agent_that_is_killed_is_reported_with_the_signal() -> None:
    with (
        session("hello()\nrequest()\nos.kill(os.getpid(), 9)") as agent,
        pytest.raises(AgentLostError, match="signal 9"),
    ):
        agent.facts()


def test_an_agent_that_falls_silent_is_lost_after_the_time_given_and_killed() -> None:
    with session("hello()\nrequest()\ntime.sleep(1000)", silence=3.0) as agent:
        began = time.monotonic()
        with pytest.raises(AgentLostError, match="silent for 3 s"):
            agent.facts()
        assert time.monotonic() - began >= 2.5
        agent.close()
        assert not runs(agent.pid)


def test_heartbeats_keep_an_agent_alive_that_has_nothing_else_to_say() -> None:
    program = """
hello()
asked = None
beats = 0
while beats < 5:
    one = frame()
    if one.kind == wire.HEARTBEAT:
        beats += 1
        send(wire.HEARTBEAT, 0, one.header)
    else:
        asked = one
send(wire.RESULT, asked.id, {"seconds": beats})
request()
"""
    # Five heartbeats take about ten seconds, longer than the silence that is allowed.
    with session(program, silence=8.0) as agent:
        assert agent.flush(DISK) == 5


def test_no_message_shows_a_key_a_session_or_a_password() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqG\n-----END PRIVATE KEY-----\n"
    secret = "f" * 64
    program = """
hello()
one = request()
os.write(2, ("failed with %r and %s" % (one.header["args"]["tls"]["key"], one.header["args"]["session"])).encode())
sys.exit(1)
"""
    identity = TlsIdentity(ca="ca", certificate="certificate", key=key, peer="peer")
    with session(program) as agent:
        with pytest.raises(AgentLostError, match="failed with") as caught:
            agent.receive(
                {0: DISK}, bind="127.0.0.1", port=0, tls=identity, session=secret, streams=1
            )
        assert "MIGHAgEAMBMGByqGSM49AgEGCCqG" not in str(caught.value)
        assert secret not in str(caught.value)


def test_work_is_called_off_and_the_answer_awaited() -> None:
    program = """
hello()
one = request()
send(wire.PART, one.id, progress)
while True:
    two = request()
    if two.kind == wire.CANCEL:
        break
assert two.id == one.id
send(wire.ERROR, one.id, {"code": "cancelled", "message": "called off"})
request()
"""
    cancel = CancelToken()
    seen: list[Streamed] = []

    def progress(done: Streamed) -> None:
        seen.append(done)
        cancel.cancel()

    with (
        session(program, progress=STREAMED) as agent,
        pytest.raises(CancelledError, match="called off"),
    ):
        agent.stream(
            1,
            0,
            ExtentMap.whole(4096),
            chunk=4096,
            on_progress=progress,
            cancel=cancel,
        )
    assert [done.acked for done in seen] == [10]


def test_who_stops_taking_digests_calls_the_rest_off_and_the_line_stays_good() -> None:
    program = """
hello()
one = request()
send(wire.PART, one.id, {"offset": 0, "count": 2}, b"a" * 32)
send(wire.PART, one.id, {"offset": 131072, "count": 1}, b"b" * 16)
two = request()
assert (two.kind, two.id) == (wire.CANCEL, one.id)
send(wire.PART, one.id, {"offset": 196608, "count": 1}, b"c" * 16)
send(wire.ERROR, one.id, {"code": "cancelled", "message": "called off"})
three = request()
send(wire.RESULT, three.id, {"seconds": 1.5})
request()
"""
    with session(program) as agent:
        digests = agent.digest(DISK, ExtentMap.whole(1 << 20), chunk=65536, algorithm="xxh3-128")
        assert next(digests) == (0, [b"a" * 16, b"a" * 16])
        digests.close()
        assert agent.flush(DISK) == 1.5


def test_another_call_can_be_made_while_digests_are_being_taken() -> None:
    program = """
hello()
one = request()
for i in range(1000):
    send(wire.PART, one.id, {"offset": i * 65536, "count": 1}, b"a" * 16)
send(wire.RESULT, one.id, {"bytes": 65536000, "seconds": 1})
while True:
    two = request()
    send(wire.RESULT, two.id, {}, b"x" * 512)
    if two.header["verb"] == "shutdown":
        break
"""
    with session(program) as agent:
        count = 0
        for offset, _ in agent.digest(
            DISK, ExtentMap.whole(65536 * 1000), chunk=65536, algorithm="xxh3-128"
        ):
            assert offset == count * 65536
            count += 1
            if count % 100 == 0:
                assert agent.read(DISK, 0, 512) == b"x" * 512
        assert count == 1000


def test_progress_is_the_newest_state_and_results_of_several_requests_are_summed() -> None:
    program = """
hello()
sizes = []
while True:
    one = request()
    if one.header["verb"] == "stream":
        sizes.append(len(one.blob))
        send(wire.PART, one.id, progress)
        send(wire.RESULT, one.id, end)
    else:
        send(wire.RESULT, one.id, dict((str(i), size) for i, size in enumerate(sizes)))
"""
    ranges = ExtentMap((i * 8192, 4096) for i in range((1 << 19) + 10))
    seen: list[Streamed] = []
    with session(program, progress=STREAMED, end=STREAM_END) as agent:
        done = agent.stream(1, 0, ranges, chunk=4096, on_progress=seen.append)
        sizes = agent.received(1)
    assert sizes == {"0": 8 << 20, "1": 160}
    assert done == Streamed(
        acked=20,
        wire=10,
        zero=2,
        read=20,
        seconds=1.0,
        flush_seconds=0.5,
        reconnects=2,
        codec="zstd",
    )
    # A part may be overtaken by the answer, but what is shown never falls.
    assert [one.acked for one in seen] in ([], [10], [20], [10, 20])


def test_nothing_to_send_is_still_asked_for_as_the_answer_means_that_all_is_on_the_disk() -> None:
    program = """
hello()
one = request()
assert one.blob == b""
send(wire.RESULT, one.id, end)
request()
"""
    with session(program, end=STREAM_END) as agent:
        assert agent.stream(1, 0, ExtentMap(), chunk=4096).acked == 10


def test_arguments_that_fit_no_frame_are_refused_before_anything_is_sent() -> None:
    with (
        session("hello()\nrequest()\n") as agent,
        pytest.raises(InvalidRequestError, match="header"),
    ):
        agent.open_disk("x" * (2 << 20))


def test_a_session_that_is_closed_has_no_process_and_no_thread_left_and_refuses_calls() -> None:
    agent = session(
        "hello()\none = request()\nassert one.header['verb'] == 'shutdown'\nsend(wire.RESULT, one.id, {})"
    )
    mine = [thread for thread in threading.enumerate() if "the test's agent" in thread.name]
    assert mine
    agent.close()
    agent.close()
    assert not runs(agent.pid)
    assert agent.exit_status == 0
    assert not any(thread.is_alive() for thread in mine)
    with pytest.raises(AgentLostError, match="closed"):
        agent.facts()


def test_an_agent_that_does_not_end_when_asked_to_is_ended_by_force() -> None:
    program = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
hello()
one = request()
send(wire.RESULT, one.id, {})
while True:
    time.sleep(1000)
"""
    agent = session(program)
    agent.close()
    assert not runs(agent.pid)
    assert agent.exit_status == -signal.SIGKILL


def test_closing_wakes_threads_that_wait_for_answers() -> None:
    agent = session("hello()\nrequest()\nrequest()\nsys.exit(0)")
    thread, outcome = in_thread(as_agent(agent).facts)
    agent.close()
    thread.join(60)
    assert isinstance(outcome[0], AgentLostError)


def test_an_agent_of_another_protocol_is_refused_with_both_numbers() -> None:
    program = "send(wire.HELLO, 0, {'protocol': 99})\ntime.sleep(1000)"
    with pytest.raises(ProtocolError, match="99, not 1"):
        session(program)


def test_a_child_that_ends_without_a_greeting_is_reported_with_what_it_said() -> None:
    with pytest.raises(AgentLostError, match=r"exit status 4.*no module named anything"):
        session("os.write(2, b'no module named anything')\nsys.exit(4)")


def test_a_child_that_never_greets_is_given_up() -> None:
    child = far_side("time.sleep(1000)")
    with pytest.raises(AgentLostError, match="no greeting within 1 s"):
        AgentSession(child, description="the test's agent", patience=1.0)
    assert not runs(child.pid)


def test_large_writes_and_reads_pass_while_heartbeats_go_on() -> None:
    program = """
hello()
data = b""
while True:
    one = request()
    if one.kind != wire.REQUEST:
        continue
    if one.header["verb"] == "write":
        data += one.blob
        send(wire.RESULT, one.id, {})
    elif one.header["verb"] == "read":
        at = one.header["args"]["offset"]
        send(wire.RESULT, one.id, {}, data[at:at + one.header["args"]["length"]])
    else:
        send(wire.RESULT, one.id, {})
        break
"""
    data = os.urandom(1 << 20) * 10
    with session(program) as agent:
        agent.write(DISK, 0, data)
        assert agent.read(DISK, 0, len(data)) == data


def test_frames_are_understood_however_the_bytes_are_cut() -> None:
    program = """
for i in bytearray(wire.encode(wire.HELLO, 0, greeting)):
    raw(bytes(bytearray([i])))
one = request()
for i in bytearray(wire.encode(wire.RESULT, one.id, {"seconds": 2})):
    raw(bytes(bytearray([i])))
    time.sleep(0.001)
request()
"""
    with session(program, greeting=HELLO) as agent:
        assert agent.flush(DISK) == 2.0
