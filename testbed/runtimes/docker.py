"""Devices as containers of a Docker engine on this machine.

    testbed-<id>-data      internal network: shaped links, the only way between programs
      │ container testbed-<id>-d0: agent as process 1 (NET_ADMIN), program without capabilities as user `program`
    testbed-<id>-control   internal network: agents --TCP--> its gateway address, which is this machine

Everything bears the label `astra-testbed.run`, by which it is found again. Shapes nothing (agents do). The program's
files are those of the image (see `images/`); what `prepare` left on this machine is mounted read-only.
"""

import contextlib
import ipaddress
import itertools
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import docker
from docker.errors import ImageNotFound
from docker.types import DeviceRequest, IPAMConfig, IPAMPool

from testbed.device_action import DEVICE_ACTIONS, DeviceAction
from testbed.errors import RuntimeFailureError, UnsupportedError
from testbed.keys import AGENT_FILE, ControlKeys, make_control_keys
from testbed.runtimes.cgroups import cpu_quota
from testbed.runtimes.container import (
    AGENT_FOLDER,
    AGENT_KEYS,
    CACHE_FOLDER,
    CAPABILITIES,
    CONTROL_PORT,
    PROGRAM,
    SECURITY_OPTIONS,
    TMPFS,
    image_name,
)
from testbed.runtimes.engine import asking, connect, gone_is_fine
from testbed.runtimes.state import ProcessId, RunState
from testbed.runtimes.surroundings import Identity, Surroundings, cache_folder
from testbed.scenario import DeviceSpec

__all__ = ["DockerRuntime"]

RUN_LABEL = "astra-testbed.run"
DEVICE_LABEL = "astra-testbed.device"
POLL_PERIOD_S = 0.5
"""How often the engine is asked who has exited; the controller asks ten times a second."""
LOG_LINES = 50
SUBNET_ATTEMPTS = 5
REMOVE_ATTEMPTS = 50
REMOVE_PAUSE_S = 0.1


