"""How many bits of each layer's codes to send over links of known rates. Pure.

    devices + links ──simulate layers with and without the rates──► what sending adds
        nothing     bits that hide behind what is computed meanwhile: as many in every layer
        a margin    more bits where the codebooks lose most by doing without

All bits where even those fit into the margin; never fewer than a floor, also where that does not. What is compared with
is the same links without rates, so that slow peers, delays and bits that make encoding slower are not taken for links
that are. Datagrams count as if they were waited for.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from astra.models import ModelShape
from astra.planning.links import Links
from astra.planning.schedule import Repeat
from astra.planning.simulate import clocks_after
from astra.planning.speed import Device
from astra.strategies import predict_schedule
from astra.strategy_config import AstraConfig

__all__ = ["LEAST_SHARE", "MARGIN", "Situation", "choose_bits", "raises"]

MARGIN = 0.05
"""What sending may add to the time of a request's layers."""

HIDDEN = 0.001
"""What counts as nothing."""

LEAST_SHARE = 0.6
"""Of a code's bits are always sent: below that, a training for fewer groups answers as well (docs/results/bits.md)."""

Bits = tuple[int, ...]
"""Of a code of each layer."""


@dataclass(frozen=True)
class Situation:
    """Who computes, and what lies between them."""

    shape: ModelShape
    weights: Sequence[float]
    """Each rank's share of the work."""
    devices: Sequence[Device]
    links: Links
    curve: bool = False
    """Whether what is sent is encrypted."""

    def sends_in_time(self, config: AstraConfig, bits: Bits, margin: float) -> bool:
        """Say whether links' rates add at most that share to the time of the layers."""
        schedule = predict_schedule(
            self.shape, config.model_copy(update={"code_bits": bits}), len(self.weights), self.weights
        )
        layers = [step for step in schedule.steps if isinstance(step, Repeat)]
        taken_s, free_s = (
            float(clocks_after(layers, self.devices, links, curve=self.curve).max())
            for links in (self.links, self.links.unlimited())
        )
        return taken_s <= (1 + margin) * free_s


def choose_bits(config: AstraConfig, situation: Situation, losses: Sequence[Sequence[float]]) -> Bits:
    """Return the bits of a code of each layer; `losses` says for each what 0, 1, … bits leave out of its codewords.

    Raises:
        ValueError: The model cannot be split over these ranks.
    """
    num_layers, most = len(losses), len(losses[0]) - 1
    least = math.ceil(LEAST_SHARE * most)

    def misses(bits: Bits, margin: float) -> bool:
        return not situation.sends_in_time(config, bits, margin)

    uniform = [(bits,) * num_layers for bits in range(least, most + 1)]
    hidden = bisect_right(uniform, False, key=lambda bits: misses(bits, HIDDEN))
    steps = raises(uniform[max(hidden - 1, 0)], losses)
    within = bisect_right(steps, False, key=lambda bits: misses(bits, MARGIN))
    return steps[max(within - 1, 0)]


def raises(bits: Bits, losses: Sequence[Sequence[float]]) -> list[Bits]:
    """Return these bits, and what they become as one after the other is added where it saves the largest loss."""
    steps, now = [bits], list(bits)

    def gain(layer: int) -> tuple[float, int]:
        return losses[layer][now[layer] + 1] - losses[layer][now[layer]], layer

    waiting = [gain(layer) for layer in range(len(now)) if now[layer] + 1 < len(losses[layer])]
    heapq.heapify(waiting)
    while waiting:
        _, layer = heapq.heappop(waiting)
        now[layer] += 1
        steps.append(tuple(now))
        if now[layer] + 1 < len(losses[layer]):
            heapq.heappush(waiting, gain(layer))
    return steps
