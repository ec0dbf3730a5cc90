"""Rows as datagrams: sent once or several times, waited for until a deadline, and then done without.

    rows ──cut_rows──► parts ──copies, peers in turn──► network ──Assembly──► rows that came, and which did not
                                                                └── offsets ──► Patience: how long to wait next time

With `on_missing: stale`, rows that are missing are taken from the layer before, as `CarryOver` says; absent are then
those that never came in this request. Every rank goes on when its own waiting is over, so a peer may be a layer ahead.
A peer that is gone is neither sent to nor waited for.
"""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from astra.collectives import Collectives
from astra.errors import WireError
from astra.parts import Assembly, cut_rows, parity_of
from astra.patience import Patience
from astra.rows import CarryOver, Known, RowCodec, Rows, Ways
from astra.transport import Tag
from astra.transport.datagram_framing import Label
from astra.transport_config import DatagramConfig

__all__ = ["DatagramExchange"]


@dataclass
class _Memory:
    """The last rows of each peer that came in this request."""

    request: int = -1
    rows_RV: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    known_R: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))


@dataclass
class _Waits:
    """What one rank's waiting has taught it of its peers."""

    patience: Patience
    left_s: dict[tuple[int, int], float] = field(default_factory=dict)
    """When this rank's own rows of a request and layer left."""
    given_up: set[tuple[int, int, int]] = field(default_factory=set)
    """Requests, layers and peers that were waited for in vain."""


