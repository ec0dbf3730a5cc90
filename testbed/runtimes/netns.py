"""Devices as network namespaces on one machine: nothing needed but Linux.

    tb-<id>-sw                 a namespace of its own for the switch: a plain bridge. In the root namespace, a Docker
      br0 ── p0 ── p1 ── …     engine's bridge netfilter and FORWARD DROP policy would swallow its frames.
             │     │
      tb-<id>-d0   tb-<id>-d1  one namespace a device: eth0 with 10.77.0.<rank + 1>, every peer a permanent neighbour,
                               one agent, reached over a Unix socket, never over the data network

Uses the `ip` program; shapes nothing (agents do). CPU and memory limits are control groups.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from testbed.device_action import DeviceAction
from testbed.errors import RuntimeFailureError, UnsupportedError
from testbed.keys import ControlKeys
from testbed.runtimes.cgroups import DeviceGroups, find_hierarchies
from testbed.runtimes.state import ProcessId, RunState
from testbed.runtimes.surroundings import Identity, Surroundings
from testbed.scenario import DeviceSpec

__all__ = ["NetnsRuntime"]

SUBNET = "10.77.0"
INTERFACE = "eth0"
KILL_WAIT_S = 2.0
SOCKET_PATH_BYTES = 100
"""A Unix socket's path may have 107 bytes; the devices' own sockets are a little longer than the controller's."""
RUN_VARIABLE = "TESTBED_RUN"
"""Environment variable that marks the processes of a run."""
# Joins control groups by writing its own process id, then becomes the command behind "--".
_JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 70; shift; done; shift; exec "$@"'


