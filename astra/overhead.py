"""From payload bytes to what a kernel counts on an Ethernet link, without loss. Pure.

    payload --framed_size--> TCP stream bytes --segments--> frames with headers, and acknowledgements the other way
    payload of a datagram --> one frame with headers, and nothing the other way

Assumptions for the former, all of them plain TCP over IPv4 and Ethernet with an MTU of 1,500 bytes:

* a segment carries at most 1,448 bytes (timestamps are on), and a message does not share segments with another;
* a frame has 14 + 20 + 32 bytes of Ethernet, IP and TCP headers; no checksum trailer, as Linux counts none;
* the receiver acknowledges every second segment and the last one, by a frame without data.

Where traffic flows both ways at once, acknowledgements ride on data and the true figure is smaller; a lost packet is
sent twice and makes it larger. The kernel's counters say what really happened.
"""

from collections.abc import Iterable

from astra.traffic import PlannedMessage
from astra.transport import framed_size
from astra.transport.datagram_framing import DATAGRAM_HEADER_BYTES

__all__ = ["DATAGRAM_FRAME_HEADER_BYTES", "FRAME_HEADER_BYTES", "SEGMENT_BYTES", "bytes_on_links", "forward_bytes"]

SEGMENT_BYTES = 1500 - 20 - 32
"""TCP payload of a full segment: MTU less IPv4 header, less TCP header with timestamps."""

FRAME_HEADER_BYTES = 14 + 20 + 32
"""Ethernet, IPv4 and TCP headers of one frame."""

DATAGRAM_FRAME_HEADER_BYTES = 14 + 20 + 8 + DATAGRAM_HEADER_BYTES
"""Ethernet, IPv4, UDP and own headers of one datagram."""

SEGMENTS_PER_ACKNOWLEDGEMENT = 2


def bytes_on_links(messages: Iterable[PlannedMessage], *, curve: bool = False) -> int:
    """Sum all frames that the messages cause, over all links and in both directions; `curve`: encrypted ones."""
    return sum(message.count * _message_bytes(message, curve) for message in messages)


def forward_bytes(message: PlannedMessage, *, curve: bool = False) -> int:
    """Return the bytes of one message's frames on its own way, without acknowledgements."""
    if message.is_datagram:
        return message.payload_bytes + DATAGRAM_FRAME_HEADER_BYTES
    stream_bytes = framed_size(message.payload_bytes, curve=curve)
    return stream_bytes + _segments(stream_bytes) * FRAME_HEADER_BYTES


def _message_bytes(message: PlannedMessage, curve: bool) -> int:
    if message.is_datagram:
        return forward_bytes(message)
    segments = _segments(framed_size(message.payload_bytes, curve=curve))
    acknowledgements = -(-segments // SEGMENTS_PER_ACKNOWLEDGEMENT)
    return forward_bytes(message, curve=curve) + acknowledgements * FRAME_HEADER_BYTES


def _segments(stream_bytes: int) -> int:
    return -(-stream_bytes // SEGMENT_BYTES)
