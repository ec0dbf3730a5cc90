"""Put a device's link rules into the kernel, read them back, count, and take them out again.

    Shaper ── the tree of rates and queues, on the IFB          LossPatterns ── which packets are lost
           ── DelayStage, where the kernel has no netem         OwnInterface ── offloads and TCP's settings

Writes with the programs `tc`, `ip` and `ethtool` and the library of `nft`, whose units are explicit and whose errors
name the cause; reads back from the kernel itself. One Shaper per network namespace. Needs NET_ADMIN there and nothing
else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from testbed.errors import ShaperError, UnsupportedError
from testbed.links import DeviceRules, LinkRule
from testbed.shaper import nft
from testbed.shaper.counts import LinkCounters, LinkProgress, link_counters, link_progress
from testbed.shaper.delays import DelayStage, remove_commands, rule_commands, stage_links
from testbed.shaper.features import FEATURES, has_netem, has_packet_queues
from testbed.shaper.kernel import Kernel, interface_index
from testbed.shaper.netlink import ClassState, QdiscState
from testbed.shaper.own_interface import OwnInterface
from testbed.shaper.patterns import LossPatterns
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

__all__ = ["PreparedChange", "Shaper"]

CLSACT_HANDLE = 0xFFFF0000
INGRESS_PARENT = 0xFFFFFFF2


@dataclass(frozen=True)
class PreparedChange:
    """What will hold after a change, and the tools that wait to make it so."""

    rules: tuple[LinkRule, ...]
    classes: tuple[LinkClass, ...]
    losses: tuple[nft.LossRule, ...]
    """The patterns that links are to be turned to."""
    tool: WaitingTool | None
    """`tc`, where rates or queues change."""

    def cancel(self) -> None:
        """Leave everything as it is."""
        if self.tool is not None:
            self.tool.cancel()


class Shaper:
    """The rules of one interface. Methods raise ShaperError with device, interface and what was attempted."""

    def __init__(self, interface: str):
        self._interface = interface
        self._kernel = Kernel(interface)
        self._own = OwnInterface(self._kernel)
        self._patterns = LossPatterns(self._kernel)
        self._classes: tuple[LinkClass, ...] = ()
        self._uplink: LinkClass | None = None
        self._rules: tuple[LinkRule, ...] = ()
        self._baseline: dict[int, ClassState] = {}
        self._delays: DelayStage | None = None

    def apply(self, rules: DeviceRules) -> None:
        """Replace whatever is there by `rules` and read all of it back; idempotent.

        Raises UnsupportedError where a delay is asked of a kernel that has no way to delay; nothing has been changed
        then.
        """
        self._kernel.device = rules.device
        delayed = stage_links(rules.rules, rules.device)
        netem = not delayed or has_netem()
        if not netem:
            _refuse_delay_without_queues(rules)
        self.clear()
        self._classes = link_classes(rules, netem=netem)
        self._uplink = None if rules.uplink_bps is None else uplink_class(rules.uplink_bps)
        self._rules = rules.rules
        self._kernel.run(["ip", "link", "add", IFB, "type", "ifb"])
        self._kernel.run(["ip", "link", "set", IFB, "up"])
        self._kernel.tc(tree_commands(IFB, self._classes))
        self._patterns.apply(rules)
        self._kernel.tc(redirect_commands(self._interface))
        if not netem:
            self._delays = DelayStage(delayed)
            for command in rule_commands(self._interface, delayed):
                self._kernel.run(command)
        if self._uplink is not None:
            self._kernel.tc(tree_commands(self._interface, [self._uplink]))
        self._own.set_up()
        self._read_back()

    def load_ahead(self, to_come: Iterable[LinkRule]) -> None:
        """Load the loss patterns of rules that links will get, so that `prepare` finds them; for before a program runs.

        Raises ShaperError with every difference from what was asked.
        """
        numbers = {rule.source: number for number, rule in enumerate(self._rules, start=1)}
        self._patterns.load_ahead((numbers[rule.source], rule) for rule in to_come)

    def prepare(self, changed: Sequence[LinkRule]) -> PreparedChange:
        """Get everything ready for `change`, which is then quick. Only one change may be prepared at a time.

        Raises ShaperError for a link that is not there or that would need another kind of queue (a delay where there
        was none).
        """
        device = self._kernel.device
        rules, classes = list(self._rules), list(self._classes)
        commands: list[str] = []
        losses: list[nft.LossRule] = []
        for rule in changed:
            number = next((n for n, each in enumerate(rules) if each.source == rule.source), None)
            if number is None:
                raise ShaperError(f"device {device}: link from {rule.source} must be shaped before it is changed")
            before, after = classes[number], class_of(rule, number + 1, netem=self._delays is None)
            if stage_links([rule], "") != stage_links([rules[number]], "") and self._delays is not None:
                raise ShaperError(f"device {device}: link from {rule.source} must keep its delay")
            if before.queue.kind != after.queue.kind:
                raise ShaperError(f"device {device}: link from {rule.source} must keep its {before.queue.kind}")
            commands += change_commands(IFB, before, after)
            if rule.loss != rules[number].loss:
                losses.append(self._patterns.load(number + 1, rule))
            rules[number], classes[number] = rule, after
        tool = WaitingTool(["tc", "-batch", "-"], "\n".join(commands) + "\n") if commands else None
        return PreparedChange(tuple(rules), tuple(classes), tuple(losses), tool)

    def change(self, prepared: PreparedChange) -> None:
        """Change links while they are in use: nothing is dropped or rebuilt, and counters go on.

        A link whose loss changes begins its new pattern at position 0, or goes on with one that it has had before.
        Raises ShaperError if the kernel refuses.
        """
        self._patterns.switch(prepared.losses)
        if prepared.tool is not None:
            prepared.tool.act()
        self._rules, self._classes = prepared.rules, prepared.classes

    def check_rates(self) -> None:
        """Read rates and queues back. Raises ShaperError with every difference from what was last asked."""
        (index,) = interface_index(IFB)
        self._kernel.complain([(IFB, each) for each in self._tree_differences(index, self._classes)])

    def check_switches(self) -> None:
        """Read back which pattern every link is turned to; takes well under a millisecond, unlike `check_losses`."""
        self._patterns.check_switches()

    @property
    def has_unread_patterns(self) -> bool:
        """Whether patterns have been loaded that `check_losses` has not read back yet."""
        return self._patterns.unread

    def check_losses(self) -> None:
        """Read back the patterns, position by position. Takes long where they are dense; raises like `check_rates`."""
        self._patterns.check()

    def counters(self) -> dict[str, LinkCounters]:
        """Read the counts of every link that ends here, keyed by source device; takes well under a millisecond."""
        now, dropped = self._class_states(), self._dropped_by_delays()
        return link_counters(self._classes, now, self._baseline, lost=self._patterns.lost(), dropped=dropped)

    def queues(self) -> dict[str, LinkProgress]:
        """Read how far every link has come, keyed by source device; takes well under a millisecond."""
        return link_progress(self._classes, self._class_states())

    def reset_loss(self) -> None:
        """Put every loss pattern back to position 0 and every counter to 0."""
        self._patterns.reset()
        self._baseline = self._class_states()

    def clear(self) -> None:
        """Remove every rule, also what a crashed run left; idempotent. Offloads stay off."""
        self._remove_delays()
        if interface_index(IFB):
            self._kernel.run(["ip", "link", "del", IFB])
        for index in interface_index(self._interface):
            for qdisc in self._qdiscs(index):
                if qdisc.handle == CLSACT_HANDLE:
                    self._kernel.run(["tc", "qdisc", "del", "dev", self._interface, "clsact"])
                elif qdisc.handle == UPLINK_MAJOR << 16:
                    self._kernel.run(["tc", "qdisc", "del", "dev", self._interface, "root"])
            self._own.clear()
        self._patterns.clear()
        self._classes, self._uplink, self._rules, self._baseline = (), None, (), {}
        self._kernel.close()

    def mechanism(self) -> dict[str, str]:
        """Say how links are emulated, for the record of a run."""
        netem = any(link_class.queue.kind == "netem" for link_class in self._classes)
        return {
            "rate": f"HTB on {IFB}, one class a source, burst {BURST_S * 1e6:g} us of link time",
            "queue": "bfifo; netem where the link has a delay" if netem else "bfifo",
            "delay": "netem" if netem else "none" if self._delays is None else "nfqueue",
            "loss": "nftables numgen inc mod the pattern's length in ip prerouting",
            **self._own.mechanism(),
        }

    # Delaying without netem

    def _remove_delays(self) -> None:
        for command in remove_commands(self._interface):
            self._kernel.run(command)
        if self._delays is not None:
            self._delays.end()
            self._delays = None

    def _dropped_by_delays(self) -> dict[str, int]:
        """Return what found no room among delayed packets, by source. Raises ShaperError if nothing passes any more."""
        if self._delays is None:
            return {}
        if not self._delays.alive():
            raise ShaperError(
                f"device {self._kernel.device}, {self._interface}: the process that delays packets must run, got "
                "none; run again, and see the machine's log for why it ended"
            )
        return self._delays.dropped()

    # Reading back

    def _read_back(self) -> None:
        """Compare the kernel's state with what was asked. Raises ShaperError with every difference."""
        (ifb,), (interface,) = interface_index(IFB), interface_index(self._interface)
        found = [(IFB, difference) for difference in self._tree_differences(ifb, self._classes)]
        own = [] if self._uplink is None else self._tree_differences(interface, [self._uplink])
        redirects = [
            state.redirect_index for state in self._kernel.read(lambda r: r.filters(interface, INGRESS_PARENT))
        ]
        own += [] if redirects == [ifb] else [("redirect to interface", [ifb], redirects)]
        own += self._own.differences()
        if self._delays is not None:
            own += self._delays.differences(self._interface)
        self._kernel.complain([*found, *((self._interface, difference) for difference in own)])
        self.check_losses()

    def _tree_differences(self, index: int, classes: Sequence[LinkClass]) -> list[Difference]:
        qdiscs = self._qdiscs(index)
        read = self._kernel.read
        return [
            *root_differences(classes, qdiscs),
            *class_differences(classes, read(lambda reader: reader.classes(index))),
            *queue_differences(classes, qdiscs),
            *filter_differences(classes, read(lambda reader: reader.filters(index, classes[0].major << 16))),
        ]

    def _class_states(self) -> dict[int, ClassState]:
        (index,) = interface_index(IFB) or [0]
        return {state.handle: state for state in self._kernel.read(lambda reader: reader.classes(index))}

    def _qdiscs(self, index: int) -> list[QdiscState]:
        return self._kernel.read(lambda reader: reader.qdiscs(index))


def _refuse_delay_without_queues(rules: DeviceRules) -> None:
    delayed = [rule for rule in rules.rules if rule.delay_s > 0 or rule.jitter_s > 0]
    if delayed and not has_packet_queues():
        first = delayed[0]
        ways_out = " or ".join(FEATURES[name].way_out() for name in ("sch_netem", "xt_NFQUEUE"))
        raise UnsupportedError(
            f"link {first.source} to {rules.device}: delay_ms and jitter_ms must be 0 on a kernel without sch_netem "
            f"and NFQUEUE, got {first.delay_s * 1000:g} and {first.jitter_s * 1000:g}; {ways_out}"
        )
