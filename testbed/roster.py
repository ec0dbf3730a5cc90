"""Who is who among the agents that report: named ones by their word, nameless ones in order of arrival.

Keeps names and identities of connections; sends and waits for nothing.
"""

from collections.abc import Mapping, Sequence

from testbed.protocol.from_agents import AgentMessage, Hello, Limits
from testbed.runtimes.cgroups import PAGE_BYTES, cpu_quota
from testbed.scenario import DeviceSpec

__all__ = ["Roster"]

CPUS_TOLERANCE = 1e-3
"""Quotas are whole microseconds of a period of 10 ms or more."""


class Roster:
    """The devices of a run and the connections of their agents."""

    def __init__(self, names: Sequence[str]):
        self._name_of = {name.encode(): name for name in names}
        self._free = list(names)
        self.nameless: dict[str, Limits | None] = {}
        """Devices whose agents came without a name, with the limits that they reported."""
        self.surplus: set[bytes] = set()
        """Connections of agents for whom no device was left."""

    def recognise(self, connection: bytes, message: AgentMessage) -> str | None:
        """Return the name of the device that a message is from, or None if it is from none of ours."""
        name = self._name_of.get(connection)
        if isinstance(message, Hello):
            if name is None and message.device is None:
                name = self._admit(connection, message.limits)
            if name in self._free:
                self._free.remove(name)
        return name

    def connection(self, name: str) -> bytes:
        """Return the connection of a device's agent."""
        return next(connection for connection, known in self._name_of.items() if known == name)

    def faults(self, specs: Mapping[str, DeviceSpec]) -> list[str]:
        """Say where the number of nameless agents or their limits are not what the scenario wants."""
        if self.surplus:
            count, got = len(specs), len(specs) + len(self.surplus)
            return [f"devices.count: must be the number of agents, got {count} and {got} agents; set DEVICES={count}"]
        found = []
        for name, limits in self.nameless.items():
            cpus, memory = (None, None) if limits is None else (limits.cpus, limits.memory_bytes)
            spec = specs[name]
            if (cpus is None) != (spec.cpus is None) or abs((cpus or 0) - (spec.cpus or 0)) > CPUS_TOLERANCE:
                todo = f"set CPU_QUOTA_US={cpu_quota(spec.cpus)[0] or -1}"
                found.append(f"{name}: cpus must be {spec.cpus} as in the scenario, got {cpus}; {todo}")
            wanted = None if spec.memory_mb is None else spec.memory_mb * 10**6 // PAGE_BYTES * PAGE_BYTES
            if memory != wanted:
                todo = f"set MEMORY_MB={spec.memory_mb or 0}"
                found.append(f"{name}: memory must be {wanted} bytes as in the scenario, got {memory}; {todo}")
        return [f"{fault}, or print a file that fits: testbed render" for fault in found]

    def _admit(self, connection: bytes, limits: Limits | None) -> str | None:
        if not self._free:
            self.surplus.add(connection)
            return None
        name = self._free[0]
        del self._name_of[self.connection(name)]
        self._name_of[connection] = name
        self.nameless[name] = limits
        return name
