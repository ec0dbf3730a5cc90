"""What ranks count while they serve, and how it gets to rank 0. Pure.

LinkTotals at two marks ──difference──► per rank ──sum──► what all links carried
DatagramCounts of a request, RankCounts of a strategy ──to rank 0──► rows of tables (`measure`)
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass

__all__ = ["DatagramCounts", "LinkTotals", "RankCounts"]

_COUNTS = struct.Struct("<5I2Q")
_DIGESTS = 2**64


@dataclass(frozen=True)
class LinkTotals:
    """Frames on links, as the kernel counted them."""

    bytes: int
    """Ethernet frames with their headers, lost ones included, those that found the queue full excluded."""
    packets: int
    lost: int
    """Packets that never arrived: dropped by the loss pattern or by a full queue."""

    @classmethod
    def between(cls, begin: Mapping[str, Mapping[str, int]], end: Mapping[str, Mapping[str, int]]) -> "LinkTotals":
        """Sum what the links that end at one device carried between two marks of it."""

        def grown(field: str) -> int:
            return sum(end[source][field] - begin.get(source, {}).get(field, 0) for source in end)

        return cls(grown("bytes"), grown("packets"), grown("lost") + grown("overflowed"))

    @classmethod
    def sum(cls, parts: Iterable["LinkTotals"]) -> "LinkTotals":
        """Add up devices; each link ends at one of them."""
        listed = list(parts)
        return cls(
            sum(part.bytes for part in listed),
            sum(part.packets for part in listed),
            sum(part.lost for part in listed),
        )


@dataclass(frozen=True)
class DatagramCounts:
    """What came of the rows that were sent as datagrams."""

    rows_expected: int
    """Tokens or means of peers, once for each layer and rank that was to have them."""
    rows_missing: int
    """Those that had not come when they were needed."""
    sent: int
    received: int
    """Copies and late ones included."""
    late: int
    """Came when their layer was over."""
    sent_sum: int = 0
    """Stands for the rows that were sent, see `collectives.RowCount`; modulo 2**64."""
    missing_sum: int = 0
    """Likewise for those that were missing, and where."""

    SIZE = _COUNTS.size

    @property
    def missing_pct(self) -> float:
        """Share of rows that had not come, in per cent."""
        return 100 * self.rows_missing / self.rows_expected if self.rows_expected else 0.0

    def minus(self, earlier: "DatagramCounts") -> "DatagramCounts":
        """Return what was counted since."""
        return DatagramCounts._wrapped(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True))

    @classmethod
    def sum(cls, parts: Iterable["DatagramCounts"]) -> "DatagramCounts":
        """Add up ranks or requests."""
        return cls._wrapped(sum(counts) for counts in zip(*(astuple(part) for part in parts), strict=True))

    @classmethod
    def _wrapped(cls, counts: Iterable[int]) -> "DatagramCounts":
        values = list(counts)
        return cls(*values[:-2], *(value % _DIGESTS for value in values[-2:]))

    def to_bytes(self) -> bytes:
        """Pack for the way to rank 0."""
        return _COUNTS.pack(*astuple(self))

    @classmethod
    def from_bytes(cls, packed: bytes | memoryview) -> "DatagramCounts":
        """Unpack what another rank's `to_bytes` made."""
        return cls(*_COUNTS.unpack(packed))


@dataclass(frozen=True)
class RankCounts:
    """What one rank counted while it served a strategy."""

    links: LinkTotals | None
    """The links that end at its device, between the marks; None where nobody counts."""
    flops: int | None
    """Of one request; None without a warm-up request, during which they are counted."""
    codes_digest: str | None = None
    """Of the codes that it sent for all requests, those to warm up included; None if it sent none."""
    stale: int = 0
    """Frames that came after their request was over, since the run began."""
    malformed: int = 0
    """Frames and datagrams that were damaged or not of this run, since it began."""

    def to_json(self) -> bytes:
        """Pack for the way to rank 0."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, packed: bytes | memoryview) -> "RankCounts":
        """Unpack what another rank's `to_json` made."""
        values = json.loads(bytes(packed))
        links = values["links"]
        return cls(**{**values, "links": None if links is None else LinkTotals(**links)})
