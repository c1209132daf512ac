"""A port of this machine as a port of another one, through SSH: for a source whose data has no other way here."""

from __future__ import annotations

import re
import socket
import threading
import time
from typing import Final

from cvm_migrate.closing import Closing
from cvm_migrate.errors import (
    AgentLostError,
    CvmMigrateError,
    InvalidRequestError,
    UnsupportedError,
)
from cvm_migrate.transport._askpass import PasswordHelper
from cvm_migrate.transport._child import Child
from cvm_migrate.transport._environment import inherited
from cvm_migrate.transport._ssh import SshTarget, explain

_LOOPBACK: Final = "127.0.0.1"
_PATIENCE: Final = 90.0
_LOOK: Final = 1.0
_FIRST_WAIT: Final = 0.2
_LONGEST_WAIT: Final = 5.0
# How long a client gets to end once its input has ended.
_END_PATIENCE: Final = 1.0
# What OpenSSH's client says (openssh-portable: ssh.c, mux.c; 5.4 to 10.0).
_ALLOCATED: Final = re.compile(r"Allocated port (\d+) for remote forward to ")
_REFUSED: Final = "remote port forwarding failed for listen port {port}"
# Not -N: the client must end when this process is killed, and it looks at its input for a command only.
_COMMAND: Final = "exec /bin/sh -c 'read -r end'"


class SshReverse(Closing):
    """A port on the other machine's loopback that leads to a port of this one.

    One SSH connection carries everything. When it ends, another is made for the same port, again and again until
    :meth:`close`; who used it connects anew.

    Args:
        target: The machine.
        local_port: The port here.
        local_host: The address here that it belongs to.
        silence: Seconds without a sign from the other end after which the connection is given up.

    Raises:
        InvalidRequestError: That is no port.
        UnsupportedError: The SSH server there does not allow it.
        HostKeyError: The host key is unknown or has changed.
        PermissionDeniedError: The login is refused.
        ConnectionLostError: The machine cannot be reached.
        AgentLostError: The client ended for another reason, or no port was given within 90 s.
    """

    def __init__(
        self,
        target: SshTarget,
        local_port: int,
        *,
        local_host: str = _LOOPBACK,
        silence: float = 120.0,
    ) -> None:
        if not 0 < local_port < 1 << 16:
            raise InvalidRequestError(f"{local_port} is no port", remedy="Give 1 to 65535")
        self._target = target
        self._silence = silence
        self._to = f"[{local_host}]:{local_port}"
        self._closed = threading.Event()
        self._helper = PasswordHelper(target.password)
        try:
            self._child: Child | None = self._start(0)
            self.port = self._allocated(self._child)
        except BaseException:
            self._helper.close()
            raise
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(
            target=self._keep, name=f"port of {target.destination}", daemon=True
        )
        self._thread.start()

    @property
    def client(self) -> int | None:
        """Process number of the SSH client that runs, if one does."""
        child = self._child
        return None if child is None else child.pid

    def _start(self, port: int) -> Child:
        options = (
            *("-R", f"[{_LOOPBACK}]:{port}:{self._to}"),
            # In a connection that others share, the port would outlive this client.
            *("-o", "ControlPath=none"),
        )
        try:
            return Child(
                [*self._target.client(*options, silence=self._silence), _COMMAND],
                environment=inherited(**self._helper.environment),
            )
        except OSError as error:
            raise AgentLostError(
                f"OpenSSH's client could not be started: {error}",
                remedy="Install it (openssh-client)",
            ) from error

    def _allocated(self, child: Child) -> int:
        """Wait for the port that the other machine chose."""
        end = time.monotonic() + _PATIENCE
        error: CvmMigrateError | None = None
        while error is None:
            found = _ALLOCATED.search(child.errors)
            if found is not None:
                return int(found[1])
            if _REFUSED.format(port=0) in child.errors:
                error = UnsupportedError(
                    f"the SSH server of {self._target.destination} does not let its ports lead here",
                    remedy="Set AllowTcpForwarding yes in its sshd_config, or let the source reach the target's data"
                    " port",
                    device=self._target.destination,
                )
            elif not child.output_open:
                child.wait(2.0)
                error = explain(
                    self._target,
                    child.errors,
                    AgentLostError(f"the SSH connection to {self._target.destination} ended"),
                )
            elif time.monotonic() > end:
                error = AgentLostError(
                    f"{self._target.destination} gave no port within {_PATIENCE:g} s",
                    seconds=_PATIENCE,
                )
            else:
                child.exchange(None, _LOOK)
        child.end(patience=_END_PATIENCE)
        raise error

    def _keep(self) -> None:
        """Watch the client, and start another when it has ended."""
        wait = _FIRST_WAIT
        while not self._closed.is_set():
            child = self._child
            if child is None:
                if self._closed.wait(wait):
                    break
                wait = min(_LONGEST_WAIT, wait * 2)
                self._child = self._restart()
                continue
            began = time.monotonic()
            child.exchange(None, _LOOK, self._wake.fileno())
            # The port may still belong to a connection whose end the other machine has not noticed.
            if not child.output_open or _REFUSED.format(port=self.port) in child.errors:
                self._child = None
                child.end(patience=_END_PATIENCE)
            elif time.monotonic() - began >= _LOOK:
                wait = _FIRST_WAIT
        child = self._child
        if child is not None:
            child.end(patience=_END_PATIENCE)

    def _restart(self) -> Child | None:
        try:
            return self._start(self.port)
        except AgentLostError:
            # No more processes can be started now: that may pass.
            return None

    def close(self) -> None:
        """End the connection; can be called more than once."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._waker.send(b"!")
        self._thread.join()
        self._waker.close()
        self._wake.close()
        self._helper.close()
