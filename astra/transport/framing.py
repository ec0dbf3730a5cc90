"""How a message becomes frames: the tag, the header, the sizes.

    payload ──cut──► [header ≤ 64 KiB] [header ≤ 64 KiB] …    a frame is one ZeroMQ message of one part

The header is a msgpack array whose members always take their full width, so that every header has
HEADER_BYTES bytes and the bytes of a message on the wire are a function of its payload alone:

    [token u32, sender u8, request u32, layer u16, phase str of 12, chunk u16, total u32]

`token` is drawn anew for every run, so a frame of another run or of a stranger is recognised. `phase` is
padded with NUL. `total` is the payload's size over all frames of the message.

This module does no I/O.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgpack

from astra.errors import TransportError

__all__ = [
    "CHUNK_BYTES",
    "CURVE_FRAME_BYTES",
    "HEADER_BYTES",
    "MAX_MESSAGE_BYTES",
    "Frame",
    "Header",
    "Tag",
    "cut",
    "decode_header",
    "framed_size",
    "num_frames",
]

CHUNK_BYTES = 64 * 1024
"""The most payload that one frame carries."""

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""The largest payload of a message: 4096 tokens of width 16384 in fp32."""

ZMTP_SHORT_BYTES = 2
"""What ZMTP 3.1 puts before a message of up to 255 bytes: flags and a one-byte size."""

ZMTP_LONG_BYTES = 9
"""What ZMTP 3.1 puts before a longer message: flags and an eight-byte size."""

CURVE_FRAME_BYTES = 33
"""What CURVE adds to every message: 8 bytes of command name, 8 of nonce, 16 of authenticator, and flags (RFC 26)."""

_PHASE_CHARS = 12
_UINT8, _UINT16, _UINT32 = 0xCC, 0xCD, 0xCE
_HEADER = struct.Struct(f">B BI BB BI BH B{_PHASE_CHARS}s BH BI")
_ARRAY_OF_7 = 0x97
_FIXSTR = 0xA0 | _PHASE_CHARS
_LIMITS = (2**32, 2**8, 2**32, 2**16, None, 2**16, 2**32)

HEADER_BYTES = _HEADER.size
"""Bytes of every header."""


class Tag(NamedTuple):
    """What a message is for; `phase` is at most 12 ASCII characters.

    Request numbers never decrease during a run. Two messages with one tag from one peer arrive in order.
    """

    request: int
    layer: int
    phase: str


class Header(NamedTuple):
    """One frame's header, decoded."""

    token: int
    sender: int
    tag: Tag
    chunk: int
    total: int


Frame = tuple[bytes, memoryview]
"""A header and the piece of the payload that follows it."""


def num_frames(payload_bytes: int) -> int:
    """Count the frames of a message; an empty payload still takes one."""
    return max(1, -(-payload_bytes // CHUNK_BYTES))


def _framed_chunk_size(chunk_bytes: int, curve: bool) -> int:
    frame_bytes = HEADER_BYTES + chunk_bytes + (CURVE_FRAME_BYTES if curve else 0)
    return frame_bytes + (ZMTP_SHORT_BYTES if frame_bytes <= 255 else ZMTP_LONG_BYTES)


def framed_size(payload_bytes: int, *, curve: bool = False) -> int:
    """Give the TCP payload bytes that a message takes on a ZeroMQ connection, headers included; `curve`: with keys.

    What the kernel counts on a link adds, per packet, the TCP, IP and Ethernet headers, and the
    acknowledgements of the other direction.
    """
    full, rest = divmod(payload_bytes, CHUNK_BYTES)
    last = _framed_chunk_size(rest, curve) if rest or not full else 0
    return full * _framed_chunk_size(CHUNK_BYTES, curve) + last


def cut(token: int, sender: int, tag: Tag, payload: bytes | bytearray | memoryview) -> Iterator[Frame]:
    """Cut a payload into frames without copying it.

    Raises:
        TransportError: the tag does not fit the header, or the payload is larger than MAX_MESSAGE_BYTES.
    """
    view = memoryview(payload).cast("B")
    total = len(view)
    if total > MAX_MESSAGE_BYTES:
        raise TransportError(
            f"rank {sender}: payload must be at most {MAX_MESSAGE_BYTES} bytes, got {total}; send it in parts"
        )
    phase = _encode_phase(tag.phase)
    for chunk in range(num_frames(total)):
        header = _encode_header(token, sender, tag, phase, chunk, total)
        yield header, view[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]


def _encode_phase(phase: str) -> bytes:
    encoded = phase.encode("ascii", errors="replace")
    if not 0 < len(encoded) <= _PHASE_CHARS or not phase.isascii() or "\0" in phase:
        raise TransportError(
            f"tag: phase must be 1 to {_PHASE_CHARS} ASCII characters, got {phase!r}; shorten or spell it out"
        )
    return encoded


def _encode_header(token: int, sender: int, tag: Tag, phase: bytes, chunk: int, total: int) -> bytes:
    try:
        return _HEADER.pack(
            _ARRAY_OF_7,
            *(_UINT32, token, _UINT8, sender, _UINT32, tag.request, _UINT16, tag.layer),
            *(_FIXSTR, phase, _UINT16, chunk, _UINT32, total),
        )
    except struct.error:
        raise TransportError(
            f"tag: request must be 0 to {2**32 - 1} and layer 0 to {2**16 - 1}, got {tag!r}; "
            "number requests and layers from 0"
        ) from None


def decode_header(frame: bytes | memoryview) -> Header | None:
    """Read the header of a frame; None if it does not begin with one."""
    try:
        fields = msgpack.unpackb(frame[:HEADER_BYTES], raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException):
        return None
    if not isinstance(fields, list) or len(fields) != len(_LIMITS):
        return None
    for field, limit in zip(fields, _LIMITS, strict=True):
        if limit is None:
            if not isinstance(field, str):
                return None
        elif type(field) is not int or not 0 <= field < limit:
            return None
    token, sender, request, layer, phase, chunk, total = fields
    if total > MAX_MESSAGE_BYTES or chunk >= num_frames(total):
        return None
    return Header(token, sender, Tag(request, layer, phase.rstrip("\0")), chunk, total)
