"""What a request is expected to send, message by message. Pure.

Strategies and input placement state their traffic as `PlannedMessage`s; totals, per-link sums and framing overhead all
follow from that one list, so that a formula exists once. Tests hold it equal to what the transport counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = ["PlannedMessage", "all_to_all", "as_expected", "bytes_of", "bytes_of_most"]


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
    most_bytes: int | None = None
    """Where `payload_bytes` is an expectation: what it cannot exceed. None where it is certain."""


def bytes_of(messages: Iterable[PlannedMessage]) -> int:
    """Sum the payload bytes over all messages and links."""
    return sum(message.payload_bytes * message.count for message in messages)


def bytes_of_most(messages: Iterable[PlannedMessage]) -> int:
    """Sum the most payload bytes that there may be over all messages and links."""
    return sum((message.most_bytes or message.payload_bytes) * message.count for message in messages)


def as_expected(messages: Iterable[PlannedMessage], share: float, overhead: float) -> list[PlannedMessage]:
    """Return messages with bounds as they are expected to be: `share` of their most bytes and `overhead` bytes."""
    return [
        message
        if message.most_bytes is None
        else replace(message, payload_bytes=min(message.most_bytes, round(share * message.most_bytes + overhead)))
        for message in messages
    ]


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
