"""Delay packets by a process of our own where the kernel has no netem: its rules, its life, and what it says of itself.

    tb-ifb: HTB (rate, queue) --> nftables (counters, loss) --xtables rule--> NFQUEUE n --delay_stage--> sockets

A packet is delayed after it has used up the link's rate and found room in its queue, and only if it is not lost. What
is under way does not count towards the queue. The rule is an xtables one (`iptables`), since kernels without netem tend
to lack nftables' own `queue` too. If the process ends, its packets are lost and nothing passes: never undelayed.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import ShaperError
from testbed.links import LinkRule
from testbed.shaper import delay_stage

__all__ = ["ATTEMPT", "DelayStage", "StageLink", "queue_states", "remove_commands", "rule_commands", "stage_links"]

TABLE = ("iptables", "-w", "-t", "raw")
CHAIN = "PREROUTING"
STATE_FILE = Path("/proc/net/netfilter/nfnetlink_queue")
COPY_META = 1
READY_TIMEOUT_S = 30.0
END_TIMEOUT_S = 5.0
PROGRAM = (sys.executable, "-I", "-S", delay_stage.__file__)
GROUP = "delays"
"""Control group of the stages of a run, beside those of its devices: the network costs no device its CPU time."""
_TRY = json.dumps({"links": [{"queue": 1, "delay_ns": 0, "jitter_ns": 0, "reorder": 0, "seed": ""}], "groups": []})
ATTEMPT = (
    f"{' '.join(TABLE)} -A {CHAIN} -i lo -s 192.0.2.1 -j NFQUEUE --queue-num 1 && "
    f"echo '{_TRY}' | {' '.join(PROGRAM)} | grep -q {delay_stage.READY}"
)
"""Shell that fails where this cannot be done."""


@dataclass(frozen=True)
class StageLink:
    """One link whose packets are delayed: its queue's number, and the configuration of `delay_stage.HeldPackets`."""

    source: str
    address: str
    queue: int
    delay_ns: int
    jitter_ns: int
    reorder: float
    seed: str

    def config(self) -> dict[str, Any]:
        """Return what the process is told."""
        told = ("queue", "delay_ns", "jitter_ns", "reorder", "seed")
        return {name: getattr(self, name) for name in told}


@dataclass(frozen=True)
class QueueState:
    """The kernel's view of one queue."""

    number: int
    copy_mode: int
    dropped: int
    """Packets that found the queue, or the way to its process, full."""


def stage_links(rules: Sequence[LinkRule], destination: str) -> tuple[StageLink, ...]:
    """Return the links that have a delay."""
    return tuple(
        StageLink(
            source=rule.source,
            address=rule.source_address,
            queue=number,
            delay_ns=round(rule.delay_s * 1e9),
            jitter_ns=round(rule.jitter_s * 1e9),
            reorder=rule.reorder,
            seed=f"jitter {rule.seed} {rule.source} {destination}",
        )
        for number, rule in enumerate(rules, start=1)
        if rule.delay_s > 0 or rule.jitter_s > 0
    )


def rule_commands(interface: str, links: Sequence[StageLink]) -> list[list[str]]:
    """Return the commands that send each link's packets to its queue."""
    return [[*TABLE, "-A", *_rule(interface, link)] for link in links]


def _rule(interface: str, link: StageLink) -> list[str]:
    place = [CHAIN, "-s", f"{link.address}/32", "-i", interface]
    return [*place, "-j", "NFQUEUE", "--queue-num", str(link.queue)]


