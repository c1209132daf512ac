"""A connection that has carried much gets new keys, and nobody notices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cvm_migrate.transport import mint_identities
from rig import pumps
from rig.pumps import MiB

# In a process of its own: a sender's threads live as long as their process.
_SENDER = """
import json, os, sys, threading
from cvm_migrate.agent import blockio
from cvm_migrate.agent.pump import receiver, sender, target, tls
from cvm_migrate.agent.verbs import Reply, pack_ranges

args = json.load(sys.stdin)
disk = target.TargetDisk(blockio.open_disk(args["target"], "write", create_size=args["size"]))
end = receiver.Receiver(
    {1: disk}, tls.make_context(args["tls"][1], True), args["tls"][1]["peer"], "s", 2
)
port = end.listen("127.0.0.1", 0)
begin = sender.Sender(
    {1: blockio.open_disk(args["source"])},
    tls.make_context(args["tls"][0], False),
    args["tls"][0]["peer"],
    "127.0.0.1",
    port,
    "s",
    "sha256",
    30.0,
    renew_after=args["renew_after"],
)
reply = Reply(lambda header, blob: None)
begin.connect(2, reply)
result = begin.stream(1, pack_ranges([(0, args["size"])]), 1 << 18, "raw", 1, reply)
result["received"] = end.counts()
result["proof"] = disk.read_back(lambda: None, lambda done: None)
print(json.dumps(result))
sys.stdout.flush()
os._exit(0)
"""


def test_a_connection_is_made_anew_after_so_many_bytes(tmp_path: Path) -> None:
    size = 16 * MiB
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    pumps.fill(source, size, kinds="n")
    minted = mint_identities()
    done = subprocess.run(
        [sys.executable, "-c", _SENDER],
        input=json.dumps(
            {
                "source": str(source),
                "target": str(target),
                "size": size,
                "renew_after": 2 * MiB,
                "tls": [
                    {
                        "ca": one.ca,
                        "certificate": one.certificate,
                        "key": one.key,
                        "peer": one.peer,
                    }
                    for one in (minted.source, minted.target)
                ],
            }
        ),
        capture_output=True,
        check=True,
        text=True,
        timeout=100,
    )
    result = json.loads(done.stdout)

    assert result["acked"] == result["proof"]["bytes"] == size
    # Nothing was sent twice, and a renewal is no cut.
    assert result["wire"] < size + 64 * 80
    assert result["reconnects"] == 0
    assert target.read_bytes() == source.read_bytes()
