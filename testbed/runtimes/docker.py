"""Devices as containers of a Docker engine on this machine.

    testbed-<id>-data      internal network: shaped links, the only way between programs
      │ container testbed-<id>-d0: agent as process 1 (NET_ADMIN), program without capabilities as user `program`
    testbed-<id>-control   internal network: agents --TCP--> its gateway address, which is this machine

Everything bears the label `astra-testbed.run`, by which it is found again. Sole importer of the Docker SDK; shapes
nothing (agents do). The program's files are those of the image (see `images/`); what `prepare` left on this machine is
mounted read-only.
"""

import contextlib
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest

from testbed.errors import RuntimeFailureError, UnsupportedError
from testbed.runtimes.cgroups import cpu_quota
from testbed.runtimes.container import (
    AGENT_FOLDER,
    CACHE_FOLDER,
    CAPABILITIES,
    CONTROL_PORT,
    PROGRAM,
    SECURITY_OPTIONS,
    TMPFS,
    image_name,
)
from testbed.runtimes.state import ProcessId, RunState
from testbed.runtimes.surroundings import Surroundings, cache_folder
from testbed.scenario import DeviceSpec

__all__ = ["DockerRuntime", "Engine", "inspect_engine"]

RUN_LABEL = "astra-testbed.run"
DEVICE_LABEL = "astra-testbed.device"
DEFAULT_HOST = "unix:///var/run/docker.sock"
POLL_PERIOD_S = 0.5
"""How often the engine is asked who has exited; the controller asks ten times a second."""
LOG_LINES = 50
REMOVE_ATTEMPTS = 50
REMOVE_PAUSE_S = 0.1


@dataclass(frozen=True)
class Engine:
    """What `testbed doctor` wants to know of the engine."""

    version: str
    cgroup_version: str
    has_gpus: bool
    """Whether NVIDIA's container toolkit has given it a runtime."""
    images: tuple[str, ...]


def inspect_engine() -> Engine:
    """Ask the engine about itself. Raises UnsupportedError if it does not answer."""
    with contextlib.closing(_connect()) as client:
        facts = client.info()
        tags = [tag for image in client.api.images() for tag in image["RepoTags"] or ()]
    version, cgroup_version = str(facts["ServerVersion"]), str(facts.get("CgroupVersion", "1"))
    return Engine(version, cgroup_version, "nvidia" in facts.get("Runtimes", {}), tuple(tags))


def _connect() -> docker.DockerClient:
    host = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    try:
        if host.startswith("unix://"):  # tried first, because the SDK buries the reason and leaks the socket
            with socket.socket(socket.AF_UNIX) as trial:
                trial.connect(host.removeprefix("unix://"))
        return docker.from_env()
    except (DockerException, OSError) as error:
        denied = isinstance(error, PermissionError)
        todo = "join the group docker, or be root" if denied else "install Docker Engine 20.10 or newer and start it"
        message = f"docker: an engine must answer at {host}, got {error}; {todo} (--runtime netns needs none)"
        raise UnsupportedError(message) from error


