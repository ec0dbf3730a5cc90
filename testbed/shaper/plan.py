"""From link rules to the classes and queues they need, as commands for `tc`. Pure.

    DeviceRules --link_classes--> LinkClass, ... --tree_commands--> lines for `tc -batch`
                                      └── what the kernel must answer when it is read back

         tb-ifb (all IPv4 that the interface receives)          interface (all that it sends, if the uplink is capped)
           htb 7b0: ── 7b0:1 first source ── bfifo or netem       htb 7b1: ── 7b1:1 ── bfifo
                    ├─ 7b0:2 second source ─ bfifo or netem
                    └─ 7b0:fffe anybody else ─ bfifo

Units: bytes/s as the kernel counts them (14 header bytes a frame), bytes, microseconds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from testbed.links import DeviceRules, LinkRule

__all__ = [
    "LinkClass",
    "Queue",
    "change_commands",
    "class_of",
    "link_classes",
    "redirect_commands",
    "tree_commands",
    "uplink_class",
]

IFB = "tb-ifb"
IFB_MAJOR, UPLINK_MAJOR = 0x7B0, 0x7B1
UNKNOWN_MINOR = 0xFFFE
FRAME_BYTES = 1514
"""The largest Ethernet frame as the kernel counts it."""
QUANTUM = FRAME_BYTES
"""Given to every class, or HTB derives one from the rate and warns. Classes never share a parent's rate here."""
BURST_S = 0.0007
"""Link time that a class may be late and still catch up.

HTB forgets what a late timer cost beyond the burst, and sends the burst early after an idle time. One MTU frame, the
usual advice, is 1.2 ms at 10 Mbps and 0.12 ms at 100. Measured at 10, 50 and 100 Mbps: with 20 us a bulk transfer is
2 to 3 % slow; from 100 us on an idle machine it is within 0.3 %; single messages come early by this much.
"""
UNSHAPED_RATE = 4_000_000_000
"""Bytes/s of a class that only counts; the most that the kernel keeps in 32 bits."""
UNSHAPED_QUEUE_BYTES = 64 << 20
UPLINK_QUEUE_S = 0.2
"""A capped uplink's queue. The sender's own: TCP holds back when it is full, nothing is lost on the way."""


@dataclass(frozen=True)
class Queue:
    """The leaf of a class: a bfifo of `limit` bytes, or with a delay a netem of `limit` packets.

    `order_rate` (bytes/s, 0 for none) is a rate far above any link's. netem sends packets as they become due, so jitter
    reorders them, but with a rate of its own it sends each after the one before; all but those, `reorder_pct` of all,
    that it puts at the head of its queue without a delay.
    """

    kind: str
    limit: int
    delay_us: int = 0
    jitter_us: int = 0
    order_rate: int = 0
    reorder_pct: float = 0.0


@dataclass(frozen=True)
class LinkClass:
    """One HTB class. `name` says whose packets it carries; `address` selects them, None takes the rest."""

    name: str
    address: str | None
    major: int
    minor: int
    rate: int
    burst: int
    queue: Queue

    @property
    def handle(self) -> int:
        """The class id as the kernel numbers it."""
        return self.major << 16 | self.minor

    @property
    def queue_handle(self) -> int:
        """Handle of the leaf; its major number has to be unique on the interface."""
        return (0x1000 + self.minor) << 16 if self.minor != UNKNOWN_MINOR else UNKNOWN_MINOR << 16


def link_classes(rules: DeviceRules, *, netem: bool = True) -> tuple[LinkClass, ...]:
    """Return one class a source, in the order of the rules, and a last one for packets from anybody else.

    Without `netem` the classes delay nothing; `delays` does that afterwards.
    """
    classes = [class_of(rule, number, netem=netem) for number, rule in enumerate(rules.rules, start=1)]
    rest = Queue("bfifo", UNSHAPED_QUEUE_BYTES)
    unshaped = (UNSHAPED_RATE, _burst(UNSHAPED_RATE))
    return (*classes, LinkClass("unknown sources", None, IFB_MAJOR, UNKNOWN_MINOR, *unshaped, rest))


