"""Barriers of a program: who waits where, and who is waited for in vain.

    Barrier, from each device in turn --reach--> the last one opens it: BarrierOpen to all
                                             └── DeviceError if a device has ended that the others wait for

A program names its barriers as it likes, and may meet at one again. Nothing here waits, or knows what they are for.
"""

from testbed.errors import DeviceError
from testbed.known_agents import KnownAgents
from testbed.protocol.to_agents import BarrierOpen

__all__ = ["Barriers"]


class Barriers:
    """The barriers at which devices of a run wait. Every device has to reach one for it to open."""

    def __init__(self, agents: KnownAgents):
        self._agents = agents
        self._waiting: dict[str, set[str]] = {}

    def clear(self) -> None:
        """Forget whoever waits: a program starts anew."""
        self._waiting.clear()

    def reach(self, device: str, barrier: str) -> None:
        """Take note that a device waits, and open the barrier if it is the last. Raises like `check`."""
        waiting = self._waiting.setdefault(barrier, set())
        waiting.add(device)
        if len(waiting) == len(self._agents.devices):
            del self._waiting[barrier]
            self._agents.broadcast(BarrierOpen(name=barrier))
        self.check()

    def leave(self, device: str) -> None:
        """Forget that a device waits, whose program is gone. Raises like `check`."""
        for waiting in self._waiting.values():
            waiting.discard(device)
        self.check()

    def check(self) -> None:
        """Raise DeviceError where a device waits for one that has ended."""
        ended = self._agents.lacking(lambda device: device.exited is None and not device.asks)
        for barrier, waiting in self._waiting.items():
            if ended and waiting:
                raise DeviceError(
                    f"device {min(waiting)} waits at barrier {barrier!r}, but {', '.join(ended)} has ended"
                )
