"""What the ranks of a benchmark find out about devices and links before they begin, and what follows from it.

    every rank: probe own layer ──speed──► rank 0 ──advise──► predictions; and for `auto` a choice ──► every rank
                                                  ──bits──► of the codes of each layer ──► every rank
    pairs of ranks: measure links ──rates──► rank 0

Happens once for a set of connections, in about a second. When members change later, rank 0 decides by what it knows of
those that are left: whoever waits for an answer should not wait for a measurement.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from astra.advice import Prospect, Row, advise, best, rows
from astra.bit_choice import Situation, choose_bits
from astra.collectives import Collectives
from astra.config import AstraConfig, BenchConfig
from astra.errors import AstraError, ConfigError
from astra.fit import needs_of
from astra.link_probe import Prices, measure_links
from astra.models import ModelAdapter
from astra.planning.links import Links, LinkSpeed
from astra.planning.speed import Device, Speed
from astra.planning.work import Kind
from astra.probe import measure_speed
from astra.strategy_config import AnyStrategy, Listed
from astra.transport import Tag

__all__ = ["NOTHING_PREDICTED", "Predicted", "Survey"]

_TELL, _CHOOSE, _CHOOSE_BITS = Tag(0, 0, "speed"), Tag(0, 0, "choice"), Tag(0, 0, "bits")


@dataclass(frozen=True)
class Predicted:
    """What rank 0 expects of each job, if it has been asked to; nothing everywhere else."""

    prospects: Sequence[Prospect] = ()
    extremes: Mapping[str, float] = field(default_factory=dict)
    """What was measured of the slowest device and of the slowest links."""

    def latency_s(self, job: int) -> float | None:
        """Return what is expected of the job with this number."""
        found = self.prospects[job].forecast if self.prospects else None
        return None if found is None else found.latency_s

    def rows(self, listed: Sequence[Listed]) -> list[Row]:
        """Return a table row for each job, under the names by which they are listed."""
        return [
            {**row, "strategy": each.name, "settings": each.settings, **self.extremes}
            for row, each in zip(rows(self.prospects), listed, strict=False)  # on most ranks there are no prospects
        ]


NOTHING_PREDICTED = Predicted()


class Survey:
    """One rank's part, and on rank 0 what all have found."""

    def __init__(self, cpus: float | None, *, curve: bool = False):
        """Take this device's share of a CPU, and whether what ranks send is encrypted."""
        self._cpus, self._curve = cpus, curve
        self._own: Speed | None = None
        self._devices: dict[int, Device] = {}
        self._links: dict[tuple[int, int], LinkSpeed] = {}

    def take(self, model: ModelAdapter, collectives: Collectives, members: Sequence[int]) -> None:
        """Measure with all members: every device once, and the links between them anew.

        Raises:
            AstraError: A peer did not answer.
        """
        self._own = self._own or measure_speed(model.shape, model.blocks)
        measured, prices = measure_links(collectives)
        own = Device(self._own if prices is None else _priced(self._own, prices), self._cpus)
        packed = collectives.gather(_TELL, _pack(own))
        if packed is None:
            return
        self._devices = {members[0]: own} | {members[peer]: _unpack(part) for peer, part in packed.items()}
        self._links = {(members[a], members[b]): speed for a, b, speed in measured}

    def predict(
        self,
        config: BenchConfig,
        strategies: Sequence[AnyStrategy],
        model: ModelAdapter,
        weights: Sequence[float],
        members: Sequence[int],
    ) -> Predicted:
        """Predict strategies among these members, on rank 0 alone; nothing where nothing has been measured."""
        if not self._devices:
            return NOTHING_PREDICTED
        devices, links = self._among(members)
        prospects = advise(
            strategies,
            config.model,
            model.shape,
            config.input,
            weights=weights,
            devices=devices,
            links=links,
            curve=self._curve,
        )
        return Predicted(prospects, self._extremes())

    def _among(self, members: Sequence[int]) -> tuple[list[Device], Links]:
        """Return what is known of these members and of the links between them."""
        known = list(self._devices.values())
        devices = [self._devices.get(member, known[-1]) for member in members]
        ranks = range(len(members))
        default = next(iter(self._links.values()), LinkSpeed())
        pairs = [(a, b, self._links.get((members[a], members[b]), default)) for a in ranks for b in ranks if a != b]
        return devices, Links.of(pairs)

    def _extremes(self) -> dict[str, float]:
        speeds = [device.speed for device in self._devices.values()]
        found = {"slowest_core_gflops": min(speed.gflops for speed in speeds)}
        if self._links:
            found["dearest_byte_ns"] = max(1e9 * speed.seconds_per["bytes"] for speed in speeds)
            found["dearest_message_us"] = max(1e6 * speed.seconds_per["messages"] for speed in speeds)
            found["slowest_link_mbps"] = min(speed.rate_bps for speed in self._links.values()) / 1e6
            found["longest_round_trip_ms"] = max(2e3 * speed.delay_s for speed in self._links.values())
        return found

    def choose(self, collectives: Collectives, predicted: Predicted) -> int:
        """Return the number of the fastest on every rank; only what rank 0 has predicted counts.

        Raises:
            AstraError: None of them is possible.
        """
        number = best(predicted.prospects)
        obstacles = "; ".join(dict.fromkeys(each.obstacle for each in predicted.prospects if each.obstacle))
        own = obstacles if number is None else number
        told = json.loads(bytes(collectives.broadcast(_CHOOSE, json.dumps(own).encode())))
        if isinstance(told, str):
            raise AstraError(f"auto: no strategy of `among` can be used here: {told}")
        return int(told)

    def choose_bits(
        self,
        config: BenchConfig,
        model: ModelAdapter,
        weights: Sequence[float],
        members: Sequence[int],
        collectives: Collectives,
    ) -> dict[int, tuple[int, ...]]:
        """Return on every rank the bits of each layer's codes where they are open, by the entry's number.

        Rank 0 chooses by what has been measured. An entry that cannot run here has none; laying it out says why.
        """
        chosen: dict[int, tuple[int, ...]] = {}
        for number, entry in enumerate(config.strategies) if self._devices else ():
            if isinstance(entry, AstraConfig) and entry.chooses_bits:
                (need,) = needs_of([entry], config.model, config.input)
                with suppress(ConfigError, ValueError):
                    situation = Situation(model.shape, weights, *self._among(members), self._curve)
                    chosen[number] = choose_bits(entry, situation, need.losses())
        told = json.loads(bytes(collectives.broadcast(_CHOOSE_BITS, json.dumps(list(chosen.items())).encode())))
        return {number: tuple(bits) for number, bits in told}


def _priced(speed: Speed, prices: Prices) -> Speed:
    """Return the speed of a device whose messages cost this much."""
    measured: dict[Kind, float] = {"messages": prices.message_s, "bytes": prices.byte_s}
    return speed.model_copy(update={"seconds_per": speed.seconds_per | measured})


def _pack(device: Device) -> bytes:
    return device.speed.model_copy(update={"cpus": device.cpus}).model_dump_json().encode()


def _unpack(packed: bytes | memoryview) -> Device:
    speed = Speed.model_validate_json(bytes(packed))
    return Device(speed, speed.cpus)
