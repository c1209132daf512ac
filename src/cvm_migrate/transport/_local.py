"""An agent as a child process on the caller's own machine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Final

from cvm_migrate.errors import AgentLostError, NotFoundError, UnsupportedError
from cvm_migrate.transport._bootstrap import Bootstrap
from cvm_migrate.transport._bundle import agent_bundle, bundle_name
from cvm_migrate.transport._child import Child
from cvm_migrate.transport._session import AgentSession

_DESCRIPTION: Final = "the local agent"
_PATIENCE: Final = 60.0


def start_local_agent(
    *,
    python: str | os.PathLike[str] = sys.executable,
    sudo: bool = False,
    silence: float = 30.0,
) -> AgentSession:
    """Start an agent on this machine.

    Its program is in memory only, and is gone when the agent is, also after a kill.

    Args:
        python: The interpreter that runs it: 2.7, or 3.6 and later.
        sudo: Whether to become root by ``sudo``, which must not ask for a password.
        silence: Seconds after which either end takes the other for lost.

    Raises:
        NotFoundError: There is no such interpreter.
        PermissionDeniedError: ``sudo`` refuses.
        AgentLostError: It ended before its greeting.
    """
    interpreter = shutil.which(python)
    if interpreter is None:
        raise NotFoundError(
            f"there is no interpreter {os.fspath(python)}",
            remedy="Name another one with python=, 2.7 or 3.6 and later, or leave it out",
        )
    # Not its real path: that of a virtual environment is a link, and its modules are found by it.
    interpreter = os.path.abspath(interpreter)  # noqa: PTH100
    arguments = ["--silence", str(silence)]
    if sudo:
        return _with_sudo(interpreter, arguments, silence)
    return AgentSession(
        _child(interpreter, arguments),
        description=_DESCRIPTION,
        silence=silence,
        patience=_PATIENCE,
    )


def _child(interpreter: str, arguments: list[str]) -> Child:
    memfd_create: Callable[[str], int] | None = getattr(os, "memfd_create", None)
    if memfd_create is None:
        raise UnsupportedError(
            f"no agent runs on {sys.platform}",
            remedy="Use a Linux machine, or reach one with SshHost(...)",
        )
    fd = memfd_create(bundle_name())
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(agent_bundle())
        # By the number of the process: as the path of the agent's own children too, as long as it runs itself.
        script = f'exec "$0" -B "/proc/$$/fd/{fd}" "$@"'
        return Child(["/bin/sh", "-c", script, interpreter, *arguments], pass_fds=[fd])
    except OSError as error:
        raise AgentLostError(f"{_DESCRIPTION} could not be started: {error}") from error
    finally:
        os.close(fd)


def _with_sudo(interpreter: str, arguments: list[str], silence: float) -> AgentSession:
    bootstrap = Bootstrap(sudo="always", python=interpreter, arguments=arguments)
    child = Child(["/bin/sh", *bootstrap.arguments])
    try:
        received = bootstrap.perform(child, description=_DESCRIPTION, patience=_PATIENCE)
    except BaseException:
        child.end(patience=1.0)
        raise
    return AgentSession(
        child,
        description=_DESCRIPTION,
        silence=silence,
        patience=_PATIENCE,
        received=received,
    )
