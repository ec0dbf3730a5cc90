"""Put a device's link rules into the kernel, read them back, count, and take them out again.

Writes with the programs `tc`, `ip` and `ethtool` and the library of `nft`, whose units are explicit and whose errors
name the cause; reads back from the kernel itself. One Shaper per network namespace. Needs NET_ADMIN there and nothing
else.
"""

import contextlib
import functools
import json
import reprlib
import socket
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from testbed.errors import ShaperError, UnsupportedError
from testbed.links import DeviceRules, LinkRule
from testbed.loss import Loss, drop_pattern
from testbed.shaper import nft
from testbed.shaper.delays import DelayStage, remove_commands, rule_commands, stage_links
from testbed.shaper.features import FEATURES, has_netem, has_packet_queues
from testbed.shaper.netlink import ClassState, KernelReader, QdiscState
from testbed.shaper.nftables import Nftables
from testbed.shaper.plan import (
    BURST_S,
    IFB,
    UPLINK_MAJOR,
    LinkClass,
    change_commands,
    class_of,
    link_classes,
    redirect_commands,
    tree_commands,
    uplink_class,
)
from testbed.shaper.readback import (
    Difference,
    class_differences,
    filter_differences,
    queue_differences,
    root_differences,
)
from testbed.shaper.waiting import WaitingTool

__all__ = ["LinkCounters", "PreparedChange", "Shaper"]

T = TypeVar("T")

CLSACT_HANDLE = 0xFFFF0000
INGRESS_PARENT = 0xFFFFFFF2
CONGESTION_CONTROL = "cubic"
RTO_MIN_MS = 50
"""TCP's shortest retransmission timeout on every route; Linux's own is 200 ms, an age to a network of milliseconds.

Above the 40 ms for which a receiver may keep an acknowledgement back, or timeouts would fire for packets that arrived.
"""
OFFLOADS = (
    "tx-checksumming",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "tx-udp-segmentation",
    "generic-receive-offload",
    "large-receive-offload",
    "rx-gro-list",
    "rx-udp-gro-forwarding",
)
"""What would let one "packet" be many, or leave its checksum to hardware that is not there."""


@dataclass(frozen=True)
class LinkCounters:
    """The kernel's counts of one link since `apply` or `reset_loss`."""

    bytes: int
    """Bytes of frames, 14 header bytes each included, that came over the link: sent, less `overflowed`."""
    packets: int
    """Frames that came over the link; those in `lost` have used up its time and are among them."""
    lost: int
    """Packets dropped by the loss pattern."""
    overflowed: int
    """Packets dropped because the queue was full."""


@dataclass(frozen=True)
class PreparedChange:
    """What will hold after a change, and the tools that wait to make it so."""

    rules: tuple[LinkRule, ...]
    classes: tuple[LinkClass, ...]
    losses: tuple[nft.LossRule, ...]
    tool: WaitingTool | None
    """`tc`, where rates or queues change."""
    switch: str
    """The transaction that turns links to their new patterns; empty where no loss changes."""

    def cancel(self) -> None:
        """Leave everything as it is."""
        if self.tool is not None:
            self.tool.cancel()


