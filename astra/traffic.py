"""What a request is expected to send, message by message. Pure.

Strategies and input placement state their traffic as `PlannedMessage`s; totals, per-link sums and framing overhead all
follow from that one list, so that a formula exists once. Tests hold it equal to what the transport counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["PlannedMessage", "all_to_all", "bytes_of"]


@dataclass(frozen=True)
class PlannedMessage:
    """`count` messages of the same size on one directed link."""

    source: int
    destination: int
    payload_bytes: int
    """Bytes of one message, without framing."""
    count: int = 1
    is_datagram: bool = False
    """Sent by itself over UDP, and not in a stream over TCP."""


def bytes_of(messages: Iterable[PlannedMessage]) -> int:
    """Sum the payload bytes over all messages and links."""
    return sum(message.payload_bytes * message.count for message in messages)


def all_to_all(payload_bytes: list[int], count: int, *, causal: bool = False) -> list[PlannedMessage]:
    """Plan `count` rounds in which every rank r sends `payload_bytes[r]` bytes to each other rank.

    In a causal model only later ranks look at a rank's tokens, so only they are sent to.
    """
    ranks = range(len(payload_bytes))
    return [
        PlannedMessage(source, destination, payload_bytes[source], count)
        for source in ranks
        for destination in ranks
        if (source < destination if causal else source != destination)
    ]
