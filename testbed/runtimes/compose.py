"""Devices that somebody else has started, each with an agent that looks for its controller: Compose, Swarm.

    compose or swarm --starts--> containers with limits and networks --agents connect--> controller

Makes and removes nothing; the controller waits for exactly the scenario's number of agents. They come without names and
get them in the order in which they report. Limits cannot be set from here, so the fleet compares those that the
agents report with the scenario's.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from testbed.errors import UnsupportedError
from testbed.event_schema import DeviceAction
from testbed.runtimes.container import CONTROL_PORT, PROGRAM
from testbed.runtimes.state import ProcessId, RunState
from testbed.runtimes.surroundings import Surroundings
from testbed.scenario import DeviceSpec

__all__ = ["ComposeRuntime"]


class ComposeRuntime:
    """The devices of one run, as they report."""

    name = "compose"
    acts: ClassVar[frozenset[DeviceAction]] = frozenset()
    """Containers are the engine's, which this one may not talk to."""
    register_timeout_s = 300.0
    """Other machines may have to fetch the image first."""

    def __init__(self, state: RunState, *, uncapped: bool = False):
        self._state = state

    def endpoint(self) -> str:
        """Any address of this container: it is on the control network alone."""
        return f"tcp://*:{CONTROL_PORT}"

    def surroundings(self, invoking: Surroundings) -> Surroundings:
        """Programs run as the image's own user."""
        return PROGRAM

    def create(self, specs: Mapping[str, DeviceSpec]) -> None:
        """Nothing: the devices are there, or on their way."""

    def limit(self, specs: Mapping[str, DeviceSpec]) -> None:
        """Nothing: the containers have had their limits from the start."""

    def agents(self) -> dict[str, ProcessId]:
        """None that this container could see."""
        return {}

    def exited(self) -> dict[str, int]:
        """None that this container could see; the fleet notices agents that fall silent."""
        return {}

    def agent_log(self, device: str) -> str:
        """Out of reach: the engine has it."""
        return ""

    def out_of_memory(self, device: str) -> bool:
        """Out of reach: the engine knows."""
        return False

    def act(self, device: str, action: DeviceAction) -> None:
        """Refuse: see `acts`."""
        raise UnsupportedError(f"device {device}: --runtime compose cannot {action} a container; use --runtime docker")

    def enter(self, device: str, command: Sequence[str]) -> list[str]:
        """Refuse: Compose itself enters its containers."""
        raise UnsupportedError(f"device {device}: --runtime compose enters no device; use docker compose exec")

    def remove(self) -> None:
        """Nothing: agents leave when their controller says so or falls silent."""
