"""What the kernel's counters say of the links that end at a device. Pure.

ClassState of each link, now and at the last reset; packets lost and dropped elsewhere --> LinkCounters, LinkProgress
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from testbed.shaper.netlink import ClassState
from testbed.shaper.plan import LinkClass

__all__ = ["LinkCounters", "LinkProgress", "link_counters", "link_progress"]


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
class LinkProgress:
    """How far a link has come with what it was given."""

    delivered_bytes: int
    """Bytes of frames that have used up the link's time since its rules were made."""
    waiting_bytes: int | None
    """Bytes that wait for it, so that it has no time to spare; None where the queue also holds what is delayed."""


def link_counters(
    classes: Sequence[LinkClass],
    now: Mapping[int, ClassState],
    before: Mapping[int, ClassState],
    *,
    lost: Iterable[int],
    dropped: Mapping[str, int],
) -> dict[str, LinkCounters]:
    """Return the counts of every link since `before`, keyed by source device; states are keyed by handle.

    `lost` has the packets that the patterns dropped, link by link; `dropped`, by source, those without room elsewhere.
    """
    counted = {}
    for link_class, lost_packets in zip(classes, lost, strict=False):
        state, earlier = now[link_class.handle], before.get(link_class.handle)
        counted[link_class.name] = LinkCounters(
            bytes=state.bytes - (earlier.bytes if earlier else 0),
            packets=state.packets - (earlier.packets if earlier else 0),
            lost=lost_packets,
            overflowed=state.drops - (earlier.drops if earlier else 0) + dropped.get(link_class.name, 0),
        )
    return counted


def link_progress(classes: Sequence[LinkClass], now: Mapping[int, ClassState]) -> dict[str, LinkProgress]:
    """Return how far every link has come, keyed by source device; states are keyed by handle."""
    return {
        each.name: LinkProgress(
            now[each.handle].bytes, now[each.handle].backlog if each.queue.kind == "bfifo" else None
        )
        for each in classes
    }
