"""Ways to an agent, and keys for two agents that must trust each other."""

from __future__ import annotations

from cvm_migrate.transport._bundle import agent_bundle, bundle_name
from cvm_migrate.transport._forward import SshForward
from cvm_migrate.transport._identities import (
    SOURCE_NAME,
    TARGET_NAME,
    Identities,
    mint_identities,
)
from cvm_migrate.transport._local import start_local_agent
from cvm_migrate.transport._reverse import SshReverse
from cvm_migrate.transport._session import AgentSession
from cvm_migrate.transport._ssh import SshTarget, start_ssh_agent

__all__ = [
    "SOURCE_NAME",
    "TARGET_NAME",
    "AgentSession",
    "Identities",
    "SshForward",
    "SshReverse",
    "SshTarget",
    "agent_bundle",
    "bundle_name",
    "mint_identities",
    "start_local_agent",
    "start_ssh_agent",
]
