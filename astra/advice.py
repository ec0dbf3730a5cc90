"""What each strategy of a benchmark would take on given devices and links, and which one to take. Pure.

    config + shape + devices + links ──advise──► a Prospect for each strategy ──best──► the fastest that is possible

A request is predicted from rank 0's word to begin, with the input on its way where only the terminal has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from astra.config import InputConfig, ModelConfig
from astra.measure import label
from astra.models import ModelShape
from astra.partition import band
from astra.placement import PixelCodec, TokenCodec
from astra.planning.forecast import Forecast, forecast
from astra.planning.links import Links
from astra.planning.schedule import Schedule, Send, Step, Wait
from astra.planning.speed import Device
from astra.strategies import STRATEGIES, predict_schedule
from astra.strategy_config import AnyStrategy
from astra.traffic import PlannedMessage

__all__ = ["Prospect", "Row", "advise", "best", "rows", "sentence"]

Row = dict[str, str | int | float | bool | None]

PNG_SHARE = 0.6
"""Of raw pixels, that a photograph takes as PNG; only the picture knows."""


@dataclass(frozen=True)
class Prospect:
    """What is to be expected of one strategy."""

    strategy: AnyStrategy
    forecast: Forecast | None
    """None where it cannot split the model over these devices."""
    obstacle: str = ""
    """Why it cannot."""


def advise(
    strategies: Sequence[AnyStrategy],
    model: ModelConfig,
    shape: ModelShape,
    given: InputConfig,
    *,
    weights: Sequence[float],
    devices: Sequence[Device],
    links: Links,
    curve: bool = False,
) -> list[Prospect]:
    """Predict each strategy; `weights` and `devices` are those of all ranks."""
    prospects = []
    for strategy in strategies:
        try:
            schedule = predict_schedule(shape, strategy, len(weights), weights)
        except ValueError as error:
            prospects.append(Prospect(strategy, None, str(error)))
            continue
        begun = (*_begin(strategy, model, shape, given, weights), *schedule.steps)
        found = forecast(Schedule(begun, schedule.values_held), devices, links, curve=curve)
        prospects.append(Prospect(strategy, found))
    return prospects


def best(prospects: Sequence[Prospect]) -> int | None:
    """Return the number of the fastest, the first among equals; None if nothing is possible."""
    possible = [(each.forecast.latency_s, number) for number, each in enumerate(prospects) if each.forecast is not None]
    return min(possible, default=(0.0, None))[1]


def rows(prospects: Sequence[Prospect]) -> list[Row]:
    """Return a table row for each, the speed-up over `single` beside it where that is among them."""
    singles = [each.forecast.latency_s for each in prospects if each.strategy.name == "single" and each.forecast]
    chosen = best(prospects)
    return [
        _row(prospect, singles[0] if singles else None, number == chosen) for number, prospect in enumerate(prospects)
    ]


def _row(prospect: Prospect, single_s: float | None, is_best: bool) -> Row:
    found = prospect.forecast
    row: Row = {"strategy": prospect.strategy.name, "settings": prospect.strategy.settings}
    if found is None:
        return {**row, "latency_predicted_s": None, "obstacle": prospect.obstacle, "fastest": False}
    return {
        **row,
        "latency_predicted_s": found.latency_s,
        "speedup_predicted": None if single_s is None else single_s / found.latency_s,
        "compute_s": found.compute_s,
        "encode_s": found.encode_s,
        "network_s": found.network_s,
        "round_trips_s": found.round_trips_s,
        "busiest_link_bytes": found.busiest_link_bytes,
        "memory_mb": found.memory_bytes / 1e6,
        "obstacle": None,
        "fastest": is_best,
    }


def _begin(
    strategy: AnyStrategy, model: ModelConfig, shape: ModelShape, given: InputConfig, weights: Sequence[float]
) -> tuple[Step, ...]:
    """Return what precedes the strategy's own steps: the word to begin, and the input to whoever needs it."""
    peers = range(1, len(weights))
    words = [PlannedMessage(0, peer, 0) for peer in peers]
    if given.placement == "terminal":
        ranges = STRATEGIES[strategy.name].partition(shape, strategy, weights)
        sizes = [_input_bytes(model, shape, given, tokens) for tokens in ranges]
        words += [PlannedMessage(0, peer, sizes[peer]) for peer in peers if sizes[peer]]
    return (Send(tuple(words), "begin"), Wait("begin")) if words else ()


def _input_bytes(model: ModelConfig, shape: ModelShape, given: InputConfig, tokens: range) -> int:
    """Return the bytes of the input that a rank with these tokens is sent."""
    if shape.vocabulary:
        return TokenCodec(shape.vocabulary).size(len(tokens))
    patch = model.preset.patch_size
    raw = PixelCodec(model.side).size(len(band(tokens, model.side // patch)) * patch)
    assert raw is not None, "raw pixels have a size"
    return round(raw * PNG_SHARE) if given.encoding == "png" else raw


def sentence(prospects: Sequence[Prospect]) -> str:
    """Say which strategy is the fastest, and by how much the next one is slower."""
    number = best(prospects)
    if number is None:
        return "no strategy can split this model over these devices"
    chosen = prospects[number]
    assert chosen.forecast is not None, "the best one is possible"
    others = sorted(
        (each.forecast.latency_s, label(each.strategy))
        for place, each in enumerate(prospects)
        if each.forecast is not None and place != number
    )
    text = f"fastest: {label(chosen.strategy)}, {chosen.forecast.latency_s:.3g} s a request"
    return f"{text}; next: {others[0][1]}, {others[0][0]:.3g} s" if others else text
