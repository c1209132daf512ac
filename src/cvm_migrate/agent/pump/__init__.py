"""The data pump: bulk data from one disk to another over TLS, by a process of its own beside each agent.

The frames between two pumps are those of ``docs/reference/data-protocol.md``. ``verbs`` is what the agent's main
process offers; ``process`` is the pump's own program.
"""
