"""The verbs on disks and image files, but for ``digest``."""

from __future__ import absolute_import

import sys

from cvm_migrate.agent import blockio
from cvm_migrate.agent.verbs import integer, optional_integer, text

assert sys.platform != "win32", "the agent runs on Linux"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Tuple

    from cvm_migrate.agent.verbs import Context, Header, Reply, Verb

# The protocol's bound on one `read`.
MAX_READ = 4 << 20


def _open(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob, reply
    handle = blockio.open_disk(
        text(args, "path"),
        text(args, "mode", ("read", "write")),
        optional_integer(args, "create_size", 0),
    )
    return {
        "handle": context.add_handle(handle),
        "path": handle.path,
        "kind": handle.kind,
        "size": handle.size,
        "logical_block_size": handle.logical_block_size,
        "physical_block_size": handle.physical_block_size,
        "identity": handle.identity,
        "direct": handle.direct,
    }, b""


def _close(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob, reply
    handle = context.handle(args)
    context.drop_handle(args)
    handle.close()
    return {}, b""


def _read(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob, reply
    handle = context.handle(args)
    return {}, handle.read(integer(args, "offset", 0), integer(args, "length", 0, MAX_READ))


def _write(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del reply
    context.handle(args).write(integer(args, "offset", 0), blob)
    return {}, b""


def _zero(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob
    handle = context.handle(args)
    method = handle.zero(integer(args, "offset", 0), integer(args, "length", 0), reply.check)
    return {"method": method}, b""


def _flush(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del blob, reply
    return {"seconds": context.handle(args).flush()}, b""


VERBS = {
    "open": _open,
    "close": _close,
    "read": _read,
    "write": _write,
    "zero": _zero,
    "flush": _flush,
}  # type: Dict[str, Verb]
