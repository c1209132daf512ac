"""Whether a port of another host can be reached from here: one TCP connect that sends nothing."""

from __future__ import absolute_import, division

import errno
import os
import socket

from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.verbs import integer, number, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    from cvm_migrate.agent.verbs import Context, Header, Reply, Verb

OPEN = "open"
REFUSED = "refused"
TIMEOUT = "timeout"
UNREACHABLE = "unreachable"
UNKNOWN_NAME = "unknown-name"
# The most favourable first.
_ORDER = (OPEN, REFUSED, TIMEOUT, UNREACHABLE)

# Of Linux; not every Python has them, and other systems number them otherwise.
_IP_MTU = 14
_IPPROTO_IPV6 = 41
_IPV6_MTU = 24
_TCP_MAXSEG = 2


def _reach(context, args, blob, reply):
    # type: (Context, Header, bytes, Reply) -> Tuple[Header, bytes]
    del context, blob
    host = text(args, "host")
    port = integer(args, "port", 1, 65535)
    end = monotonic() + number(args, "timeout", 0.1, 60.0)
    try:
        addresses = socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
    except EnvironmentError as error:
        return _answer(UNKNOWN_NAME, 0.0, message=error.strerror or "%s" % (error,)), b""
    except UnicodeError as error:
        return _answer(UNKNOWN_NAME, 0.0, message="%s" % (error,)), b""
    best = None  # type: Optional[Header]
    for at, found in enumerate(addresses):
        reply.check()
        share = max(0.1, (end - monotonic()) / (len(addresses) - at))
        answer = _connect(found, share)
        if best is None or _ORDER.index(answer["outcome"]) < _ORDER.index(best["outcome"]):
            best = answer
        if answer["outcome"] == OPEN:
            break
    return best or _answer(UNKNOWN_NAME, 0.0, message="there is no address"), b""


def _answer(outcome, seconds, address=None, message=None, mtu=None, mss=None):
    # type: (str, float, Optional[str], Optional[str], Optional[int], Optional[int]) -> Header
    return {
        "outcome": outcome,
        "seconds": seconds,
        "address": address,
        "message": message,
        "mtu": mtu,
        "mss": mss,
    }


def _connect(found, seconds):
    # type: (Any, float) -> Header
    """Try one address of getaddrinfo."""
    family, kind, protocol, _, address = found
    begin = monotonic()
    try:
        sock = socket.socket(family, kind, protocol)
    except EnvironmentError as error:
        return _answer(UNREACHABLE, 0.0, address[0], _words(error))
    try:
        sock.settimeout(seconds)
        try:
            sock.connect(address)
        except socket.timeout:
            return _answer(TIMEOUT, monotonic() - begin, address[0], "no answer")
        except EnvironmentError as error:
            return _answer(_outcome(error), monotonic() - begin, address[0], _words(error))
        passed = monotonic() - begin
        if sock.getsockname() == address:
            # The kernel may give a connect to one's own host the very port it asks for: it has met itself.
            return _answer(REFUSED, passed, address[0], os.strerror(errno.ECONNREFUSED))
        mtu, mss = path_facts(sock)
        return _answer(OPEN, passed, address[0], None, mtu, mss)
    finally:
        sock.close()


def _outcome(error):
    # type: (EnvironmentError) -> str
    if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
        return REFUSED
    return TIMEOUT if error.errno == errno.ETIMEDOUT else UNREACHABLE


def _words(error):
    # type: (EnvironmentError) -> str
    return os.strerror(error.errno) if error.errno else "%s" % (error,)


def path_facts(sock):
    # type: (Any) -> Tuple[Optional[int], Optional[int]]
    """Return the path's MTU and the segment size of a connected socket; None for what the system does not know."""
    level, option = (
        (_IPPROTO_IPV6, _IPV6_MTU)
        if sock.family == socket.AF_INET6
        else (socket.IPPROTO_IP, _IP_MTU)
    )
    return _option(sock, level, option), _option(sock, socket.IPPROTO_TCP, _TCP_MAXSEG)


def _option(sock, level, option):
    # type: (Any, int, int) -> Optional[int]
    try:
        value = sock.getsockopt(level, option)  # type: int
    except EnvironmentError:
        return None
    return value if value > 0 else None


VERBS = {"reach": _reach}  # type: Dict[str, Verb]