def uplink_class(uplink_bps: float) -> LinkClass:
    """Return the one class of all that a device sends."""
    rate = _bytes_per_s(uplink_bps)
    queue = Queue("bfifo", max(round(rate * UPLINK_QUEUE_S), 2 * FRAME_BYTES))
    return LinkClass("uplink", None, UPLINK_MAJOR, 1, rate, _burst(rate), queue)


def tree_commands(interface: str, classes: Sequence[LinkClass]) -> Iterator[str]:
    """Yield the `tc` commands that put a root and these classes on an interface; the last class is the default."""
    major, default = classes[-1].major, classes[-1].minor
    yield f"qdisc add dev {interface} root handle {major:x}: htb default {default:x}"
    for link_class in classes:
        yield f"class add dev {interface} {_class_text(link_class)}"
        yield f"qdisc add dev {interface} {_queue_text(link_class)}"
        if link_class.address is not None:
            selector = f"u32 match ip src {link_class.address}/32 flowid {major:x}:{link_class.minor:x}"
            yield f"filter add dev {interface} parent {major:x}: protocol ip prio 1 {selector}"


def change_commands(interface: str, before: LinkClass, after: LinkClass) -> Iterator[str]:
    """Yield the `tc` commands that turn a class into another of the same name and kind of queue, while it is in use."""
    if (before.rate, before.burst) != (after.rate, after.burst):
        yield f"class change dev {interface} {_class_text(after)}"
    if before.queue != after.queue:
        yield f"qdisc change dev {interface} {_queue_text(after)}"


def redirect_commands(interface: str) -> Iterator[str]:
    """Yield the `tc` commands that send all IPv4 an interface receives through the IFB; ARP goes its own way."""
    yield f"qdisc add dev {interface} clsact"
    action = f"action mirred egress redirect dev {IFB}"
    yield f"filter add dev {interface} ingress protocol ip prio 1 u32 match u32 0 0 {action}"


def class_of(rule: LinkRule, minor: int, *, netem: bool = True) -> LinkClass:
    """Return the class of one link."""
    rate = UNSHAPED_RATE if rule.rate_bps is None else _bytes_per_s(rule.rate_bps)
    address = rule.source_address
    return LinkClass(rule.source, address, IFB_MAJOR, minor, rate, _burst(rate), _queue_of(rule, rate, netem))


def _queue_of(rule: LinkRule, rate: int, netem: bool) -> Queue:
    """Return the queue of a link; netem counts packets, so its limit is in full frames, those under way included."""
    if not netem or (rule.delay_s == 0 and rule.jitter_s == 0):
        limit = UNSHAPED_QUEUE_BYTES if rule.rate_bps is None else math.ceil(rate * rule.queue_s)
        return Queue("bfifo", limit)
    waiting_s = rule.delay_s + rule.jitter_s + rule.queue_s
    limit = math.ceil(rate * waiting_s / FRAME_BYTES)
    delay_us, jitter_us = round(rule.delay_s * 1e6), round(rule.jitter_s * 1e6)
    return Queue("netem", limit, delay_us, jitter_us, UNSHAPED_RATE, 100 * rule.reorder)


def _bytes_per_s(rate_bps: float) -> int:
    return round(rate_bps / 8)


def _burst(rate: int) -> int:
    return math.ceil(rate * BURST_S)


def _class_text(link_class: LinkClass) -> str:
    rate = f"rate {link_class.rate * 8}bit ceil {link_class.rate * 8}bit"
    burst = f"burst {link_class.burst}b cburst {link_class.burst}b"
    major, minor = link_class.major, link_class.minor
    return f"parent {major:x}: classid {major:x}:{minor:x} htb {rate} {burst} quantum {QUANTUM}"


def _queue_text(link_class: LinkClass) -> str:
    queue = link_class.queue
    place = f"parent {link_class.major:x}:{link_class.minor:x} handle {link_class.queue_handle >> 16:x}:"
    if queue.kind == "bfifo":
        return f"{place} bfifo limit {queue.limit}"
    jitter = f" {queue.jitter_us}us" if queue.jitter_us else ""
    overtaking = f" reorder {queue.reorder_pct:g}%" if queue.reorder_pct else ""
    order = f" rate {queue.order_rate * 8}bit" if queue.order_rate else ""
    return f"{place} netem limit {queue.limit} delay {queue.delay_us}us{jitter}{overtaking}{order}"