class DelayStage:
    """The process that delays packets of some links, from when it holds their queues until `end`."""

    def __init__(self, links: Sequence[StageLink]):
        """Start it. Raises ShaperError if it cannot hold the queues."""
        self.links = tuple(links)
        config = {"links": [link.config() for link in links], "groups": _groups_beside_the_device()}
        self._process = subprocess.Popen(
            PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(config).encode() + b"\n")
            self._process.stdin.flush()
        readable = select.select([self._process.stdout], [], [], READY_TIMEOUT_S)[0]
        if not readable or self._process.stdout.readline().strip() != delay_stage.READY.encode():
            self._process.kill()
            said = " ".join(self._process.communicate()[1].decode(errors="replace").split()[-20:])
            raise ShaperError(
                f"delays: the process that holds packets must be ready in {READY_TIMEOUT_S:g} s, got {said}"
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether packets still pass."""
        return self._process.poll() is None

    def dropped(self) -> dict[str, int]:
        """Return the packets of each source that found no room, since the start."""
        states = {state.number: state for state in queue_states(STATE_FILE.read_text())}
        return {link.source: states[link.queue].dropped if link.queue in states else 0 for link in self.links}

    def differences(self, interface: str) -> list[tuple[str, Any, Any]]:
        """Compare rules and queues with what was asked: (field, asked, got) wherever they differ."""
        listed = subprocess.run([*TABLE, "-S", CHAIN], capture_output=True, text=True).stdout.splitlines()
        got_rules = [line for line in listed if line.startswith("-A ")]
        wanted_rules = [" ".join(["-A", *_rule(interface, link)]) for link in self.links]
        different: list[tuple[str, Any, Any]] = []
        if got_rules != wanted_rules:
            different.append(("rules of delayed links", wanted_rules, got_rules))
        states = queue_states(STATE_FILE.read_text()) if STATE_FILE.exists() else []
        got = sorted((state.number, state.copy_mode) for state in states)
        wanted = [(link.queue, COPY_META) for link in self.links]
        if got != wanted:
            different.append(("queues of delayed links", wanted, got))
        if not self.alive():
            different.append(("process that delays packets", "running", f"status {self._process.returncode}"))
        return different

    def end(self) -> None:
        """End it; packets that it still holds are lost."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=END_TIMEOUT_S)
            return
        self._process.kill()
        self._process.communicate()


def remove_commands(interface: str) -> list[list[str]]:
    """Return the commands that delete our rules, also another run's, and the table if nothing else is in it."""
    try:
        listed = subprocess.run([*TABLE, "-S"], capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return []
    rules = [line for line in listed if line.startswith("-A ")]
    ours = [line for line in rules if f"-i {interface} -j NFQUEUE" in line]
    commands = [[*TABLE, "-D", *line.split()[1:]] for line in ours]
    if ours and rules == ours:
        # iptables leaves its tables behind; where it is not made of nftables there is none, so make one first.
        commands += [["nft", "add", "table", "ip", TABLE[-1]], ["nft", "delete", "table", "ip", TABLE[-1]]]
    return commands


def queue_states(listing: str) -> list[QueueState]:
    """Parse the kernel's list: number, port, waiting, copy mode, copy range, dropped twice, last id."""
    rows = [[int(word) for word in line.split()] for line in listing.splitlines()]
    return [QueueState(row[0], row[3], row[5] + row[6]) for row in rows]


def _groups_beside_the_device() -> list[str]:
    """Return the files by which a process leaves the control groups of its device for those without limits.

    Seen through the process that started this one, since `ip netns exec` hides the groups from what it runs. Empty
    where this process is in no device's group of ours: a container is limited as a whole.
    """
    starter = Path(f"/proc/{os.getppid()}")
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in (starter / "mounts").read_text().splitlines()]
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        seen = [[name, f"{starter}/root{place}", *rest] for name, place, *rest in mounts]
        return [str(path) for path in _group_files(seen, own)]
    return []


def _group_files(mounts: Sequence[Sequence[str]], own: Sequence[Sequence[str]]) -> list[Path]:
    files = []
    for _, mount_point, kind, options, *_ in mounts:
        for _, controllers, path in own:
            run = Path(mount_point) / path.lstrip("/").rpartition("/")[0]
            if not run.name.startswith("testbed-"):
                continue
            if kind == "cgroup2" and not controllers:
                (run / GROUP).mkdir(exist_ok=True)
                files.append(run / GROUP / "cgroup.procs")
            elif kind == "cgroup" and controllers and set(controllers.split(",")) <= set(options.split(",")):
                # Above the run: groups of version 1 have no real-time budget unless they are given some.
                files.append(run.parent / "cgroup.procs")
    return files
