"""What a datagram says of itself, and how much of it is header.

    rows of one rank for one layer ──(cut by `parts`)──► [header | tag | piece] …    each usable alone

    magic u8, sender u8, epoch u16, token u32, request u32,
    layer u16, number u16, parts u16, first u16, rows u16, total u16

`token` is drawn for every run and `epoch` counts its restarts, so that a datagram of another run, or from before a
failure, is recognised. `number` of `parts` says which datagram of the message this is; a number equal to `parts` marks
the parity of all of them. `first` and `rows` say which of the message's `total` rows the piece holds. Big-endian.

The tag is 8 bytes of BLAKE2b over header and piece, keyed with a key of the run: whoever does not have that can neither
make nor change a datagram, but for one guess in 2^64. It hides nothing, and does not tell one member from another.

This module does no I/O.
"""

import hashlib
import hmac
import struct
from typing import NamedTuple

from astra.errors import TransportError

__all__ = [
    "CALL_LAYER",
    "DATAGRAM_HEADER_BYTES",
    "KEY_BYTES",
    "MAX_ROWS",
    "PIECE_BYTES",
    "Datagram",
    "Label",
    "call_label",
    "decode_datagram",
    "encode_header",
    "is_sealed",
    "seal",
]

_HEADER = struct.Struct(">BBHIIHHHHHH")
_MAGIC = 0xA5
"""Format 5 would be another one; a stray packet rarely begins with it."""

_TAG_BYTES = 8

DATAGRAM_HEADER_BYTES = _HEADER.size + _TAG_BYTES
"""Bytes of every header and its tag."""

KEY_BYTES = 32
"""Of a run's key."""

CALL_LAYER = 0xFFFF
"""Layer of a datagram that holds no rows, but says that its request has begun."""

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


def call_label(request: int) -> Label:
    """Return the label of the word that a request has begun."""
    return Label(request, CALL_LAYER, 0, 1, 0, 1, 1)


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


def seal(key: bytes, header: bytes, piece: bytes) -> bytes:
    """Make a datagram of its parts."""
    return header + _tag(key, header, piece) + piece


def is_sealed(key: bytes, packet: bytes) -> bool:
    """Whether a datagram is as somebody with the key made it."""
    header, piece = packet[: _HEADER.size], packet[DATAGRAM_HEADER_BYTES:]
    return hmac.compare_digest(packet[_HEADER.size : DATAGRAM_HEADER_BYTES], _tag(key, header, piece))


def _tag(key: bytes, header: bytes, piece: bytes) -> bytes:
    tag = hashlib.blake2b(header, digest_size=_TAG_BYTES, key=key)
    tag.update(piece)
    return tag.digest()


def decode_datagram(packet: bytes, arrived_s: float) -> Datagram | None:
    """Read what arrived; None if it is not a datagram that `encode_header` could have begun. Leaves its tag unread."""
    if not DATAGRAM_HEADER_BYTES <= len(packet) <= DATAGRAM_HEADER_BYTES + PIECE_BYTES:
        return None
    magic, sender, epoch, token, *rest = _HEADER.unpack_from(packet)
    label = Label(*rest)
    within = label.rows >= 1 and label.first + label.rows <= label.total
    if magic != _MAGIC or not within or not 0 <= label.number <= label.parts or label.parts < 1:
        return None
    return Datagram(token, epoch, sender, label, packet[DATAGRAM_HEADER_BYTES:], arrived_s)
