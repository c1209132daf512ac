"""Far sides that are not agents: programs that speak what a test tells them to, in place of one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cvm_migrate
from cvm_migrate.agent import wire
from cvm_migrate.transport._child import Child

_SOURCES = Path(cvm_migrate.__file__).parents[1]

HELLO = {
    "protocol": wire.PROTOCOL_VERSION,
    "agent": "test",
    "python": "3.11.0",
    "pid": 1,
    "verbs": ["read"],
    "digests": ["sha256"],
    "codecs": ["raw"],
}

_PRELUDE = f"""\
import os, struct, sys, time
sys.path.insert(0, {str(_SOURCES)!r})
from cvm_migrate.agent import wire

def send(kind, number, header, blob=b""):
    raw(wire.encode(kind, number, header, blob))

def raw(data):
    while data:
        data = data[os.write(1, data):]

def hello():
    send(wire.HELLO, 0, {HELLO!r})

_decoder = wire.Decoder()
_frames = []

def frame():
    while not _frames:
        data = os.read(0, 65536)
        if not data:
            sys.exit(0)
        _frames.extend(_decoder.feed(data))
    return _frames.pop(0)

def request():
    while True:
        found = frame()
        if found.kind == wire.HEARTBEAT:
            send(wire.HEARTBEAT, 0, found.header)
        else:
            return found
"""


def far_side(program: str, **names: object) -> Child:
    """Start a far side.

    Args:
        program: Python with ``hello()``, ``request()``, ``frame()``, ``send(kind, number, header, blob)`` and
            ``raw(bytes)``.
        names: Values that it finds under these names; what JSON can carry.
    """
    given = "".join(
        f"{name} = __import__('json').loads({json.dumps(value)!r})\n"
        for name, value in names.items()
    )
    return Child([sys.executable, "-S", "-c", _PRELUDE + given + program])
