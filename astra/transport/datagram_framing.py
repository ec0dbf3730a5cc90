"""What a datagram says of itself, and how much of it is header.

    rows of one rank for one layer ──(cut by `parts`)──► [header | piece] [header | piece] …    each usable alone

    magic u8, sender u8, epoch u16, token u32, request u32,
    layer u16, number u16, parts u16, first u16, rows u16, total u16

`token` is drawn for every run and `epoch` counts its restarts, so that a datagram of another run, or from before a
failure, is recognised. `number` of `parts` says which datagram of the message this is; a number equal to `parts` marks
the parity of all of them. `first` and `rows` say which of the message's `total` rows the piece holds. Big-endian.

This module does no I/O.
"""

import struct
from typing import NamedTuple

from astra.errors import TransportError

__all__ = [
    "DATAGRAM_HEADER_BYTES",
    "MAX_ROWS",
    "PIECE_BYTES",
    "Datagram",
    "Label",
    "decode_datagram",
    "encode_header",
]

_HEADER = struct.Struct(">BBHIIHHHHHH")
_MAGIC = 0xA5
"""Format 5 would be another one; a stray packet rarely begins with it."""

DATAGRAM_HEADER_BYTES = _HEADER.size
"""Bytes of every header."""

MAX_ROWS = 0xFFFF
"""Most rows, and most datagrams, of a message."""

_PATH_MTU_BYTES = 1400
"""What every path is taken to carry in one packet: Ethernet less the headers of a tunnel, as overlay networks have."""

PIECE_BYTES = _PATH_MTU_BYTES - 20 - 8 - DATAGRAM_HEADER_BYTES
"""The most that a datagram carries behind the headers of IPv4, UDP and its own."""


class Label(NamedTuple):
    """Which piece of which message a datagram holds; the same for all peers that it is sent to."""

    request: int
    layer: int
    number: int
    parts: int
    first: int
    rows: int
    total: int

    @property
    def is_parity(self) -> bool:
        """Whether the piece is the parity of all others."""
        return self.number == self.parts


class Datagram(NamedTuple):
    """A datagram that was read; `arrived_s` is when the kernel had it, on the clock of `time.monotonic`."""

    token: int
    epoch: int
    sender: int
    label: Label
    piece: bytes
    arrived_s: float


def encode_header(token: int, epoch: int, sender: int, label: Label) -> bytes:
    """Make the header of a datagram.

    Raises:
        TransportError: A number does not fit its field.
    """
    request, layer, *rest = label
    try:
        return _HEADER.pack(_MAGIC, sender, epoch, token, request, layer, *rest)
    except struct.error:
        raise TransportError(
            f"rank {sender}: datagram must be of a request below {2**32} and of at most {MAX_ROWS} rows, got {label!r};"
            " use fewer tokens, or transport: reliable"
        ) from None


def decode_datagram(packet: bytes, arrived_s: float) -> Datagram | None:
    """Read what arrived; None if it is not a datagram that `encode_header` could have begun."""
    if not DATAGRAM_HEADER_BYTES <= len(packet) <= DATAGRAM_HEADER_BYTES + PIECE_BYTES:
        return None
    magic, sender, epoch, token, *rest = _HEADER.unpack_from(packet)
    label = Label(*rest)
    within = label.rows >= 1 and label.first + label.rows <= label.total
    if magic != _MAGIC or not within or not 0 <= label.number <= label.parts or label.parts < 1:
        return None
    return Datagram(token, epoch, sender, label, packet[DATAGRAM_HEADER_BYTES:], arrived_s)
