"""Ring exchanges of tensors: all-gather and reduce-scatter tile by tile, and all-reduce made of both.

    legend: B batch, T tokens, D width; N ranks, one tile of tokens each

    all-gather       rank r sends tile r to r + 1, which keeps it and sends it on: N - 1 hops, and all have every tile
    reduce-scatter   rank r sends its part of tile r - 1 to r + 1, which adds its own and sends the sum on:
                     after N - 1 hops rank c has the whole sum of tile c
    all-reduce       reduce-scatter, then all-gather of the sums

Both passes meet tiles in the same order, r - 1, r - 2, … r + 1, so that work on a tile fits between two hops: sending
never waits, and a tile is computed while the next one travels. Tensors cross a link in `wire`; a sum is encoded anew
at every hop, a gathered tile once, by its owner. An empty tile is not sent.

Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, JPDC 2009.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from astra.collectives import Collectives
from astra.timeline import Timeline
from astra.traffic import PlannedMessage
from astra.transport import Tag
from astra.wire import Wire, decode, encode, encoded_size

__all__ = ["Ring", "even_tiles", "plan_all_gather", "plan_all_reduce", "plan_reduce_scatter"]


class Ring:
    """One rank's place between its two neighbours; every call must be made by all ranks, with the same tag."""

    def __init__(self, collectives: Collectives, timeline: Timeline, wire: Wire):
        self._collectives = collectives
        self._timeline = timeline
        self._wire = wire
        self._rank, self._world_size = collectives.rank, collectives.world_size
        self._next = (self._rank + 1) % self._world_size
        self._previous = (self._rank - 1) % self._world_size

    def all_gather(self, tag: Tag, own_BTD: Tensor, tile_tokens: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (rank, tile_BTD): this rank's own, exact, and then the others' as they come, from r - 1 downwards.

        A tile is sent on before it is yielded. `tile_tokens` counts the tokens of every rank's tile.
        """
        self._send(tag, own_BTD)
        yield self._rank, own_BTD
        batch, _, width = own_BTD.shape
        for hop in range(1, self._world_size):
            owner = (self._rank - hop) % self._world_size
            if not tile_tokens[owner]:
                yield owner, own_BTD[:, :0]
                continue
            payload = self._receive(tag)
            if owner != self._next:
                with self._timeline.span("send", tag.layer):
                    self._collectives.transport.send(self._next, tag, payload)
            with self._timeline.span("encode", tag.layer):
                tile_BTD = decode(payload, self._wire, batch * tile_tokens[owner], width).view(batch, -1, width)
            yield owner, tile_BTD

    def reduce_scatter(self, tag: Tag, part_of: Callable[[int], Tensor]) -> Tensor:
        """Return this rank's tile, summed over all ranks.

        `part_of(rank)` computes this rank's summand of another's tile; it is asked once a tile, in the order in
        which tiles are due, the own one last.
        """
        part_BTD = part_of(self._previous)
        for hop in range(1, self._world_size):
            self._send(tag, part_BTD)
            part_BTD = part_of((self._previous - hop) % self._world_size)
            if part_BTD.shape[1]:
                payload = self._receive(tag)
                with self._timeline.span("encode", tag.layer):
                    others_RD = decode(payload, self._wire, part_BTD.shape[0] * part_BTD.shape[1], part_BTD.shape[2])
                    part_BTD = part_BTD + others_RD.view(part_BTD.shape)
        return part_BTD

    def all_reduce(self, tag: Tag, part_BTD: Tensor) -> Tensor:
        """Return the sum over all ranks, the same bits on each of them whatever the wire."""
        if self._world_size == 1:
            return part_BTD
        batch, num_tokens, width = part_BTD.shape
        tiles = even_tiles(num_tokens, self._world_size)
        own_BTD = self.reduce_scatter(tag, lambda rank: part_BTD[:, tiles[rank].start : tiles[rank].stop])
        sum_BTD = torch.empty_like(part_BTD)
        for rank, tile_BTD in self.all_gather(tag, own_BTD, [len(tile) for tile in tiles]):
            with self._timeline.span("rest", tag.layer):
                sum_BTD[:, tiles[rank].start : tiles[rank].stop] = tile_BTD
        if self._wire != "fp32" and own_BTD.shape[1]:  # what the others see of the own tile, so that no copy drifts
            own = tiles[self._rank]
            with self._timeline.span("encode", tag.layer):
                seen_RD = decode(encode(own_BTD.flatten(0, 1), self._wire), self._wire, batch * len(own), width)
                sum_BTD[:, own.start : own.stop] = seen_RD.view(own_BTD.shape)
        return sum_BTD

    def _send(self, tag: Tag, tile_BTD: Tensor) -> None:
        if self._world_size == 1 or not tile_BTD.shape[1]:
            return
        with self._timeline.span("encode", tag.layer):
            payload = encode(tile_BTD.flatten(0, 1), self._wire)
        with self._timeline.span("send", tag.layer):
            self._collectives.transport.send(self._next, tag, payload)

    def _receive(self, tag: Tag) -> memoryview:
        with self._timeline.span("wait", tag.layer):
            return self._collectives.transport.receive(self._previous, tag, self._collectives.timeout_s)


def even_tiles(num_tokens: int, world_size: int) -> list[range]:
    """Cut the tokens into one tile a rank, as even as can be; tiles are empty where tokens are fewer than ranks."""
    return [range(num_tokens * rank // world_size, num_tokens * (rank + 1) // world_size) for rank in range(world_size)]


def plan_all_gather(tile_tokens: Sequence[int], width: int, wire: Wire, count: int) -> list[PlannedMessage]:
    """Plan `count` all-gathers of batch 1: every rank sends all tiles on but its successor's. Pure."""
    return _plan(tile_tokens, width, wire, count, withheld=1)


def plan_reduce_scatter(tile_tokens: Sequence[int], width: int, wire: Wire, count: int) -> list[PlannedMessage]:
    """Plan `count` reduce-scatters of batch 1: every rank sends parts of all tiles but its own. Pure."""
    return _plan(tile_tokens, width, wire, count, withheld=0)


def plan_all_reduce(num_tokens: int, world_size: int, width: int, wire: Wire, *, count: int) -> list[PlannedMessage]:
    """Plan `count` all-reduces of batch 1: of the tiles that `Ring.all_reduce` cuts. Pure."""
    tiles = [len(tile) for tile in even_tiles(num_tokens, world_size)]
    return [*plan_reduce_scatter(tiles, width, wire, count), *plan_all_gather(tiles, width, wire, count)]


def _plan(tile_tokens: Sequence[int], width: int, wire: Wire, count: int, withheld: int) -> list[PlannedMessage]:
    """Send every tile but that of the rank `withheld` places on, from every rank to its successor."""
    world_size = len(tile_tokens)
    return [
        PlannedMessage(rank, (rank + 1) % world_size, encoded_size(wire, num_tokens, width), count)
        for rank in range(world_size)
        for tile, num_tokens in enumerate(tile_tokens)
        if num_tokens and tile != (rank + withheld) % world_size
    ]
