"""Agents of a run for tests: what is known of them, and what they are told, without sockets."""

from typing import cast

from testbed.known_agents import KnownAgents
from testbed.known_device import KnownDevice
from testbed.mailbox import Mailbox
from testbed.protocol.to_agents import ControllerMessage
from testbed.scenario import DeviceSpec


class Outbox:
    """A mailbox that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ControllerMessage]] = []

    def send(self, name: str, message: ControllerMessage) -> None:
        self.sent.append((name, message))


def agents_of(count: int) -> tuple[KnownAgents, Outbox]:
    """Return agents d0, d1, ... that have reported, of devices with 100 MB."""
    spec = DeviceSpec(cpus=None, memory_mb=100, accelerator="cpu")
    devices = {f"d{rank}": KnownDevice(rank, spec, address=f"10.77.0.{rank + 1}") for rank in range(count)}
    outbox = Outbox()
    return KnownAgents(devices, cast(Mailbox, outbox)), outbox
