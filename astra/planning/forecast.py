"""What a schedule would take on given devices and links, and what of that is whose. Pure.

    Schedule + Devices + Links ──simulate──► latency

    compute      the latency if links took no time and turning rows into bytes cost nothing
    encode       what turning rows into bytes and back adds to that
    network      what the rates of the links add, and the bytes' own CPU time
    round trips  what is left: delays, messages' own CPU time, TCP's start, timeouts

Parts are differences of whole simulations, so they add up, and what hides behind something else costs nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from astra.overhead import forward_bytes
from astra.planning.links import Links
from astra.planning.schedule import Broadcast, Repeat, Schedule, Send, Step
from astra.planning.simulate import clocks_after
from astra.planning.speed import Device
from astra.planning.work import ENCODE_KINDS

__all__ = ["BYTES_OF_FP32", "Forecast", "forecast"]

BYTES_OF_FP32 = 4


@dataclass(frozen=True)
class Forecast:
    """One strategy's request."""

    latency_s: float
    compute_s: float
    encode_s: float
    network_s: float
    round_trips_s: float
    busiest_link_bytes: int
    """Bytes that cross the link which carries most, in frames."""
    memory_bytes: int
    """Of the device that needs most: its part of the weights, codebooks and tables in fp32, without activations."""


def forecast(schedule: Schedule, devices: Sequence[Device], links: Links, *, curve: bool = False) -> Forecast:
    """Predict one request's latency at rank 0, without queues before it."""
    whole = _latency_s(schedule.steps, devices, links, curve)
    no_words = frozenset(("messages",))
    flowing = _latency_s(schedule.steps, _without(devices, no_words), links.straight(), curve)
    instant = links.instant()
    encoded = _latency_s(schedule.steps, _without(devices, no_words | {"bytes"}), instant, curve)
    computed = _latency_s(schedule.steps, _without(devices, no_words | {"bytes"} | ENCODE_KINDS), instant, curve)
    return Forecast(
        latency_s=whole,
        compute_s=computed,
        encode_s=encoded - computed,
        network_s=flowing - encoded,
        round_trips_s=whole - flowing,
        busiest_link_bytes=busiest_link_bytes(schedule.steps, curve=curve),
        memory_bytes=round(BYTES_OF_FP32 * max(schedule.values_held)),
    )


def busiest_link_bytes(steps: Sequence[Step], *, curve: bool = False) -> int:
    """Return the bytes of the directed link that carries most."""
    single: Counter[tuple[int, int]] = Counter()
    broadcast: Counter[int] = Counter()
    _add_up(steps, 1, single, broadcast, curve)
    pairs = [number + broadcast[source] for (source, _), number in single.items()]
    return max([*pairs, *broadcast.values()], default=0)


def _add_up(
    steps: Sequence[Step], times: int, single: Counter[tuple[int, int]], broadcast: Counter[int], curve: bool
) -> None:
    for step in steps:
        if isinstance(step, Repeat):
            _add_up(step.steps, times * step.times, single, broadcast, curve)
        elif isinstance(step, Send):
            for message in step.messages:
                num_bytes = times * message.count * forward_bytes(message, curve=curve)
                single[message.source, message.destination] += num_bytes
        elif isinstance(step, Broadcast) and len(step.payload_bytes) > 1:
            last = len(step.payload_bytes) - 1
            for source, num_bytes in enumerate(step.link_bytes(curve=curve)):
                broadcast[source] += 0 if step.causal and source == last else times * num_bytes


def _latency_s(steps: Sequence[Step], devices: Sequence[Device], links: Links, curve: bool) -> float:
    return float(clocks_after(steps, devices, links, curve=curve)[0])


def _without(devices: Sequence[Device], kinds: frozenset[str]) -> list[Device]:
    """Return devices for which these kinds of work cost nothing; those of one speed share it."""
    speeds = {id(device.speed): device.speed.without(kinds) for device in devices}
    return [replace(device, speed=speeds[id(device.speed)]) for device in devices]