class NetnsRuntime:
    """The devices of one run, each a network namespace with a control group."""

    name = "netns"
    acts: ClassVar[frozenset[DeviceAction]] = frozenset({"restart"})
    """Pausing, resuming and killing a program is the agent's: it is nearer, and its links go on meanwhile."""
    register_timeout_s = 60.0
    needs_keys = False
    """Nobody but root, or who started the run, can enter its namespaces, and all in them is one kernel's memory."""

    def __init__(self, state: RunState, *, uncapped: bool = False):
        self._state = state
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._noting = threading.Lock()
        self._uncapped = uncapped
        self._groups = _existing_groups(state.run_id)

    def endpoint(self) -> str:
        """ZeroMQ endpoint that the controller binds and the agents connect to."""
        socket = self._state.folder / "control.sock"
        if len(os.fsencode(socket)) > SOCKET_PATH_BYTES:
            raise UnsupportedError(
                f"TESTBED_STATE_DIR: must be short enough for Unix sockets ({SOCKET_PATH_BYTES} bytes in all), "
                f"got {str(socket)!r}; name a shorter folder"
            )
        return f"ipc://{socket}"

    def keys(self) -> ControlKeys | None:
        """None: the kernel lets only this user connect to the controller's socket."""
        return None

    def create(self, specs: Mapping[str, DeviceSpec]) -> None:
        """Make switch, devices and control groups, and start every agent."""
        if any(spec.accelerator == "cuda" for spec in specs.values()) and not Path("/dev/nvidiactl").exists():
            raise RuntimeFailureError("devices.accelerator: cuda must find /dev/nvidiactl, got no such device")
        if not self._uncapped and any(spec.cpus or spec.memory_mb for spec in specs.values()):
            self._groups = DeviceGroups(self._state.run_id, find_hierarchies())
            for device in specs:
                self._groups.create(device)
        self._make_switch()
        for rank, device in enumerate(specs):
            self._make_device(rank, device, list(specs))
        for device in specs:
            self._start_agent(device)

    def limit(self, specs: Mapping[str, DeviceSpec]) -> None:
        """Put CPU and memory limits on the devices, unless the run is uncapped."""
        if self._groups is not None:
            for device, spec in specs.items():
                self._groups.limit(device, cpus=spec.cpus, memory_mb=spec.memory_mb)

    def surroundings(self, invoking: Surroundings) -> Surroundings:
        """Programs find the machine's own files and users."""
        return invoking

    def programs_endpoint(self, identity: Identity) -> str | None:
        """A Unix socket in a folder of the program's user: namespaces of the network do not separate those."""
        folder = self._state.folder / "peers"
        folder.mkdir(mode=0o700, exist_ok=True)
        if identity.uid is not None:
            os.chown(folder, identity.uid, -1 if identity.gid is None else identity.gid)
        return f"ipc://{folder / 'socket'}"

    def agents(self) -> dict[str, ProcessId]:
        """Identify the agent processes, for the run's state."""
        return {device: ProcessId.of(process.pid) for device, process in list(self._agents.items())}

    def exited(self) -> dict[str, int]:
        """Exit status of each agent that is no longer running, by device."""
        polled = {device: process.poll() for device, process in list(self._agents.items())}
        return {device: code for device, code in polled.items() if code is not None}

    def agent_log(self, device: str) -> str:
        """What the agent itself wrote, for error messages."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder(device) / "agent.log").read_text(errors="replace")
        return ""

    def out_of_memory(self, device: str) -> bool:
        """Whether the kernel has killed a process of this device for want of memory."""
        return self._groups is not None and self._groups.out_of_memory(device)

    def act(self, device: str, action: DeviceAction) -> None:
        """Restart a device: kill all that runs in its namespace, start its agent again; addresses and limits stay."""
        if action not in self.acts:
            raise UnsupportedError(f"device {device}: its agent has to {action} the program, not the runtime")
        agent = self._agents[device]
        agent.kill()  # before the program, of whose end it would tell
        agent.wait()
        _kill_all_in(self._namespace(device))
        self._start_agent(device)
        with self._noting:
            self._state = self._state.with_changes(agents=self.agents())

    def enter(self, device: str, command: Sequence[str]) -> list[str]:
        """Command line that runs `command` inside a device, limits included."""
        agent = self._state.agents.get(device)
        if agent is None:
            raise RuntimeFailureError(f"device {device}: agent must have reported, got none yet; try again in a moment")
        if not agent.alive():
            raise RuntimeFailureError(f"device {device}: agent {agent.pid} must be alive, got none; testbed down")
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        inner = ["nsenter", "--target", str(agent.pid), *user, "--mount", "--net", "--", *command]
        return ["env", f"{RUN_VARIABLE}={self._state.run_id}", *self._joining(device, inner)]

    def remove(self) -> None:
        """Remove all that bears the run's id; idempotent, also after a crash."""
        self._kill_all()
        if self._groups is not None:
            self._groups.remove()
        self._remove_namespaces()
        for process in self._agents.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_WAIT_S)

    # Making

    def _make_switch(self) -> None:
        switch = self._namespace("sw")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "set", "lo", "up")
        # Without snooping the bridge sends no queries of its own, so that all packets counted are the program's.
        _ip("-n", switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0", "stp_state", "0")
        self._disable_ipv6(switch)
        _ip("-n", switch, "link", "set", "br0", "up")

    def _make_device(self, rank: int, device: str, devices: Sequence[str]) -> None:
        switch, namespace, port = self._namespace("sw"), self._namespace(device), f"p{rank}"
        _ip("netns", "add", namespace)
        self._disable_ipv6(namespace)
        link = f"link add {port} type veth peer name {INTERFACE} address {_mac(rank)} netns {namespace}"
        _ip_batch(switch, [link, f"link set {port} master br0 up"])
        neighbours = (
            f"neighbour replace {SUBNET}.{peer + 1} lladdr {_mac(peer)} dev {INTERFACE} nud permanent"
            for peer in range(len(devices))
            if peer != rank
        )
        address = f"address add {SUBNET}.{rank + 1}/24 dev {INTERFACE}"
        _ip_batch(namespace, ["link set lo up", address, f"link set {INTERFACE} up", *neighbours])

    @staticmethod
    def _disable_ipv6(namespace: str) -> None:
        # Neighbour discovery and router solicitations would be packets that nobody sent. Not every kernel has IPv6.
        script = "[ ! -e /proc/sys/net/ipv6 ] || echo 1 | tee /proc/sys/net/ipv6/conf/*/disable_ipv6 >/dev/null"
        _ip("netns", "exec", namespace, "sh", "-c", script)

    def _start_agent(self, device: str) -> None:
        folder = self._folder(device)
        folder.mkdir(parents=True, exist_ok=True)
        # fmt: off
        agent = ["ip", "netns", "exec", self._namespace(device), sys.executable, "-m", "testbed.agent",
                 "--device", device, "--endpoint", self.endpoint(), "--interface", INTERFACE, "--folder", str(folder)]
        # fmt: on
        with (folder / "agent.log").open("ab") as log:
            self._agents[device] = subprocess.Popen(
                self._joining(device, agent),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, RUN_VARIABLE: self._state.run_id},
            )

    def _joining(self, device: str, command: Sequence[str]) -> list[str]:
        files = [] if self._groups is None else [str(path) for path in self._groups.files(device)]
        return ["sh", "-c", _JOIN, "sh", *files, "--", *command]

    # Finding and removing

    def _kill_all(self) -> None:
        """Kill every process that bears the run's id in its environment, and wait until none is left.

        Agents bear it and all that they start inherits it, also in a user namespace that went on alone when its
        controller was killed; neither names nor control groups lead to those.
        """
        deadline = time.monotonic() + KILL_WAIT_S
        while (pids := _processes_with(f"{RUN_VARIABLE}={self._state.run_id}")) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _remove_namespaces(self) -> None:
        for name in _listed_namespaces():
            if name.startswith(self._namespace("")):
                _kill_all_in(name)
                with contextlib.suppress(RuntimeFailureError):  # somebody else may be removing it at this moment
                    _ip("netns", "delete", name)
        left = [entry for entry in _listed_namespaces() if entry.startswith(self._namespace(""))]
        if left:
            raise RuntimeFailureError(f"namespaces: {', '.join(left)} must go away, got them still; see ip netns")

    def _namespace(self, name: str) -> str:
        return f"tb-{self._state.run_id}-{name}"

    def _folder(self, device: str) -> Path:
        return self._state.folder / device