class Shaper:
    """The rules of one interface. Methods raise ShaperError with device, interface and what was attempted."""

    def __init__(self, interface: str):
        self._interface = interface
        self._device = "(not shaped yet)"
        self._classes: tuple[LinkClass, ...] = ()
        self._uplink: LinkClass | None = None
        self._loss_rules: tuple[nft.LossRule, ...] = ()
        self._past_losses: list[nft.LossRule] = []
        """Whose patterns are loaded still, though no packet meets them."""
        self._rules: tuple[LinkRule, ...] = ()
        self._baseline: dict[int, ClassState] = {}
        self._delays: DelayStage | None = None
        self._open_reader: KernelReader | None = None
        self._open_nftables: Nftables | None = None

    def apply(self, rules: DeviceRules) -> None:
        """Replace whatever is there by `rules` and read all of it back; idempotent.

        Raises UnsupportedError where a delay is asked of a kernel that has no way to delay; nothing has been changed
        then.
        """
        self._device = rules.device
        delayed = stage_links(rules.rules, rules.device)
        netem = not delayed or has_netem()
        if not netem:
            _refuse_delay_without_queues(rules)
        self.clear()
        self._classes = link_classes(rules, netem=netem)
        self._uplink = None if rules.uplink_bps is None else uplink_class(rules.uplink_bps)
        self._loss_rules = _loss_rules(rules)
        self._rules = rules.rules
        self._switch_offloads_off()
        self._run(["ip", "link", "add", IFB, "type", "ifb"])
        self._run(["ip", "link", "set", IFB, "up"])
        self._tc(tree_commands(IFB, self._classes))
        self._nft(nft.load_text(self._interface, self._loss_rules))
        self._tc(redirect_commands(self._interface))
        if not netem:
            self._delays = DelayStage(delayed)
            for command in rule_commands(self._interface, delayed):
                self._run(command)
        if self._uplink is not None:
            self._tc(tree_commands(self._interface, [self._uplink]))
        self._set_up_tcp(f" congctl {CONGESTION_CONTROL} rto_min {RTO_MIN_MS}ms")
        self._read_back()

    def prepare(self, changed: Sequence[LinkRule]) -> "PreparedChange":
        """Get everything ready for `change`, which is then quick. Only one change may be prepared at a time.

        Raises ShaperError for a link that is not there or that would need another kind of queue (a delay where there
        was none).
        """
        rules, classes, losses = list(self._rules), list(self._classes), list(self._loss_rules)
        commands: list[str] = []
        switched: list[nft.LossRule] = []
        for rule in changed:
            number = next((n for n, each in enumerate(rules) if each.source == rule.source), None)
            if number is None:
                raise ShaperError(f"device {self._device}: link from {rule.source} must be shaped before it is changed")
            before, after = classes[number], class_of(rule, number + 1, netem=self._delays is None)
            if stage_links([rule], "") != stage_links([rules[number]], "") and self._delays is not None:
                raise ShaperError(f"device {self._device}: link from {rule.source} must keep its delay")
            if before.queue.kind != after.queue.kind:
                raise ShaperError(f"device {self._device}: link from {rule.source} must keep its {before.queue.kind}")
            commands += change_commands(IFB, before, after)
            if rule.loss != rules[number].loss:
                version = losses[number].version + 1
                losses[number] = replace(_loss_rule(number + 1, rule, self._device), version=version)
                self._nft(nft.pattern_text(losses[number]))
                switched.append(losses[number])
            rules[number], classes[number] = rule, after
        tool = WaitingTool(["tc", "-batch", "-"], "\n".join(commands) + "\n") if commands else None
        switch = nft.switch_text(self._interface, switched)
        return PreparedChange(tuple(rules), tuple(classes), tuple(losses), tool, switch)

    def change(self, prepared: "PreparedChange") -> None:
        """Change links while they are in use: nothing is dropped or rebuilt, and counters go on.

        A link whose loss changes begins its new pattern at position 0. Raises ShaperError if the kernel refuses.
        """
        if prepared.switch:
            self._nft(prepared.switch)
        if prepared.tool is not None:
            prepared.tool.act()
        self._past_losses += [old for old, new in zip(self._loss_rules, prepared.losses, strict=True) if old is not new]
        self._rules, self._classes, self._loss_rules = prepared.rules, prepared.classes, prepared.losses

    def check_rates(self) -> None:
        """Read rates and queues back. Raises ShaperError with every difference from what was last asked."""
        (index,) = _interface_index(IFB)
        self._complain([(IFB, each) for each in self._tree_differences(index, self._classes)])

    def check_switches(self) -> None:
        """Read back which pattern every link is turned to; takes well under a millisecond, unlike `check_losses`."""
        jumps = self._read(lambda reader: reader.nft_jumps(nft.TABLE))
        asked = {rule.chain: [rule.pattern_chain] for rule in self._loss_rules}
        got = {chain: jumps.get(chain, []) for chain in asked}
        self._complain([(self._interface, ("nftables jumps", asked, got))] if got != asked else [])

    def check_losses(self) -> None:
        """Remove the patterns that changes have put out of use, and read back the others.

        Takes long where they are dense. Raises ShaperError like `check_rates`.
        """
        while self._past_losses:
            self._nft(nft.forget_text(self._past_losses.pop()))
        listing = json.loads(self._run(["nft", "-j", "list", "table", "ip", nft.TABLE]))
        differences = nft.differences(self._interface, self._loss_rules, listing)
        self._complain([(self._interface, each) for each in differences])

    def counters(self) -> dict[str, LinkCounters]:
        """Read the counts of every link that ends here, keyed by source device; takes well under a millisecond."""
        states = self._class_states()
        lost = self._read(lambda reader: reader.nft_counters(nft.TABLE))
        dropped = self._dropped_by_delays()
        counted = {}
        for link_class, rule in zip(self._classes, self._loss_rules, strict=False):
            now, before = states[link_class.handle], self._baseline.get(link_class.handle)
            counted[link_class.name] = LinkCounters(
                bytes=now.bytes - (before.bytes if before else 0),
                packets=now.packets - (before.packets if before else 0),
                lost=lost[rule.lost_counter],
                overflowed=now.drops - (before.drops if before else 0) + dropped.get(link_class.name, 0),
            )
        return counted

    def reset_loss(self) -> None:
        """Put every loss pattern back to position 0 and every counter to 0."""
        self._nft(nft.load_text(self._interface, self._loss_rules))
        self._baseline = self._class_states()

    def clear(self) -> None:
        """Remove every rule, also what a crashed run left; idempotent. Offloads stay off."""
        self._remove_delays()
        if _interface_index(IFB):
            self._run(["ip", "link", "del", IFB])
        for index in _interface_index(self._interface):
            for qdisc in self._qdiscs(index):
                if qdisc.handle == CLSACT_HANDLE:
                    self._run(["tc", "qdisc", "del", "dev", self._interface, "clsact"])
                elif qdisc.handle == UPLINK_MAJOR << 16:
                    self._run(["tc", "qdisc", "del", "dev", self._interface, "root"])
            self._set_up_tcp("")
        self._nft(nft.remove_text())
        self._classes, self._uplink, self._rules, self._loss_rules, self._baseline = (), None, (), (), {}
        self._past_losses.clear()
        if self._open_reader is not None:
            self._open_reader.close()
            self._open_reader = None
        if self._open_nftables is not None:
            self._open_nftables.close()
            self._open_nftables = None

    def mechanism(self) -> dict[str, str]:
        """Say how links are emulated, for the record of a run."""
        netem = any(link_class.queue.kind == "netem" for link_class in self._classes)
        return {
            "rate": f"HTB on {IFB}, one class a source, burst {BURST_S * 1e6:g} us of link time",
            "queue": "bfifo; netem where the link has a delay" if netem else "bfifo",
            "delay": "netem" if netem else "none" if self._delays is None else "nfqueue",
            "loss": "nftables numgen inc mod the pattern's length in ip prerouting",
            "offloads_off": ", ".join(OFFLOADS),
            "tcp_congestion_control": f"{CONGESTION_CONTROL} (by route)",
            "tcp_rto_min": f"{RTO_MIN_MS} ms (by route)",
        }

    # Delaying without netem

    def _remove_delays(self) -> None:
        for command in remove_commands(self._interface):
            self._run(command)
        if self._delays is not None:
            self._delays.end()
            self._delays = None

    def _dropped_by_delays(self) -> dict[str, int]:
        """Return what found no room among delayed packets, by source. Raises ShaperError if nothing passes any more."""
        if self._delays is None:
            return {}
        if not self._delays.alive():
            raise ShaperError(
                f"device {self._device}, {self._interface}: the process that delays packets must run, got none; "
                "run again, and see the machine's log for why it ended"
            )
        return self._delays.dropped()

    # Setting

    def _switch_offloads_off(self) -> None:
        on = [name for name, state in self._offloads().items() if state == "on"]
        if on:
            self._run(["ethtool", "-K", self._interface, *(word for name in on for word in (name, "off"))])

    def _offloads(self) -> dict[str, str]:
        """Return the state of each of OFFLOADS that the interface has: on, off, or with "[fixed]"."""
        lines = self._run(["ethtool", "-k", self._interface]).splitlines()
        states = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
        return {name: states[name] for name in OFFLOADS if name in states}

    def _set_up_tcp(self, metrics: str) -> None:
        """Give the interface's own routes a congestion control and a shortest timeout, or with "" take them away.

        By route, because the sysctls may not be written in a namespace, and /proc/sys is read-only in containers. It
        holds for connecting and accepting sockets alike.
        """
        for route in self._connected_routes():
            pinned = any("congestion" in values for values in route.get("metrics", []))
            if metrics or pinned:
                place = f"dev {self._interface} proto kernel scope link src {route['prefsrc']}"
                if "metric" in route:
                    place += f" metric {route['metric']}"
                self._run(f"ip -4 route replace {route['dst']} {place}{metrics}".split())

    def _connected_routes(self) -> list[dict[str, Any]]:
        shown = self._run(
            ["ip", "-j", "-4", "route", "show", "dev", self._interface, "proto", "kernel", "scope", "link"]
        )
        routes: list[dict[str, Any]] = json.loads(shown or "[]")
        return routes

    # Reading back

    def _read_back(self) -> None:
        """Compare the kernel's state with what was asked. Raises ShaperError with every difference."""
        (ifb,), (interface,) = _interface_index(IFB), _interface_index(self._interface)
        found = [(IFB, difference) for difference in self._tree_differences(ifb, self._classes)]
        if self._uplink is not None:
            found += [(self._interface, each) for each in self._tree_differences(interface, [self._uplink])]
        found += [(self._interface, difference) for difference in self._interface_differences(interface, ifb)]
        if self._delays is not None:
            found += [(self._interface, each) for each in self._delays.differences(self._interface)]
        self._complain(found)
        self.check_losses()

    def _complain(self, found: Sequence[tuple[str, Difference]]) -> None:
        if found:
            lines = [
                f"device {self._device}, {where}: {field} must be {reprlib.repr(asked)}, got {reprlib.repr(got)}; "
                "the kernel or a program of iproute2 or nftables did not keep it"
                for where, (field, asked, got) in found
            ]
            raise ShaperError("\n".join(lines))

    def _tree_differences(self, index: int, classes: Sequence[LinkClass]) -> list[Difference]:
        qdiscs = self._qdiscs(index)
        return [
            *root_differences(classes, qdiscs),
            *class_differences(classes, self._read(lambda reader: reader.classes(index))),
            *queue_differences(classes, qdiscs),
            *filter_differences(classes, self._read(lambda reader: reader.filters(index, classes[0].major << 16))),
        ]

    def _interface_differences(self, interface: int, ifb: int) -> list[Difference]:
        """Compare redirect, offloads and congestion control of the interface itself."""
        redirects = [state.redirect_index for state in self._read(lambda r: r.filters(interface, INGRESS_PARENT))]
        different: list[Difference] = [] if redirects == [ifb] else [("redirect to interface", [ifb], redirects)]
        different += [(name, "off", state) for name, state in self._offloads().items() if not state.startswith("off")]
        for route in self._connected_routes():
            metrics = {name: value for values in route.get("metrics", []) for name, value in values.items()}
            for name, asked in (("congestion", CONGESTION_CONTROL), ("rto_min", RTO_MIN_MS)):
                if metrics.get(name) != asked:
                    different.append((f"{name} of route {route['dst']}", asked, metrics.get(name)))
        return different

    # Kernel and programs

    def _class_states(self) -> dict[int, ClassState]:
        (index,) = _interface_index(IFB) or [0]
        return {state.handle: state for state in self._read(lambda reader: reader.classes(index))}

    def _qdiscs(self, index: int) -> list[QdiscState]:
        return self._read(lambda reader: reader.qdiscs(index))

    def _read(self, read: Callable[[KernelReader], T]) -> T:
        if self._open_reader is None:
            self._open_reader = KernelReader()
        try:
            return read(self._open_reader)
        except OSError as error:
            raise ShaperError(
                f"device {self._device}, {self._interface}: reading the kernel failed: {error}"
            ) from error

    def _tc(self, commands: Iterable[str]) -> None:
        self._run(["tc", "-batch", "-"], "\n".join(commands) + "\n")

    def _nft(self, text: str) -> None:
        if self._open_nftables is None:
            self._open_nftables = Nftables()
        try:
            self._open_nftables.run(text)
        except ShaperError as error:
            raise ShaperError(f"device {self._device}, {self._interface}: {error}") from error

    def _run(self, command: Sequence[str], text: str = "") -> str:
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True)
        except FileNotFoundError as error:
            message = f"device {self._device}: program {command[0]} must be installed, got none; see testbed doctor"
            raise UnsupportedError(message) from error
        if done.returncode != 0:
            said = " ".join(done.stderr.split())
            raise ShaperError(
                f"device {self._device}, {self._interface}: {' '.join(command)} must succeed, got status "
                f"{done.returncode}: {said}; see testbed doctor for what this kernel can do"
            )
        return done.stdout


