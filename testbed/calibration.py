"""What to measure on which link, what to expect, and how to judge it. Pure; `probe` does the measuring.

    rules of every device --make_plan--> Plan (JSON in TESTBED_CONFIG) --slots--> links measured at the same time
    measured value --judge--> row of the table `calibration`: asked, measured, error, tolerance, ok

Two plans: `speed` runs on links without loss, since TCP's repair of a loss would hide the rate; `loss` on the rules as
they are. All times count frames of 14 + 20 + 32 header bytes (Ethernet, IPv4, TCP with timestamps).
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from testbed.links import DeviceRules
from testbed.loss import Loss, drop_pattern

__all__ = [
    "FRAME_BYTES",
    "HEADER_BYTES",
    "LinkPlan",
    "Plan",
    "Row",
    "bulk_bytes",
    "describe",
    "expected_message_s",
    "judge",
    "judge_loss",
    "judge_message",
    "judge_rate",
    "judge_round_trip",
    "make_plan",
    "message_sizes",
    "predicted_losses",
    "slots",
    "window_bytes",
]

Row = dict[str, str | float | bool | None]

HEADER_BYTES = 14 + 20 + 32
FRAME_BYTES = 1514
SEGMENT_BYTES = FRAME_BYTES - HEADER_BYTES
INITIAL_WINDOW = 10
"""Segments that TCP sends before the first acknowledgement."""
PARALLEL_LIMIT_BPS = 150e6
"""Links of a slot are measured one after another above this sum: two cores do not carry more without delaying it."""
RATE_TOLERANCE = 0.01
MESSAGE_TOLERANCE = 0.05
LATENESS_S = 1e-3
"""Time that a busy machine takes to wake sender and receiver."""
ROUNDING = 1e-9
"""Of shares computed in two ways."""
MIN_BULK_FRAMES = 40
UNSHAPED_BULK_BYTES = 20_000_000
MIN_WINDOW_FRAMES = 8


class LinkPlan(BaseModel):
    """One directed link and what was asked of it, in SI units; `rate_bps` includes the sender's uplink cap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    destination: str
    rate_bps: float | None
    delay_s: float
    return_delay_s: float
    jitter_s: float
    """Of both directions together."""
    queue_s: float
    loss: Loss
    seed: int

    @property
    def frame_s(self) -> float:
        """Time of one full frame on the link."""
        return 0.0 if self.rate_bps is None else FRAME_BYTES * 8 / self.rate_bps


class Plan(BaseModel):
    """All that the probe does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: Literal["speed", "loss"]
    addresses: dict[str, str]
    links: tuple[LinkPlan, ...]
    message_bytes: tuple[int, ...]
    repeats: int
    bulk_s: float
    loss_packets: int


def make_plan(rules: Sequence[DeviceRules], *, phase: Literal["speed", "loss"], full: bool) -> Plan:
    """Plan the calibration of all links, from the rules of every device.

    `full` measures messages of 2, 8, 32 and 128 KB and long transfers, otherwise 8 KB and half a second.
    """
    uplinks = {device.device: device.uplink_bps for device in rules}
    by_link = {(rule.source, device.device): rule for device in rules for rule in device.rules}
    links = []
    for (source, destination), rule in by_link.items():
        back = by_link[destination, source]
        caps = [rate for rate in (rule.rate_bps, uplinks[source]) if rate is not None]
        links.append(
            LinkPlan(
                source=source,
                destination=destination,
                rate_bps=min(caps, default=None),
                delay_s=rule.delay_s,
                return_delay_s=back.delay_s,
                jitter_s=rule.jitter_s + back.jitter_s,
                queue_s=rule.queue_s,
                loss=rule.loss,
                seed=rule.seed,
            )
        )
    return Plan(
        phase=phase,
        addresses={device.device: device.address for device in rules},
        links=tuple(links),
        message_bytes=(2048, 8192, 32768, 131072) if full else (8192,),
        repeats=5 if full else 3,
        bulk_s=2.0 if full else 0.5,
        loss_packets=2000 if full else 400,
    )


def slots(plan: Plan) -> list[list[LinkPlan]]:
    """Group links into slots: at most one link into, and one out of, a device, and never both ways of a pair.

    In round k device i sends to device i + k. Links of a round whose rates add up to more than PARALLEL_LIMIT_BPS,
    or have none, get a slot each.
    """
    names = list(plan.addresses)
    rounds: dict[tuple[int, bool], list[LinkPlan]] = {}
    for link in plan.links:
        source, destination = names.index(link.source), names.index(link.destination)
        shift = (destination - source) % len(names)
        mutual = 2 * shift == len(names)
        rounds.setdefault((shift, mutual and source > destination), []).append(link)
    grouped: list[list[LinkPlan]] = []
    for _, links in sorted(rounds.items()):
        total = sum(math.inf if link.rate_bps is None else link.rate_bps for link in links)
        grouped += [links] if total <= PARALLEL_LIMIT_BPS else [[link] for link in links]
    return grouped


def message_sizes(plan: Plan, link: LinkPlan) -> list[int]:
    """Return the message sizes whose time the link determines.

    Over a long delay a message beyond TCP's first window waits for acknowledgements, which is no fault of the link.
    """
    window = INITIAL_WINDOW * SEGMENT_BYTES
    clocked = link.delay_s + link.return_delay_s <= INITIAL_WINDOW * link.frame_s
    return [size for size in plan.message_bytes if clocked or size <= window]


def bulk_bytes(plan: Plan, link: LinkPlan) -> int:
    """Return how much to send for a measurement of the rate."""
    if link.rate_bps is None:
        return UNSHAPED_BULK_BYTES
    return max(int(link.rate_bps / 8 * plan.bulk_s), MIN_BULK_FRAMES * SEGMENT_BYTES)


def window_bytes(link: LinkPlan) -> int | None:
    """Return a TCP window that fills the link but never its queue, so that nothing overflows; None for any."""
    if link.rate_bps is None:
        return None
    under_way_s = link.delay_s + link.return_delay_s + link.queue_s / 2
    return max(int(link.rate_bps / 8 * under_way_s), MIN_WINDOW_FRAMES * FRAME_BYTES)


def expected_message_s(link: LinkPlan, num_bytes: int) -> float | None:
    """Return when the last byte of a message should arrive after an idle time; None on a link without rate."""
    if link.rate_bps is None:
        return None
    frames = -(-num_bytes // SEGMENT_BYTES)
    return (num_bytes + frames * HEADER_BYTES) * 8 / link.rate_bps + link.delay_s


def predicted_losses(link: LinkPlan, first: int, count: int) -> list[int]:
    """Return which of `count` packets that start at position `first` of the link the pattern drops, from 0."""
    pattern = _pattern(link)
    return [number for number in range(count) if pattern[(first + number) % len(pattern)]]


def _pattern(link: LinkPlan) -> NDArray[np.bool_]:
    return drop_pattern(link.loss, seed=link.seed, source=link.source, destination=link.destination)


def _furthest_from_mean(pattern: NDArray[np.bool_], count: int) -> float:
    """Return how far the share lost of `count` packets in a row strays from the pattern's, wherever they begin."""
    whole, rest = divmod(count, len(pattern))
    sums = np.concatenate([[0], np.cumsum(np.concatenate([pattern, pattern]))])
    lost = whole * pattern.sum() + sums[rest : rest + len(pattern)] - sums[: len(pattern)]
    return float(np.abs(lost / count - pattern.mean()).max())


