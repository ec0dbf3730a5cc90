"""Ring exchanges as steps of a schedule: what `ring.Ring` does, hop by hop. Pure.

    all-gather       send own tile; each hop: wait, send on, unpack, work on the tile
    reduce-scatter   work on a tile; each hop: send the sum, work on the next tile, wait, add

Tiles are named by their owner, and at hop h rank r deals with that of rank r - h.
"""

from collections.abc import Callable, Sequence

from astra.planning.schedule import Compute, Send, Step, Wait
from astra.planning.work import NOTHING, LayerWork, Work
from astra.traffic import PlannedMessage
from astra.wire import Wire, encoded_size

__all__ = ["RingSteps"]

OnTile = Callable[[int, int], Work]
"""Takes a rank and a tile's owner; returns what the rank does with that tile."""


def _nothing(rank: int, owner: int) -> Work:
    return NOTHING


class RingSteps:
    """Steps of rings that carry tiles of these tokens, one for each rank."""

    def __init__(self, parts: LayerWork, tile_tokens: Sequence[int], wire: Wire):
        self._parts, self._tiles, self._wire = parts, tile_tokens, wire
        self._ranks = range(len(tile_tokens))

    def all_gather(self, phase: str, on_tile: OnTile = _nothing) -> list[Step]:
        """Bring every tile to every rank, which works on its own first and on each other one when it is there."""
        steps = [*self.begin_gather(phase), self._compute(0, on_tile)]
        for hop in self._ranks[1:]:
            steps += self.gather_hop(phase, hop, on_tile)
        return steps

    def begin_gather(self, phase: str) -> list[Step]:
        """Send own tiles on their way."""
        return [self._compute(0, self._encode), self._send(0, phase)]

    def gather_hop(self, phase: str, hop: int, on_tile: OnTile) -> list[Step]:
        """Take the next tile, send it on unless it has been everywhere, and work on it."""
        taken = self._compute(hop, lambda rank, owner: self._decode(rank, owner) + on_tile(rank, owner))
        on = [self._send(hop, phase)] if hop < len(self._ranks) - 1 else []
        return [Wait(phase), *on, taken]

    def reduce_scatter(self, phase: str, part_of: Callable[[int], list[Step]]) -> list[Step]:
        """Add up all parts of each tile; `part_of(hop)` makes those of the tiles r - hop, the own ones last."""
        count = len(self._ranks)
        steps = part_of(1 % count)
        for hop in self._ranks[1:]:
            owned = (hop + 1) % count
            steps += [self._compute(hop, self._encode), self._send(hop, phase), *part_of(owned), Wait(phase)]
            steps += [self._compute(owned, self._decode)]
        return steps

    def part(self, on_tile: OnTile) -> Callable[[int], list[Step]]:
        """Return for `reduce_scatter` parts that are made from what is at hand."""
        return lambda hop: [self._compute(hop, on_tile)]

    def all_reduce(self, phase: str) -> list[Step]:
        """Add up parts that are there already, and bring the sums to every rank."""
        if len(self._ranks) == 1:
            return []
        return self.reduce_scatter(f"{phase} sum", self.part(_nothing)) + self.all_gather(phase)

    def _compute(self, hop: int, on_tile: OnTile) -> Compute:
        count = len(self._ranks)
        return Compute(tuple(on_tile(rank, (rank - hop) % count) for rank in self._ranks))

    def _send(self, hop: int, phase: str) -> Send:
        """Send the tile r - hop from every rank to its successor."""
        count, messages = len(self._ranks), []
        for rank in self._ranks if count > 1 else ():
            if tokens := self._tiles[(rank - hop) % count]:
                size = encoded_size(self._wire, tokens, self._parts.shape.width)
                messages.append(PlannedMessage(rank, (rank + 1) % count, size))
        return Send(tuple(messages), phase)

    def _encode(self, rank: int, owner: int) -> Work:
        return self._parts.encode(self._wire, self._tiles[owner] if len(self._ranks) > 1 else 0)

    def _decode(self, rank: int, owner: int) -> Work:
        """Unpack a tile, and add it up or put it in its place."""
        tokens = self._tiles[owner]
        return self._parts.decode(self._wire, tokens) + self._parts.norm(tokens)
