"""TLS of one migration: contexts out of keys in memory, handshakes with a time limit, the peer's role."""

from __future__ import absolute_import

import errno
import os
import select
import socket
import ssl

from cvm_migrate.agent import names
from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.verbs import AgentError, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Text

# Type checkers look at this module for Windows too, which lacks its `poll`.
_select = select  # type: Any

# TLS 1.2; the suites of 1.3 are all of this kind.
_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"
)
_CIPHERSUITES = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
_OLD = ("OP_NO_SSLv2", "OP_NO_SSLv3", "OP_NO_TLSv1", "OP_NO_TLSv1_1")
_HARDENING = ("OP_NO_COMPRESSION", "OP_NO_RENEGOTIATION", "OP_NO_TICKET", "OP_SINGLE_ECDH_USE")
_REMEDY = "Send the data through SSH, or use a newer Python on this host"


class Cut(Exception):
    """The connection ended, or fell silent."""


def make_context(tls, server):
    # type: (Dict[str, Any], bool) -> ssl.SSLContext
    """Return a context in which only a peer of the same migration is believed.

    Args:
        tls: The protocol's ``{"ca", "certificate", "key", "peer"}``.
        server: Whether this is the end that listens.

    Raises:
        AgentError: ``unsupported``: this Python's TLS is too old; ``bad-request``: the keys are none.
    """
    ca = text(tls, "ca")
    certificate = text(tls, "certificate")
    key = text(tls, "key")
    text(tls, "peer")
    if not hasattr(ssl, "SSLContext") or not hasattr(ssl, "OP_NO_TLSv1_1"):
        raise AgentError("unsupported", "this Python's ssl module has no TLS 1.2", remedy=_REMEDY)
    context = _bare_context(server)
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.set_ciphers(_CIPHERS)
    except ssl.SSLError as error:
        raise AgentError(
            "unsupported",
            "this Python's OpenSSL (%s) lacks the ciphers: %s" % (ssl.OPENSSL_VERSION, error),
            remedy=_REMEDY,
        )
    set_ciphersuites = getattr(context, "set_ciphersuites", None)  # type: Any
    if set_ciphersuites is not None:  # Python 3.15
        set_ciphersuites(_CIPHERSUITES)
    if hasattr(context, "num_tickets") and server:
        # Nothing is resumed; and a ticket would wake a sender that waits for an answer.
        context.num_tickets = 0
    try:
        context.load_verify_locations(cadata=names.to_text(ca))
        _load_pair(context, certificate, key)
    except (ssl.SSLError, ValueError, EnvironmentError) as error:
        raise AgentError("bad-request", "the TLS identity cannot be used: %s" % (error,))
    return context


def _bare_context(server):
    # type: (bool) -> ssl.SSLContext
    name = "PROTOCOL_TLS_SERVER" if server else "PROTOCOL_TLS_CLIENT"
    protocol = getattr(ssl, name, None)
    if protocol is None:
        protocol = ssl.PROTOCOL_SSLv23
    context = ssl.SSLContext(protocol)
    # The name is compared in `check_peer`, at both ends alike: a server's context cannot do it, nor an old client's.
    context.check_hostname = False  # novm - Python 2.7.9 has it
    versions = getattr(ssl, "TLSVersion", None)  # type: Any
    if versions is not None:
        context.minimum_version = versions.TLSv1_2  # novm - there since TLSVersion is
    else:
        for option in _OLD:
            context.options |= getattr(ssl, option, 0)
    for option in _HARDENING:
        context.options |= getattr(ssl, option, 0)
    return context


def _load_pair(context, certificate, key):
    # type: (ssl.SSLContext, str, str) -> None
    """Give a context its certificate and key, which OpenSSL reads from files only: from two pipes."""
    pipes = []  # type: List[int]
    try:
        for pem in (certificate, key):
            data = names.to_bytes(pem)
            if len(data) > 32 << 10:
                # More would not fit into a pipe, and writing it would wait for ever.
                raise ValueError("a PEM text of %d bytes" % len(data))
            read, write = os.pipe()
            pipes.append(read)
            try:
                os.write(write, data)
            finally:
                os.close(write)
        context.load_cert_chain("/dev/fd/%d" % pipes[0], "/dev/fd/%d" % pipes[1])
    finally:
        for pipe in pipes:
            os.close(pipe)


def wrap(context, sock, server):
    # type: (ssl.SSLContext, socket.socket, bool) -> ssl.SSLSocket
    """Return a connected socket as a TLS one that never blocks, its handshake still to be done.

    Raises:
        EnvironmentError: The connection has ended.
    """
    sock.setblocking(False)
    return context.wrap_socket(
        sock, server_side=server, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )


def shake(secure, end):
    # type: (ssl.SSLSocket, float) -> None
    """Do the handshake.

    Args:
        secure: From :func:`wrap`; it stays open whatever happens.
        end: When it must be over, by the monotonic clock.

    Raises:
        Cut: The connection ended, or the time is over.
        ssl.SSLError: The peer is refused, or refuses this end.
    """
    while True:
        try:
            secure.do_handshake()
            return
        except ssl.SSLWantReadError:
            wanted = _select.POLLIN
        except ssl.SSLWantWriteError:
            wanted = _select.POLLOUT
        except ssl.SSLError as error:
            if is_end(error):
                raise Cut("the connection ended during the TLS handshake")
            raise
        except EnvironmentError as error:
            raise Cut("the connection ended during the TLS handshake: %s" % (error,))
        _wait(secure, wanted, end, "the TLS handshake took too long")


def linger(sock, end):
    # type: (socket.socket, float) -> None
    """Read and forget what a peer still sends, until it closes or time is over; below TLS.

    Raises:
        EnvironmentError: The connection has ended.
    """
    socket.socket.shutdown(sock, socket.SHUT_WR)
    descriptor = os.dup(sock.fileno())
    try:
        while monotonic() < end:
            try:
                if not os.read(descriptor, 64 << 10):
                    return
            except EnvironmentError as error:
                if error.errno != errno.EAGAIN:
                    raise
                try:
                    _wait(sock, _select.POLLIN, end, "")
                except Cut:
                    return
    finally:
        os.close(descriptor)


def _wait(sock, wanted, end, late):
    # type: (socket.socket, int, float, str) -> None
    left = end - monotonic()
    if left <= 0:
        raise Cut(late)
    poll = _select.poll()
    poll.register(sock.fileno(), wanted)
    try:
        poll.poll(int(left * 1000) + 1)
    except select.error as error:
        if error.args[0] != errno.EINTR:
            raise


def is_end(error):
    # type: (ssl.SSLError) -> bool
    """Whether an error of OpenSSL only says that the connection has ended."""
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return True
    return "UNEXPECTED_EOF" in (getattr(error, "reason", None) or "")


def check_peer(secure, name):
    # type: (ssl.SSLSocket, Text) -> None
    """Compare the name in the peer's certificate, which OpenSSL has verified, with its role.

    Raises:
        AgentError: ``peer``: it is another.
    """
    certificate = secure.getpeercert()  # type: Any
    pairs = certificate.get("subjectAltName", ()) if certificate else ()  # type: Any
    found = [value for kind, value in pairs if kind == "DNS"]  # type: List[Text]
    if found != [name]:
        raise AgentError(
            "peer",
            "the peer's certificate is for %s, not for %s" % (", ".join(found) or "no one", name),
        )