class DockerRuntime:
    """The devices of one run, each a container."""

    name = "docker"
    acts: ClassVar[frozenset[DeviceAction]] = frozenset(DEVICE_ACTIONS)
    register_timeout_s = 60.0
    needs_keys = True

    def __init__(self, state: RunState, *, uncapped: bool = False):
        self._state, self._uncapped = state, uncapped
        self._clients: dict[int, docker.DockerClient] = {}
        self._containers: dict[str, Any] = {}
        self._exited: dict[str, int] = {}
        self._num_restarts = 0
        self._noting = threading.Lock()
        self._polled_at = -math.inf
        self._created_at = time.time()

    def endpoint(self) -> str:
        """Return the endpoint on the control network's gateway address, which is this machine's; make that network."""
        control = self._make_network("control")
        gateway = control.attrs["IPAM"]["Config"][0]["Gateway"]
        return f"tcp://{gateway}:{CONTROL_PORT}"

    def keys(self) -> ControlKeys | None:
        """Draw the keys of the run; those of its agents are left in the run's state, which containers get mounted."""
        controller, agent = make_control_keys()
        agent.write(self._state.folder / AGENT_FILE)
        return controller

    def surroundings(self, invoking: Surroundings) -> Surroundings:
        """Programs run as the image's own user, whoever called."""
        return PROGRAM

    def create(self, specs: Mapping[str, DeviceSpec]) -> None:
        """Make the data network and a container for every device, and start the agents."""
        images = {spec.accelerator: self._image(spec.accelerator) for spec in specs.values()}
        with asking("make the devices"):
            addresses = self._make_data_network()
            control = self._engine.networks.get(self._name("control"))
            gateway = control.attrs["IPAM"]["Config"][0]["Gateway"]
            for (device, spec), address in zip(specs.items(), addresses, strict=False):
                container = self._make_container(
                    device, spec, image=images[spec.accelerator], address=address, gateway=gateway
                )
                control.connect(container)
                self._containers[device] = container
            for container in self._containers.values():
                container.start()

    def limit(self, specs: Mapping[str, DeviceSpec]) -> None:
        """Put CPU and memory limits on the containers, unless the run is uncapped."""
        if self._uncapped:
            return
        for device, spec in specs.items():
            quota_us, period_us = cpu_quota(spec.cpus)
            wanted = {"cpu_period": period_us, "cpu_quota": -1 if quota_us is None else quota_us}
            if spec.memory_mb is not None:
                wanted |= dict.fromkeys(("mem_limit", "memswap_limit"), spec.memory_mb * 10**6)
            with asking(f"limit device {device} to {spec.cpus} CPUs and {spec.memory_mb} MB"):
                self._containers[device].update(**wanted)

    def programs_endpoint(self, identity: Identity) -> str | None:
        """None: programs have the control network."""
        return None

    def agents(self) -> dict[str, ProcessId]:
        """Identify the agents by their process ids on this machine."""
        found = {}
        for device in self._containers:
            with asking(f"inspect device {device}"):
                state = self._engine.api.inspect_container(self._name(device))["State"]
            with contextlib.suppress(ProcessLookupError):
                found[device] = ProcessId.of(state["Pid"])
        return found

    def exited(self) -> dict[str, int]:
        """Exit status of each agent that is no longer running, by device."""
        if time.monotonic() - self._polled_at > POLL_PERIOD_S:
            self._polled_at, before = time.monotonic(), self._num_restarts
            found = {}
            with asking("list containers"):
                chosen = {**self._filter(), "status": ["exited", "dead"]}
                for entry in self._engine.api.containers(all=True, filters=chosen):
                    state = self._engine.api.inspect_container(entry["Id"])["State"]
                    found[entry["Labels"][DEVICE_LABEL]] = int(state["ExitCode"])
            if self._num_restarts == before:  # else some of it is no longer so
                self._exited = found
        return dict(self._exited)

    def agent_log(self, device: str) -> str:
        """What the agent itself wrote, for error messages."""
        with asking(f"read the log of device {device}"):
            said: bytes = self._containers[device].logs(tail=LOG_LINES)
        return said.decode(errors="replace")

    def out_of_memory(self, device: str) -> bool:
        """Whether the kernel has killed a process of this device for want of memory."""
        chosen = {"container": self._containers[device].id, "event": "oom"}
        with asking(f"read the events of device {device}"):
            events = self._engine.events(since=int(self._created_at), until=int(time.time()) + 1, filters=chosen)
            return any(True for _ in events)

    def act(self, device: str, action: DeviceAction) -> None:
        """Pause, resume, kill or restart a container; its address, limits and mounts are those it had."""
        api, name = self._engine.api, self._name(device)
        with asking(f"{action} device {device}"):
            state = api.inspect_container(name)["State"]
            match action:
                case "pause" if state["Running"] and not state["Paused"]:
                    api.pause(name)
                case "resume" if state["Paused"]:
                    api.unpause(name)
                case "kill" if state["Running"]:
                    api.kill(name)
                case "restart":
                    if state["Running"]:
                        api.kill(name)
                    api.start(name)
        if action == "restart":
            self._num_restarts += 1
            self._exited = {other: code for other, code in self._exited.items() if other != device}
            with self._noting:
                self._state = self._state.with_changes(agents=self.agents())

    def enter(self, device: str, command: Sequence[str]) -> list[str]:
        """Command line that runs `command` inside a device, limits included."""
        terminal = ["--tty"] if sys.stdin.isatty() else []
        return ["docker", "exec", "--interactive", *terminal, self._name(device), *command]

    def remove(self) -> None:
        """Remove all containers and networks with the run's label; idempotent, also after a crash."""
        with asking("remove the devices"):
            for _ in range(REMOVE_ATTEMPTS):
                containers = self._engine.api.containers(all=True, filters=self._filter())
                for container in containers:
                    with gone_is_fine():
                        self._engine.api.remove_container(container["Id"], force=True, v=True)
                networks = self._engine.api.networks(filters=self._filter())
                for network in networks:
                    with gone_is_fine():
                        self._engine.api.remove_network(network["Id"])
                if not containers and not networks:
                    break
                time.sleep(REMOVE_PAUSE_S)
            else:
                left = [entry["Id"] for entry in [*containers, *networks]]
                raise RuntimeFailureError(f"docker: all of run {self._state.run_id} must go away, got {left} left")
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    # Making

    def _make_network(self, role: str, subnet: str | None = None) -> Any:
        name = self._name(role)
        pool = None if subnet is None else IPAMConfig(pool_configs=[IPAMPool(subnet=subnet)])
        with asking(f"make network {name}"):
            made = self._engine.networks.create(name, driver="bridge", internal=True, labels=self._labels(), ipam=pool)
            made.reload()
        return made

    def _make_data_network(self) -> Iterator[str]:
        """Make the data network; return the addresses for devices (the subnet's first is the gateway's).

        A device that is restarted keeps its address only if it has asked for it, and may ask only where the subnet was
        asked for too. So let the engine choose a free one, and ask for that.
        """
        for attempts_left in reversed(range(SUBNET_ATTEMPTS)):
            chosen = self._make_network("data")
            subnet = str(chosen.attrs["IPAM"]["Config"][0]["Subnet"])
            chosen.remove()
            try:
                self._make_network("data", subnet)
                break
            except RuntimeFailureError:  # somebody else was quicker
                if not attempts_left:
                    raise
        return (str(address) for address in itertools.islice(ipaddress.ip_network(subnet).hosts(), 1, None))

    def _make_container(self, device: str, spec: DeviceSpec, *, image: str, address: str, gateway: str) -> Any:
        cache, data = cache_folder(), self._name("data")
        keys = {str((self._state.folder / AGENT_FILE).resolve()): {"bind": AGENT_KEYS, "mode": "ro"}}
        return self._engine.containers.create(
            image,
            [
                *("--device", device, "--endpoint", f"tcp://{gateway}:{CONTROL_PORT}"),
                *("--folder", AGENT_FOLDER, "--keys", AGENT_KEYS),
            ],
            name=self._name(device),
            hostname=device,
            labels=self._labels() | {DEVICE_LABEL: device},
            network=data,
            networking_config={data: self._engine.api.create_endpoint_config(ipv4_address=address)},
            cap_drop=["ALL"],
            cap_add=list(CAPABILITIES),
            security_opt=list(SECURITY_OPTIONS),
            read_only=True,
            tmpfs=TMPFS,
            cpu_period=cpu_quota(spec.cpus)[1],
            volumes=keys | ({str(cache): {"bind": CACHE_FOLDER, "mode": "ro"}} if cache.is_dir() else {}),
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if spec.accelerator == "cuda" else [],
        )

    def _image(self, accelerator: str) -> str:
        """Return the image's name. Raises UnsupportedError if the engine does not have it."""
        name = image_name(accelerator)
        try:
            with asking(f"look for image {name}"):
                self._engine.images.get(name)
        except RuntimeFailureError as error:
            if not isinstance(error.__cause__, ImageNotFound):
                raise
            target = f"images/build {accelerator}"
            message = f"docker: image {name} must exist on this engine, got none; {target} makes it"
            raise UnsupportedError(message) from error
        return name

    # Finding

    @property
    def _engine(self) -> docker.DockerClient:
        """This thread's own connection: the SDK's may not be shared."""
        thread = threading.get_ident()
        if thread not in self._clients:
            self._clients[thread] = connect()
        return self._clients[thread]

    def _labels(self) -> dict[str, str]:
        return {RUN_LABEL: self._state.run_id}

    def _filter(self) -> dict[str, Any]:
        return {"label": [f"{RUN_LABEL}={self._state.run_id}"]}

    def _name(self, what: str) -> str:
        return f"testbed-{self._state.run_id}-{what}"
