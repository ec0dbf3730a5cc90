"""Where devices live: one `Runtime` per kind of isolation.

    controller --create--> Runtime --starts--> one agent per device --connects back--> controller

A runtime makes devices, the data network between them and nothing else: links are shaped by the agents. Everything it
makes bears the run's id, so that `remove` finds it again after a crash, in another process.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from testbed.device_action import DeviceAction
from testbed.keys import ControlKeys
from testbed.runtimes.compose import ComposeRuntime
from testbed.runtimes.docker import DockerRuntime
from testbed.runtimes.netns import NetnsRuntime
from testbed.runtimes.state import ProcessId, RunState
from testbed.runtimes.surroundings import Identity, Surroundings
from testbed.scenario import DeviceSpec

__all__ = ["RUNTIMES", "Runtime", "RuntimeKind"]


class Runtime(Protocol):
    """The devices of one run."""

    @property
    def acts(self) -> frozenset[DeviceAction]:
        """What `act` can do to whole devices; agents do what else they can, to the program alone."""
        ...

    @property
    def register_timeout_s(self) -> float:
        """How long the agents may take to report."""
        ...

    @property
    def needs_keys(self) -> bool:
        """Whether others than the run's own programs may reach its networks: programs then get keys by default."""
        ...

    def keys(self) -> ControlKeys | None:
        """Return the controller's keys, once its agents can find theirs; None where a Unix socket keeps others out.

        Raises RuntimeFailureError, InputError.
        """
        ...

    def endpoint(self) -> str:
        """ZeroMQ endpoint that the controller binds and the agents connect to."""
        ...

    def create(self, specs: Mapping[str, DeviceSpec]) -> None:
        """Make devices and data network, start every agent. Raises RuntimeFailureError, UnsupportedError."""
        ...

    def limit(self, specs: Mapping[str, DeviceSpec]) -> None:
        """Put CPU and memory limits on the devices."""
        ...

    def surroundings(self, invoking: Surroundings) -> Surroundings:
        """User and folder of programs, given those of whoever called."""
        ...

    def programs_endpoint(self, identity: Identity) -> str | None:
        """Return a ZeroMQ endpoint that a program of this user may bind, where programs meet beside the data network.

        None where they have the control network for that.
        """
        ...

    def agents(self) -> dict[str, ProcessId]:
        """Identify the agent processes, for the run's state."""
        ...

    def exited(self) -> dict[str, int]:
        """Exit status of each agent that is no longer running, by device."""
        ...

    def agent_log(self, device: str) -> str:
        """What the agent itself wrote, for error messages."""
        ...

    def out_of_memory(self, device: str) -> bool:
        """Whether the kernel has killed a process of this device for want of memory."""
        ...

    def act(self, device: str, action: DeviceAction) -> None:
        """Do one of `acts` to a device, and return once it is done; nothing if the device is so already.

        `restart` ends all that runs there and starts the agent alone, which has to be told everything again. May be
        called from several threads, for a device from one of them.
        """
        ...

    def enter(self, device: str, command: Sequence[str]) -> list[str]:
        """Command line that runs `command` inside a device, limits included."""
        ...

    def remove(self) -> None:
        """Remove all that bears the run's id; idempotent, also after a crash. Never touches anything else."""
        ...


class RuntimeKind(Protocol):
    """What makes a `Runtime`: its class."""

    @property
    def acts(self) -> frozenset[DeviceAction]:
        """See `Runtime`."""
        ...

    def __call__(self, state: RunState, *, uncapped: bool = False) -> Runtime:
        """Speak for the devices of the run that `state` describes, existing or not."""
        ...


RUNTIMES: dict[str, RuntimeKind] = {"netns": NetnsRuntime, "docker": DockerRuntime, "compose": ComposeRuntime}
