"""Rows of tokens between ranks, layer by layer: what a strategy sends, apart from how it travels.

    own rows ──start──► peers that look at them         reliable: one message; all rows arrive
    peers' rows ◄──wait── by order of rank              datagram: parts with a deadline; some rows may be absent
                                                        both: those of a peer that is gone are absent

A strategy says what a row is (`rows.RowCodec`), and gets its peers' rows with a note of which are absent; attention
leaves those out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from astra.collectives import Collectives, PendingGather
from astra.datagram_exchange import DatagramExchange
from astra.errors import WireError
from astra.parts import cut_rows
from astra.rows import CarryOver, Known, RowCodec, Rows, Ways
from astra.traffic import PlannedMessage, all_to_all
from astra.transport import Tag
from astra.transport_config import DatagramConfig, ReliableConfig

__all__ = ["PendingRows", "RowExchange", "open_exchange", "plan_rows", "plan_to_first"]


class PendingRows(Protocol):
    """Peers' rows on their way; do the local part of the work before asking for them."""

    def wait(self) -> Rows:
        """Wait until all rows are there, or until waiting is over."""


class RowExchange(Protocol):
    """One strategy's rows on one rank."""

    def start(self, tag: Tag, rows_RV: Tensor) -> PendingRows:
        """Send this rank's rows of a layer to all that look at them, and do not wait for theirs."""

    def to_first(self, codec: RowCodec) -> "RowExchange":
        """Make one that travels alike, for one row of every rank to rank 0."""


def open_exchange(
    config: ReliableConfig | DatagramConfig,
    collectives: Collectives,
    codec: RowCodec,
    counts: Sequence[int],
    *,
    causal: bool,
    carry_over: CarryOver,
) -> RowExchange:
    """Make the exchange that `config` asks for; `counts` are the rows of every rank."""
    ways = Ways(counts, collectives.lookers(causal), collectives.looked_at(causal))
    if isinstance(config, ReliableConfig):
        return _ReliableExchange(collectives, codec, ways)
    assert collectives.datagrams is not None, "whoever connects opens a port if a strategy uses datagrams"
    return DatagramExchange(config, collectives, codec, ways, carry_over)


def plan_rows(
    config: ReliableConfig | DatagramConfig,
    codec: RowCodec,
    counts: Sequence[int],
    values: int,
    *,
    rounds: int,
    causal: bool,
) -> list[PlannedMessage]:
    """Return the messages of `rounds` layers in which ranks send `counts` rows of `values` values. Pure."""
    if isinstance(config, ReliableConfig):
        return all_to_all([codec.size(count, values) for count in counts], count=rounds, causal=causal)
    rows = all_to_all(list(counts), count=rounds, causal=causal)
    return [
        datagram
        for message in rows
        for datagram in _as_datagrams(config, codec, message.payload_bytes, values, message)
    ]


def plan_to_first(
    config: ReliableConfig | DatagramConfig, codec: RowCodec, values: int, world_size: int
) -> list[PlannedMessage]:
    """Return the messages in which all ranks send rank 0 one row of `values` values. Pure."""
    messages = [PlannedMessage(rank, 0, codec.size(1, values)) for rank in range(1, world_size)]
    if isinstance(config, ReliableConfig):
        return messages
    return [datagram for message in messages for datagram in _as_datagrams(config, codec, 1, values, message)]


def _as_datagrams(
    config: DatagramConfig, codec: RowCodec, num_rows: int, values: int, message: PlannedMessage
) -> list[PlannedMessage]:
    """Return the datagrams that rows travel as on a message's way, as often as that is sent."""
    sizes = [part.num_bytes for part in cut_rows(num_rows, lambda n: codec.size(n, values))]
    sizes += [max(sizes)] if config.parity and sizes else []
    count = message.count * config.copies
    return [PlannedMessage(message.source, message.destination, size, count, is_datagram=True) for size in sizes]


@dataclass(frozen=True)
class _Layer:
    """All ranks' rows of one layer that this rank knows, for the next layer's to be guessed from."""

    request: int = -1
    layer: int = -1
    rows: dict[int, Tensor] = field(default_factory=dict)

    def comes_before(self, tag: Tag) -> bool:
        return (self.request, self.layer + 1) == (tag.request, tag.layer)


class _ReliableExchange:
    """Rows as messages of a transport on which everything arrives."""

    def __init__(self, collectives: Collectives, codec: RowCodec, ways: Ways):
        self._collectives = collectives
        self._codec = codec
        self._ways = ways
        self._last = _Layer()

    def start(self, tag: Tag, rows_RV: Tensor) -> PendingRows:
        """Send one message a peer."""
        rank = self._collectives.rank
        before = self._last.rows if self._last.comes_before(tag) else {}
        known = {peer: Known(tag.layer, self._ways.first_of(peer), before.get(peer)) for peer in (rank, *self._ways.of)}
        self._last = _Layer(tag.request, tag.layer, {rank: rows_RV})
        payload = self._codec.encode(rows_RV, known[rank]) if self._ways.to else b""
        to, of = self._ways.to, self._ways.of
        pending = self._collectives.start_exchange(tag, payload, to=to, of=of, forgiving=True)
        return _PendingMessages(pending, self._codec, self._ways, rows_RV.shape[1], known, self._last.rows)

    def to_first(self, codec: RowCodec) -> "_ReliableExchange":
        """Make one for a row of every rank to rank 0."""
        ways = Ways.to_first(self._collectives.rank, self._collectives.world_size)
        return _ReliableExchange(self._collectives, codec, ways)


@dataclass(frozen=True)
class _PendingMessages:
    pending: PendingGather
    codec: RowCodec
    ways: Ways
    values: int
    known: Mapping[int, Known]
    arrived: dict[int, Tensor]
    """Takes the rows that arrive."""

    def wait(self) -> Rows:
        """Wait for all peers that are not gone."""
        payloads = {peer: payload for peer, payload in self.pending.wait().items() if self._is_readable(peer)}
        counts = self.ways.counts
        for peer, payload in payloads.items():
            self.arrived[peer] = self._rows_of(peer, payload)
        parts = [
            self.arrived[peer] if peer in payloads else torch.zeros(counts[peer], self.values, dtype=self.codec.dtype)
            for peer in self.ways.of
        ]
        if not parts:
            return Rows(torch.empty(0, self.values, dtype=self.codec.dtype), None)
        if len(payloads) == len(parts):
            return Rows(torch.cat(parts), None)
        absent = [torch.full((counts[peer],), peer not in payloads) for peer in self.ways.of]
        return Rows(torch.cat(parts), torch.cat(absent))

    def _rows_of(self, peer: int, payload: memoryview) -> Tensor:
        """Read one peer's rows. Raises WireError."""
        try:
            return self.codec.decode(payload, self.ways.counts[peer], self.values, self.known[peer])
        except WireError as error:
            raise WireError(f"rows of rank {peer}, layer {self.known[peer].layer}: {error}") from error

    def _is_readable(self, peer: int) -> bool:
        """Say whether this rank knows what the peer supposed when it sent its rows."""
        known = self.known[peer]
        return self.codec.is_fixed or known.layer == 0 or known.before_RV is not None
