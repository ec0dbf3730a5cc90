"""A running network at one moment: what its devices use and its links carry.

    state.json of a run --agents--> DeviceMeter, LinkMeter, one a device --> Snapshot
    the run's controller, if it is this process --states of devices------------┘

Works for the controller's own run and for any other on this machine, whatever made its devices, as long as their agents
are processes here. Links are read a few devices at a time, so that many links do not cost more than a few.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from testbed.live_devices import DeviceMeter, Use
from testbed.live_links import LinkMeter, LinkNow
from testbed.runtimes.state import ProcessId, RunState

__all__ = ["DeviceNow", "Snapshot", "Watcher"]

LINKS_BUDGET_S = 0.002
"""What reading links may take in one sample; at two samples a second, 0.4 % of a core."""


@dataclass(frozen=True)
class DeviceNow:
    """One device: what it is doing, and what it uses."""

    name: str
    state: str
    use: Use


@dataclass(frozen=True)
class Snapshot:
    """All of them; links in order of destination and source, those that could be read."""

    devices: tuple[DeviceNow, ...] = ()
    links: tuple[LinkNow, ...] = ()


class Watcher:
    """Samples one run. `states` says what each device is doing; without it, only whether its agent lives is known."""

    def __init__(self, run_id: str, states: Callable[[], Mapping[str, str]] | None = None):
        self._run_id, self._states = run_id, states
        self._meters: dict[str, tuple[ProcessId, DeviceMeter, LinkMeter]] = {}
        self._links: dict[str, list[LinkNow]] = {}
        self._next = 0

    def sample(self) -> Snapshot | None:
        """Look at the run; None once it has gone."""
        state = RunState.find(self._run_id)
        if state is None:
            return None
        self._meet(state)
        said = {} if self._states is None else self._states()
        devices = tuple(
            DeviceNow(name, said.get(name) or _agent_state(state, name), self._use(name)) for name in state.devices
        )
        self._read_links(state)
        return Snapshot(devices, tuple(link for name in state.devices for link in self._links.get(name, ())))

    def close(self) -> None:
        """Let go of the devices; idempotent."""
        for _, _, links in self._meters.values():
            links.close()
        self._meters.clear()

    def _meet(self, state: RunState) -> None:
        """Have a meter for every agent, and none for one that is another by now."""
        for name, agent in state.agents.items():
            if name not in self._meters or self._meters[name][0] != agent:
                if name in self._meters:
                    self._meters[name][2].close()
                group = f"testbed-{state.run_id}/{name}" if state.runtime == "netns" else "docker"
                meters = DeviceMeter(agent.pid, group), LinkMeter(agent.pid, name, state.devices)
                self._meters[name] = (agent, *meters)

    def _use(self, name: str) -> Use:
        return self._meters[name][1].look() if name in self._meters else Use()

    def _read_links(self, state: RunState) -> None:
        """Read the links of as many devices as there is time for, at least one, going round."""
        names = [name for name in state.devices if name in self._meters]
        until = time.monotonic() + LINKS_BUDGET_S
        for _ in names:
            name = names[self._next % len(names)]
            self._next += 1
            agent, _, links = self._meters[name]
            found = links.look() if agent.alive() else []
            if not found:  # sockets would keep alive the namespace of one that has gone
                links.close()
            self._links[name] = found or [replace(link, rate_bps=None) for link in self._links.get(name, ())]
            if time.monotonic() > until:
                return


def _agent_state(state: RunState, name: str) -> str:
    agent = state.agents.get(name)
    if agent is None:
        return "starting"
    return "up" if agent.alive() else "gone"
