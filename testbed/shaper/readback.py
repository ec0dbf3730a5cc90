"""Compare what the kernel has with what was asked, each with the kernel's rounding. Pure.

A difference is (field, asked, got). Rounding that is allowed for: `tc` gives bursts in whole microseconds, rounded
down, and the kernel keeps them in ticks of 64 ns; delays likewise. All else has to be equal.
"""

import socket
import struct
from collections.abc import Sequence
from typing import Any

from testbed.shaper.netlink import ClassState, FilterState, QdiscState
from testbed.shaper.plan import QUANTUM, LinkClass, Queue

__all__ = ["Difference", "class_differences", "filter_differences", "queue_differences", "root_differences"]

Difference = tuple[str, Any, Any]

TICK_S = 64e-9
ROUNDING_S = 2e-6
"""One microsecond that tc cuts off, and one of the ticks' and our own rounding."""
SOURCE_ADDRESS_OFFSET = 12
"""Of the source address in an IPv4 header."""
NETEM_DELAY, NETEM_LIMIT, NETEM_LOSS, NETEM_GAP, NETEM_DUPLICATE, NETEM_JITTER, NETEM_WORDS = 0, 1, 2, 3, 4, 5, 6
TCA_NETEM_REORDER, TCA_NETEM_RATE = 3, 6
CERTAIN = 2**32 - 1
"""Of a probability in netem's reorder attribute."""
SHARE_ROUNDING = 1e-6
ROOT_PARENT = 0xFFFFFFFF
HTB_DEFAULT = 3
"""Position among the words of HTB's options: one of a header, version, rate to quantum, default class."""


def root_differences(classes: Sequence[LinkClass], qdiscs: Sequence[QdiscState]) -> list[Difference]:
    """Compare the root of a tree: an HTB whose default is the last class."""
    got = [(q.kind, q.handle, q.options[HTB_DEFAULT]) for q in qdiscs if q.parent == ROOT_PARENT and q.kind == "htb"]
    asked = [("htb", classes[-1].major << 16, classes[-1].minor)]
    return [] if got == asked else [("root qdisc", asked, got)]


def class_differences(classes: Sequence[LinkClass], states: Sequence[ClassState]) -> list[Difference]:
    """Compare rates, bursts and quanta of a tree's classes."""
    by_handle = {state.handle: state for state in states}
    different: list[Difference] = []
    asked_handles = sorted(link_class.handle for link_class in classes)
    if sorted(by_handle) != asked_handles:
        return [("class ids", asked_handles, sorted(by_handle))]
    for link_class in classes:
        state = by_handle[link_class.handle]
        burst_s = link_class.burst / link_class.rate
        checks = [
            ("rate (bytes/s)", link_class.rate, state.rate, link_class.rate == state.rate),
            ("ceil (bytes/s)", link_class.rate, state.ceil, link_class.rate == state.ceil),
            ("quantum (bytes)", QUANTUM, state.quantum, state.quantum == QUANTUM),
            ("burst (s)", burst_s, state.burst_ticks * TICK_S, _rounded(burst_s, state.burst_ticks)),
            ("cburst (s)", burst_s, state.ceil_burst_ticks * TICK_S, _rounded(burst_s, state.ceil_burst_ticks)),
        ]
        different += [(f"{name} of {link_class.name}", asked, got) for name, asked, got, same in checks if not same]
    return different


def queue_differences(classes: Sequence[LinkClass], qdiscs: Sequence[QdiscState]) -> list[Difference]:
    """Compare the leaf of every class."""
    by_parent = {qdisc.parent: qdisc for qdisc in qdiscs}
    different: list[Difference] = []
    for link_class in classes:
        got = by_parent.get(link_class.handle)
        asked = link_class.queue
        if got is None or (got.kind, got.handle) != (asked.kind, link_class.queue_handle) or not _same(asked, got):
            different.append((f"queue of {link_class.name}", asked, got))
    return different


def filter_differences(classes: Sequence[LinkClass], filters: Sequence[FilterState]) -> list[Difference]:
    """Compare which source address leads to which class."""
    got = {(state.keys, state.target) for state in filters}
    asked = {
        (((_as_number(link_class.address), 0xFFFFFFFF, SOURCE_ADDRESS_OFFSET),), link_class.handle)
        for link_class in classes
        if link_class.address is not None
    }
    return [] if got == asked else [("filters by source address", sorted(asked), sorted(got, key=str))]


def _same(asked: Queue, got: QdiscState) -> bool:
    if asked.kind == "bfifo":
        return got.options == (asked.limit,)
    return (
        got.options[NETEM_LIMIT] == asked.limit
        and _rounded(asked.delay_us / 1e6, got.options[NETEM_DELAY])
        and _rounded(asked.jitter_us / 1e6, got.options[NETEM_JITTER])
        and not any(got.options[place] for place in (NETEM_LOSS, NETEM_DUPLICATE))
        and got.options[NETEM_GAP] == (1 if asked.reorder_pct else 0)  # one, where packets may overtake at any time
        and _netem_attribute(TCA_NETEM_RATE, got.options[NETEM_WORDS:]) == asked.order_rate
        and abs(_netem_attribute(TCA_NETEM_REORDER, got.options[NETEM_WORDS:]) / CERTAIN - asked.reorder_pct / 100)
        <= SHARE_ROUNDING
    )


def _netem_attribute(wanted: int, words: Sequence[int]) -> int:
    """Return the first word of one of netem's attributes, which begin with their length and kind; 0 without it."""
    while words:
        num_bytes, kind = words[0] & 0xFFFF, words[0] >> 16
        if kind == wanted:
            return words[1]
        words = words[max(1, (num_bytes + 3) // 4) :]
    return 0


def _rounded(asked_s: float, ticks: int) -> bool:
    return -ROUNDING_S <= ticks * TICK_S - asked_s <= TICK_S


def _as_number(address: str) -> int:
    number: int = struct.unpack(">I", socket.inet_aton(address))[0]
    return number