def _listed_namespaces() -> list[str]:
    listed = subprocess.run(["ip", "-j", "netns", "list"], capture_output=True, text=True)
    return [entry["name"] for entry in json.loads(listed.stdout or "[]")]


def _processes_with(variable: str) -> list[int]:
    """Return the processes, but this one and zombies, whose environment holds `variable` (NAME=value)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def _kill_all_in(namespace: str) -> None:
    """Kill every process in a namespace of ours and wait until none is left."""
    deadline = time.monotonic() + KILL_WAIT_S
    while time.monotonic() < deadline:
        listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
        pids = [int(pid) for pid in listed.stdout.split()]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _existing_groups(run_id: str) -> DeviceGroups | None:
    """Find the control groups of a run that another process made, if it has any."""
    try:
        groups = DeviceGroups(run_id, find_hierarchies())
    except UnsupportedError:
        return None
    return groups if groups.exist() else None


def _mac(rank: int) -> str:
    return f"02:00:0a:4d:00:{rank + 1:02x}"


def _ip_batch(namespace: str, commands: Sequence[str]) -> None:
    """Carry out commands of `ip` in a namespace, in one run of it: many devices have very many neighbours."""
    _ip("-n", namespace, "-batch", "-", text="\n".join(commands) + "\n")


def _ip(*arguments: str, text: str = "") -> None:
    done = subprocess.run(["ip", *arguments], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeFailureError(
            f"ip {' '.join(arguments)}: must succeed, got status {done.returncode}: {done.stderr.strip()}"
        )