class DockerRuntime:
    """The devices of one run, each a container."""

    name = "docker"
    register_timeout_s = 30.0

    def __init__(self, state: RunState, *, uncapped: bool = False):
        self._state, self._uncapped = state, uncapped
        self._engine_client: docker.DockerClient | None = None
        self._containers: dict[str, Any] = {}
        self._exited: dict[str, int] = {}
        self._polled_at = -math.inf
        self._created_at = time.time()

    def endpoint(self) -> str:
        """Return the endpoint on the control network's gateway address, which is this machine's; make that network."""
        control = self._make_network("control")
        gateway = control.attrs["IPAM"]["Config"][0]["Gateway"]
        return f"tcp://{gateway}:{CONTROL_PORT}"

    def surroundings(self, invoking: Surroundings) -> Surroundings:
        """Programs run as the image's own user, whoever called."""
        return PROGRAM

    def create(self, specs: Mapping[str, DeviceSpec]) -> None:
        """Make the data network and a container for every device, and start the agents."""
        images = {spec.accelerator: self._image(spec.accelerator) for spec in specs.values()}
        with self._asking("make the devices"):
            self._make_network("data")
            control = self._engine.networks.get(self._name("control"))
            gateway = control.attrs["IPAM"]["Config"][0]["Gateway"]
            for device, spec in specs.items():
                container = self._make_container(device, spec, images[spec.accelerator], gateway)
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
            with self._asking(f"limit device {device} to {spec.cpus} CPUs and {spec.memory_mb} MB"):
                self._containers[device].update(**wanted)

    def agents(self) -> dict[str, ProcessId]:
        """Identify the agents by their process ids on this machine."""
        found = {}
        for device, container in self._containers.items():
            with self._asking(f"inspect device {device}"):
                container.reload()
            with contextlib.suppress(ProcessLookupError):
                found[device] = ProcessId.of(container.attrs["State"]["Pid"])
        return found

    def exited(self) -> dict[str, int]:
        """Exit status of each agent that is no longer running, by device."""
        if time.monotonic() - self._polled_at > POLL_PERIOD_S:
            self._polled_at = time.monotonic()
            with self._asking("list containers"):
                listed = self._engine.api.containers(all=True, filters={**self._filter(), "status": ["exited", "dead"]})
            for entry in listed:
                device = entry["Labels"][DEVICE_LABEL]
                if device not in self._exited:
                    with self._asking(f"inspect device {device}"):
                        self._exited[device] = self._engine.api.inspect_container(entry["Id"])["State"]["ExitCode"]
        return dict(self._exited)

    def agent_log(self, device: str) -> str:
        """What the agent itself wrote, for error messages."""
        with self._asking(f"read the log of device {device}"):
            said: bytes = self._containers[device].logs(tail=LOG_LINES)
        return said.decode(errors="replace")

    def out_of_memory(self, device: str) -> bool:
        """Whether the kernel has killed a process of this device for want of memory."""
        chosen = {"container": self._containers[device].id, "event": "oom"}
        with self._asking(f"read the events of device {device}"):
            events = self._engine.events(since=int(self._created_at), until=int(time.time()) + 1, filters=chosen)
            return any(True for _ in events)

    def enter(self, device: str, command: Sequence[str]) -> list[str]:
        """Command line that runs `command` inside a device, limits included."""
        terminal = ["--tty"] if sys.stdin.isatty() else []
        return ["docker", "exec", "--interactive", *terminal, self._name(device), *command]

    def remove(self) -> None:
        """Remove all containers and networks with the run's label; idempotent, also after a crash."""
        with self._asking("remove the devices"):
            for _ in range(REMOVE_ATTEMPTS):
                containers = self._engine.api.containers(all=True, filters=self._filter())
                for container in containers:
                    with _gone_is_fine():
                        self._engine.api.remove_container(container["Id"], force=True, v=True)
                networks = self._engine.api.networks(filters=self._filter())
                for network in networks:
                    with _gone_is_fine():
                        self._engine.api.remove_network(network["Id"])
                if not containers and not networks:
                    break
                time.sleep(REMOVE_PAUSE_S)
            else:
                left = [entry["Id"] for entry in [*containers, *networks]]
                raise RuntimeFailureError(f"docker: all of run {self._state.run_id} must go away, got {left} left")
        self._engine.close()
        self._engine_client = None

    # Making

    def _make_network(self, role: str) -> Any:
        name = self._name(role)
        with self._asking(f"make network {name}"):
            made = self._engine.networks.create(name, driver="bridge", internal=True, labels=self._labels())
            made.reload()
        return made

    def _make_container(self, device: str, spec: DeviceSpec, image: str, gateway: str) -> Any:
        cache = cache_folder()
        # The network given here comes first in /etc/hosts: programs that look their own name up must get a shaped one.
        return self._engine.containers.create(
            image,
            ["--device", device, "--endpoint", f"tcp://{gateway}:{CONTROL_PORT}", "--folder", AGENT_FOLDER],
            name=self._name(device),
            hostname=device,
            labels=self._labels() | {DEVICE_LABEL: device},
            network=self._name("data"),
            cap_drop=["ALL"],
            cap_add=list(CAPABILITIES),
            security_opt=list(SECURITY_OPTIONS),
            read_only=True,
            tmpfs=TMPFS,
            cpu_period=cpu_quota(spec.cpus)[1],
            volumes={str(cache): {"bind": CACHE_FOLDER, "mode": "ro"}} if cache.is_dir() else {},
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if spec.accelerator == "cuda" else [],
        )

    def _image(self, accelerator: str) -> str:
        """Return the image's name. Raises UnsupportedError if the engine does not have it."""
        name = image_name(accelerator)
        try:
            with self._asking(f"look for image {name}"):
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
        if self._engine_client is None:
            self._engine_client = _connect()
        return self._engine_client

    def _labels(self) -> dict[str, str]:
        return {RUN_LABEL: self._state.run_id}

    def _filter(self) -> dict[str, Any]:
        return {"label": [f"{RUN_LABEL}={self._state.run_id}"]}

    def _name(self, what: str) -> str:
        return f"testbed-{self._state.run_id}-{what}"

    @contextlib.contextmanager
    def _asking(self, attempt: str) -> Iterator[None]:
        """Give the engine's refusals a name."""
        try:
            yield
        except DockerException as error:
            said = error.explanation if isinstance(error, APIError) else str(error)
            raise RuntimeFailureError(f"docker: engine must {attempt}, got {said!r}") from error


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    """Pass over what somebody else has removed, or is removing at this moment."""
    try:
        yield
    except NotFound:
        pass
    except APIError as error:
        if error.status_code not in (403, 409):  # still in use, or removal in progress: the next round finds it
            raise