class DatagramExchange:
    """Rows as datagrams; what does not come in time is absent."""

    def __init__(
        self,
        config: DatagramConfig,
        collectives: Collectives,
        codec: RowCodec,
        ways: Ways,
        carry_over: CarryOver,
    ):
        assert collectives.datagrams is not None, "see open_exchange"
        self._config = config
        self._collectives = collectives
        self._port = collectives.datagrams
        self._codec = codec
        self._ways = ways
        self._carry_over = carry_over
        self._waits = _Waits(Patience(config))
        self._memory = _Memory()

    def to_first(self, codec: RowCodec) -> "DatagramExchange":
        """Make one for a row of every rank to rank 0, in layers of its own; it knows peers as this one does."""
        config = self._config.model_copy(update={"on_missing": "mask"})  # no layer before has such a row
        beside = DatagramExchange(
            config,
            self._collectives,
            codec,
            Ways.to_first(self._collectives.rank, self._collectives.world_size),
            self._carry_over,
        )
        beside._waits = self._waits
        return beside

    def start(self, tag: Tag, rows_RV: Tensor) -> "_PendingDatagrams":
        """Send the parts of all peers in turn, and then as often again as there are copies."""
        self._port.begin(tag.request, tag.layer)
        self._note_late()
        if self._ways.to:
            labelled = self._labelled(tag, rows_RV)
            self._collectives.rows.note_sent(self._where(tag), [piece for _, piece in labelled])
            for _ in range(self._config.copies):
                for label, piece in labelled:
                    for peer in self._collectives.in_turn(set(self._ways.to) - self._collectives.watch.gone):
                        self._port.send(peer, label, piece)
        if tag.layer == 0:
            self._waits.left_s.clear()
            self._waits.given_up.clear()
        self._waits.left_s[tag.request, tag.layer] = time.monotonic()
        return _PendingDatagrams(self, tag, rows_RV.shape[1])

    def receive(self, tag: Tag, values: int) -> Rows:
        """Wait for the layer's datagrams until all rows are there or patience ends; account for what is missing."""
        counts = {peer: self._ways.counts[peer] for peer in self._ways.of}
        assemblies = {
            peer: Assembly(count, lambda n: self._codec.size(n, values, tag.layer), is_fixed=self._codec.is_fixed)
            for peer, count in counts.items()
        }
        self._gather(tag, assemblies)
        rows_RV = torch.zeros(sum(counts.values()), values, dtype=self._codec.dtype)
        missing_R = torch.ones(len(rows_RV), dtype=torch.bool)
        first = 0
        for peer, assembly in assemblies.items():
            for rows, payload in assembly.chunks():
                where = slice(first + rows.start, first + rows.stop)
                known = Known(tag.layer, self._ways.first_of(peer) + rows.start)  # the layer before may be missing
                try:
                    rows_RV[where] = self._codec.decode(payload, len(rows), values, known)
                except WireError as error:
                    self._port.reject(peer, error)
                else:
                    missing_R[where] = False
            first += counts[peer]
        self._collectives.rows.add(self._where(tag), missing_R.tolist())
        if self._config.on_missing == "stale":
            missing_R = self._fill(tag, rows_RV, missing_R)
        return Rows(rows_RV, missing_R if bool(missing_R.any()) else None)

    def _where(self, tag: Tag) -> tuple[int, int, int]:
        return tag.request, tag.layer, self._collectives.rank

    def _labelled(self, tag: Tag, rows_RV: Tensor) -> list[tuple[Label, bytes]]:
        """Return the datagrams of this rank's rows, the parity last."""
        total, values = rows_RV.shape
        parts = cut_rows(total, lambda n: self._codec.size(n, values, tag.layer))
        pieces = []
        for part in parts:
            known = Known(tag.layer, self._ways.first_of(self._collectives.rank) + part.first)
            payload = self._codec.encode(rows_RV[part.first : part.first + part.rows], known)
            pieces.append(payload[part.offset : part.offset + part.num_bytes])
        where = (tag.request, tag.layer)
        labelled = [
            (Label(*where, number, len(parts), part.first, part.rows, total), piece)
            for number, (part, piece) in enumerate(zip(parts, pieces, strict=True))
        ]
        if self._config.parity and pieces:
            labelled.append((Label(*where, len(parts), len(parts), 0, total, total), parity_of(pieces)))
        return labelled

    def _gather(self, tag: Tag, assemblies: dict[int, Assembly]) -> None:
        """Collect datagrams until every message is complete, will not be, or has been waited for long enough."""
        left_s = self._waits.left_s[tag.request, tag.layer]
        self._collectives.watch.check(())
        while True:
            gone = self._collectives.watch.gone
            waited_for = [
                peer
                for peer, assembly in assemblies.items()
                if not (assembly.is_complete or peer in gone or self._port.is_past(peer))
            ]
            limits_s = [self._waits.patience.limit_s(peer, tag.layer) for peer in waited_for]
            rest_s = max(limits_s, default=0.0) - (time.monotonic() - left_s)
            arrived = self._port.collect(rest_s if waited_for else 0.0, waited_for)
            for datagram in arrived:
                assembly = assemblies.get(datagram.sender)
                if assembly is None or not assembly.add(datagram.label, datagram.piece, datagram.arrived_s):
                    self._port.reject(datagram.sender, datagram.label)
            if not arrived and (not waited_for or rest_s <= 0):
                break
        for peer, assembly in assemblies.items():
            if not assembly.is_complete:
                self._waits.given_up.add((tag.request, tag.layer, peer))
            elif assembly.arrived_s is not None:
                self._waits.patience.note(peer, tag.layer, assembly.arrived_s - left_s)

    def _note_late(self) -> None:
        """Let patience know of what came after it had ended, so that it grows where peers are slower than they were."""
        while self._port.late:
            late = self._port.late.popleft()
            key = (late.label.request, late.label.layer)
            if (*key, late.sender) in self._waits.given_up:
                self._waits.given_up.discard((*key, late.sender))
                self._waits.patience.note(late.sender, late.label.layer, late.arrived_s - self._waits.left_s[key])

    def _fill(self, tag: Tag, rows_RV: Tensor, missing_R: Tensor) -> Tensor:
        """Put rows of the layer before where some are missing; return which are still absent."""
        memory = self._memory
        if memory.request == tag.request:
            stale_R = missing_R & memory.known_R
            if bool(stale_R.any()):
                rows_RV[stale_R] = self._carry_over(tag.layer, memory.rows_RV[stale_R])
            missing_R = missing_R & ~stale_R
        self._memory = _Memory(tag.request, rows_RV, ~missing_R)
        return missing_R


@dataclass(frozen=True)
class _PendingDatagrams:
    exchange: DatagramExchange
    tag: Tag
    values: int

    def wait(self) -> Rows:
        """Wait until all rows are there or patience ends."""
        return self.exchange.receive(self.tag, self.values)
