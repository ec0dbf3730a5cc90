"""The agents of one run: what is known of each, and the way to it.

    Fleet, Hearing, Barriers, DeviceEvents --send, broadcast--> KnownAgents --Mailbox--> agent, agent, ...

Does not know what is said and when; whoever hears from a device notes it in its `KnownDevice`.
"""

from collections.abc import Callable, Mapping

from testbed.known_device import KnownDevice
from testbed.mailbox import Mailbox
from testbed.protocol.to_agents import ControllerMessage

__all__ = ["KnownAgents"]


class KnownAgents:
    """The devices of a run by name, in order of their ranks, each with an agent or still to get one."""

    def __init__(self, devices: Mapping[str, KnownDevice], mailbox: Mailbox):
        self.devices = devices
        self.mailbox = mailbox

    def send(self, name: str, message: ControllerMessage) -> None:
        """Send to the agent of one device."""
        self.mailbox.send(name, message)

    def broadcast(self, message: ControllerMessage) -> None:
        """Send to every agent that has said who it is and whose device is not down."""
        for name, device in self.devices.items():
            if device.address is not None and device.state != "down":
                self.send(name, message)

    def lacking(self, has: Callable[[KnownDevice], bool]) -> list[str]:
        """Name the devices of which something is not true."""
        return [name for name, device in self.devices.items() if not has(device)]

    def addresses(self) -> dict[str, str]:
        """Return the data address of every registered device."""
        return {name: device.address for name, device in self.devices.items() if device.address is not None}