def _refuse_delay_without_queues(rules: DeviceRules) -> None:
    delayed = [rule for rule in rules.rules if rule.delay_s > 0 or rule.jitter_s > 0]
    if delayed and not has_packet_queues():
        first = delayed[0]
        ways_out = " or ".join(FEATURES[name].way_out() for name in ("sch_netem", "xt_NFQUEUE"))
        raise UnsupportedError(
            f"link {first.source} to {rules.device}: delay_ms and jitter_ms must be 0 on a kernel without sch_netem "
            f"and NFQUEUE, got {first.delay_s * 1000:g} and {first.jitter_s * 1000:g}; {ways_out}"
        )


def _loss_rules(rules: DeviceRules) -> tuple[nft.LossRule, ...]:
    return tuple(_loss_rule(number, rule, rules.device) for number, rule in enumerate(rules.rules, start=1))


def _loss_rule(number: int, rule: LinkRule, destination: str) -> nft.LossRule:
    lost, cycle = _pattern(rule.loss, rule.seed, rule.source, destination)
    return nft.LossRule(number, rule.source_address, lost, cycle)


@functools.lru_cache(maxsize=128)  # as in nft.py
def _pattern(loss: Loss, seed: int, source: str, destination: str) -> tuple[tuple[int, ...], int]:
    """Return the positions that are lost, and of how many."""
    pattern = drop_pattern(loss, seed=seed, source=source, destination=destination)
    return tuple(pattern.nonzero()[0].tolist()), len(pattern)


def _interface_index(name: str) -> list[int]:
    """Return the index of an interface, or nothing if there is none."""
    with contextlib.suppress(OSError):
        return [socket.if_nametoindex(name)]
    return []
