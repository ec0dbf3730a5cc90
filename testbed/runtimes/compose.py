"""Devices that somebody else has started, each with an agent that looks for its controller: Compose, Swarm.

    compose or swarm --starts--> containers with limits and networks --agents connect--> controller

Makes and removes nothing; the controller waits for exactly the scenario's number of agents. They come without names and
get them in the order in which they report. Limits cannot be set from here, so the fleet compares those that the
agents report with the scenario's. Keys are whatever controller.json in the folder of keys says, or else drawn, and the
agents' left there: a volume that only controller and devices have.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from testbed.device_action import DeviceAction
from testbed.errors import InputError, UnsupportedError
from testbed.keys import AGENT_FILE, CONTROLLER_FILE, ControlKeys, make_control_keys
from testbed.runtimes.container import CONTROL_PORT, KEYS_FOLDER, PROGRAM
from testbed.runtimes.state import ProcessId, RunState
from testbed.runtimes.surroundings import Identity, Surroundings
from testbed.scenario import DeviceSpec

__all__ = ["ComposeRuntime"]

KEYS_VARIABLE = "TESTBED_KEYS"
"""Names the folder of keys, where it is not that of the image."""


class ComposeRuntime:
    """The devices of one run, as they report."""

    name = "compose"
    acts: ClassVar[frozenset[DeviceAction]] = frozenset()
    """Containers are the engine's, which this one may not talk to."""
    register_timeout_s = 300.0
    """Other machines may have to fetch the image first."""
    needs_keys = True

    def __init__(self, state: RunState, *, uncapped: bool = False):
        self._state = state
        self._left_keys: Path | None = None

    def keys(self) -> ControlKeys | None:
        """Take the keys that somebody has made (`testbed keys`), or draw some and leave the agents theirs."""
        folder = Path(os.environ.get(KEYS_VARIABLE, KEYS_FOLDER))
        if (folder / CONTROLLER_FILE).exists():
            return ControlKeys.read(folder / CONTROLLER_FILE)
        if not folder.is_dir():
            fault = f"{KEYS_VARIABLE}: must be a folder that agents share, or has {CONTROLLER_FILE}, got '{folder}'"
            raise InputError([f"{fault}; mount a volume there, see docs/security.md"])
        controller, agent = make_control_keys()
        agent.write(folder / AGENT_FILE)
        self._left_keys = folder / AGENT_FILE
        return controller

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

    def programs_endpoint(self, identity: Identity) -> str | None:
        """None: programs have the control network."""
        return None

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
        """Only the keys: agents leave when their controller says so or falls silent."""
        if self._left_keys is not None:
            self._left_keys.unlink(missing_ok=True)