def judge(link: LinkPlan, metric: str, *, asked: float | None, measured: float, tolerance: float | None) -> Row:
    """Make a row; `tolerance` is in the metric's unit. Nothing asked is always ok."""
    error = None if not asked else 100 * (measured - asked) / asked
    ok = asked is None or tolerance is None or abs(measured - asked) <= tolerance
    return {
        "source": link.source,
        "destination": link.destination,
        "metric": metric,
        "asked": asked,
        "measured": measured,
        "error_pct": error,
        "tolerance": tolerance,
        "ok": ok,
    }


def judge_rate(link: LinkPlan, rate_bps: float) -> Row:
    """Judge the rate of a bulk transfer, all header bytes counted."""
    asked = None if link.rate_bps is None else link.rate_bps / 1e6
    tolerance = None if asked is None else RATE_TOLERANCE * asked
    return judge(link, "rate_mbps", asked=asked, measured=rate_bps / 1e6, tolerance=tolerance)


def judge_message(link: LinkPlan, num_bytes: int, taken_s: float) -> Row:
    """Judge the completion time of one message after an idle time."""
    expected_s = expected_message_s(link, num_bytes)
    metric = f"message_{num_bytes // 1024}kb_ms"
    if expected_s is None:
        return judge(link, metric, asked=None, measured=taken_s * 1e3, tolerance=None)
    tolerance_s = max(MESSAGE_TOLERANCE * expected_s, link.frame_s + LATENESS_S) + link.jitter_s
    return judge(link, metric, asked=expected_s * 1e3, measured=taken_s * 1e3, tolerance=tolerance_s * 1e3)


def judge_round_trip(link: LinkPlan, taken_s: float) -> Row:
    """Judge the round trip of one byte on idle links; without delays 0 ms is asked."""
    asked_s = link.delay_s + link.return_delay_s
    tolerance_s = MESSAGE_TOLERANCE * asked_s + LATENESS_S + link.jitter_s
    return judge(link, "round_trip_ms", asked=asked_s * 1e3, measured=taken_s * 1e3, tolerance=tolerance_s * 1e3)


def judge_loss(link: LinkPlan, *, first: int, missing: Sequence[int], dropped: int, seen: int) -> list[Row]:
    """Judge a sequence of `seen` packets that began at position `first`.

    `missing` are the numbers that never came, `dropped` what the kernel counted. One row says how much was lost, one
    how many packets differ from what the pattern foretells; the latter has to be 0.
    The former is held against the whole pattern's mean, and may stray as far as a stretch of the pattern does.
    """
    share = dropped / seen if seen else 0.0
    pattern = _pattern(link)
    tolerance = _furthest_from_mean(pattern, seen) if seen else 0.0
    wrong = len(set(missing) ^ set(predicted_losses(link, first, seen))) + abs(dropped - len(missing))
    asked = float(pattern.mean()) * 100
    return [
        judge(link, "loss_pct", asked=asked, measured=share * 100, tolerance=tolerance * 100 + ROUNDING),
        judge(link, "loss_pattern_wrong", asked=0, measured=wrong, tolerance=0),
    ]


def describe(row: Row) -> str:
    """Say a row in one line."""
    asked, tolerance = row["asked"], row["tolerance"]
    wanted = "nothing" if asked is None else f"{asked:g}"
    within = "" if tolerance is None else f" ± {tolerance:.3g}"
    link = f"link {row['source']} to {row['destination']}"
    return f"{link}: {row['metric']} must be {wanted}{within}, got {row['measured']:.4g}"
