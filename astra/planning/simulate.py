"""The clocks of all ranks through a schedule. Pure.

    legend: N ranks. clock[N] when each rank is where it is; savings[N] CPU seconds it is ahead of its quota;
            free[N or N, N] when each link is free again; inbox[N] when the last message to a rank will be there,
            of each phase

A rank computes, hands messages to its links and waits; a link carries one message after the other, and begins with the
first bytes, while the rank still spends CPU time on the last. Where links are
alike, all links of a sender carry the same at the same time, so one number stands for them: 1,000 ranks take
milliseconds.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from astra.overhead import forward_bytes
from astra.planning.links import TIMEOUT_S, Links, lost_end, start_s
from astra.planning.schedule import Broadcast, Compute, Repeat, Send, Step
from astra.planning.speed import Device
from astra.traffic import PlannedMessage, bytes_of

__all__ = ["clocks_after"]

SAME_S = 1e-12
"""Differences between rounds that are the rounding of numbers."""

Vector = NDArray[np.float64]


def clocks_after(steps: Sequence[Step], devices: Sequence[Device], links: Links, *, curve: bool = False) -> Vector:
    """Return when each rank is through the steps, in seconds; all begin at 0."""
    world = _World(devices, links, curve)
    world.go_through(steps)
    return world.clock


@dataclass(frozen=True)
class _Fan:
    """What a `Broadcast` is to each sender."""

    fan_out: Vector
    """Destinations."""
    messages: int
    """To each of them."""
    payload_bytes: Vector
    """To each of them."""
    busy_s: Vector
    """Time on a link, by source, or by source and destination."""
    way_s: Vector
    """From the end of that to the arrival."""
    in_time: float
    """Chance that none of the messages waits for a timeout."""


@dataclass(frozen=True)
class _Flows:
    """What a `Send` is, one entry for each link that it uses, and for each rank what it hands over."""

    source: NDArray[np.int64]
    destination: NDArray[np.int64]
    messages: Vector
    num_bytes: Vector
    busy_s: Vector
    """Time on the link."""
    way_s: Vector
    """From the end of that to the arrival."""
    sent_messages: Vector
    sent_bytes: Vector
    in_time: float
    """Chance that none of the messages waits for a timeout."""

    @classmethod
    def of(cls, step: Send, links: Links, world_size: int, curve: bool) -> "_Flows":
        by_link: dict[tuple[int, int], list[PlannedMessage]] = defaultdict(list)
        for message in step.messages:
            by_link[message.source, message.destination].append(message)
        fan_out = Counter(source for source, _ in by_link)
        rows = []
        for (source, destination), sent in by_link.items():
            speed = links.between(source, destination)
            rate_bps = min(speed.rate_bps, links.uplink_bps / fan_out[source])
            frame_bytes = sum(message.count * forward_bytes(message, curve=curve) for message in sent)
            link_bytes = frame_bytes / (1 - speed.loss)
            paused_s = 0.0 if sent[0].is_datagram else float(start_s(link_bytes, rate_bps, speed.delay_s))
            count, num_bytes = sum(message.count for message in sent), float(bytes_of(sent))
            rows.append((count, num_bytes, link_bytes * 8 / rate_bps, speed.delay_s + paused_s))
        messages, num_bytes_each, busy_s, way_s = np.array(rows, float).T
        source, destination = np.array(list(by_link), np.int64).T
        handed_over = [np.asarray(np.bincount(source, v, world_size), np.float64) for v in (messages, num_bytes_each)]
        sent_messages, sent_bytes = handed_over
        in_time = links.chance_in_time(step.messages)
        return cls(source, destination, messages, num_bytes_each, busy_s, way_s, sent_messages, sent_bytes, in_time)


@dataclass
class _Inbox:
    """What is on its way to each rank."""

    complete_s: Vector
    messages: Vector
    num_bytes: Vector
    in_time: float = 1.0
    """Chance that none of it waits for a timeout; where one does, all ranks soon wait for it."""

    @classmethod
    def empty(cls, count: int) -> "_Inbox":
        return cls(np.full(count, -np.inf), np.zeros(count), np.zeros(count))

    def expected_wait_s(self, clock: Vector) -> Vector:
        """Return how long each rank waits: a timeout hides behind work, as far as there is some."""
        early_s = self.complete_s - clock
        return self.in_time * np.maximum(early_s, 0) + (1 - self.in_time) * np.maximum(early_s + TIMEOUT_S, 0)


class _World:
    """All ranks and links at one moment."""

    def __init__(self, devices: Sequence[Device], links: Links, curve: bool):
        count = len(devices)
        self.clock = np.zeros(count)
        self._devices, self._links, self._curve = devices, links, curve
        self._share = np.array([device.share for device in devices])
        self._peak = np.array([device.peak for device in devices])
        self._most = np.array([device.savings for device in devices])
        self._savings = self._most.copy()
        self._message_s = np.array([device.speed.seconds_per["messages"] for device in devices])
        self._byte_s = np.array([device.speed.seconds_per["bytes"] for device in devices])
        self._rate, self._delay, self._loss = (links.matrix(name, count) for name in ("rate_bps", "delay_s", "loss"))
        self._free = np.zeros((count, count) if not links.is_uniform else count)
        self._inboxes: dict[str, _Inbox] = defaultdict(lambda: _Inbox.empty(count))
        self._seconds: dict[int, Vector] = {}
        self._flows: dict[int, _Flows] = {}
        self._fans: dict[int, _Fan] = {}
        self._kept: list[object] = []

    def go_through(self, steps: Sequence[Step]) -> None:
        """Take all ranks through the steps."""
        for step in steps:
            if isinstance(step, Repeat):
                self._repeat(step)
            elif isinstance(step, Compute):
                self._compute(self._seconds_of(step))
            elif isinstance(step, Send):
                self._send(step)
            elif isinstance(step, Broadcast):
                self._broadcast(step)
            else:
                self._wait(self._inboxes.pop(step.phase, None))

    def _repeat(self, step: Repeat) -> None:
        """Go through steps again and again; once all clocks go on alike, the rest of the rounds does too."""
        before = self._state()
        for done in range(1, step.times + 1):
            self.go_through(step.steps)
            after = self._state()
            change = after[0] - before[0]
            same = np.abs(np.concatenate([np.ravel(a - b) for a, b in zip(after[1:], before[1:], strict=True)]))
            if not self._inboxes and np.ptp(change) < SAME_S and same.max() < SAME_S:
                rest_s = float(change[0]) * (step.times - done)
                self.clock, self._free = self.clock + rest_s, self._free + rest_s
                return
            before = after

    def _state(self) -> tuple[Vector, Vector, Vector]:
        """Return the clocks, how much longer each link is taken after its sender's clock, and the savings."""
        clock = self.clock if self._links.is_uniform else self.clock[:, None]
        return self.clock, np.maximum(self._free - clock, 0.0), self._savings

    def _seconds_of(self, step: Compute) -> Vector:
        """Return the CPU time of each rank for a step, worked out once for each."""
        if id(step) not in self._seconds:
            known: dict[tuple[int, int], float] = {}
            for device, work in zip(self._devices, step.work, strict=True):
                key = id(device.speed), id(work)
                if key not in known:
                    known[key] = device.speed.seconds(work)
            self._seconds[id(step)] = np.array(
                [known[id(device.speed), id(work)] for device, work in zip(self._devices, step.work, strict=True)]
            )
            self._kept.append(step)  # so that no other step gets its id
        return self._seconds[id(step)]

    def _compute(self, cpu_s: Vector) -> None:
        """Spend CPU time: at full speed as long as there is quota, and then at the device's share."""
        wall_s = np.maximum(cpu_s / self._peak, (cpu_s - self._savings) / self._share)
        self.clock = self.clock + wall_s
        self._savings = np.clip(self._savings + self._share * wall_s - cpu_s, 0.0, self._most)

    def _wait(self, inbox: "_Inbox | None") -> None:
        """Wait for what has been sent to each rank, and take it in."""
        if inbox is None:
            return
        idle_s = inbox.expected_wait_s(self.clock)
        self.clock = self.clock + idle_s
        self._savings = np.minimum(self._savings + self._share * idle_s, self._most)
        self._handle(inbox.messages, inbox.num_bytes)

    def _handle(self, messages: Vector, num_bytes: Vector) -> None:
        """Spend the CPU time that messages take at one end."""
        if messages.any():
            self._compute(messages * self._message_s + num_bytes * self._byte_s)

    def _send(self, step: Send) -> None:
        """Put single messages on their links."""
        if not step.messages:
            return
        flows = self._flows_of(step)
        begin_s = self.clock
        self._handle(flows.sent_messages, flows.sent_bytes)
        link = flows.source if self._links.is_uniform else (flows.source, flows.destination)
        ends = np.maximum(begin_s[flows.source], self._free[link]) + flows.busy_s
        ends = np.maximum(ends, self.clock[flows.source])
        np.maximum.at(self._free, link, ends)
        inbox = self._inboxes[step.phase]
        np.maximum.at(inbox.complete_s, flows.destination, ends + flows.way_s)
        np.add.at(inbox.messages, flows.destination, flows.messages)
        np.add.at(inbox.num_bytes, flows.destination, flows.num_bytes)
        inbox.in_time *= flows.in_time

    def _flows_of(self, step: Send) -> "_Flows":
        """Return what a step sends on which link, worked out once."""
        if id(step) not in self._flows:
            self._flows[id(step)] = _Flows.of(step, self._links, len(self._devices), self._curve)
            self._kept.append(step)
        return self._flows[id(step)]

    def _broadcast(self, step: Broadcast) -> None:
        """Put every rank's rows on its links to whoever looks at them."""
        if len(self._devices) == 1:
            return
        fan = self._fan_of(step)
        shown = (fan.payload_bytes > 0).astype(float)
        begin_s = self.clock
        self._handle(fan.fan_out * fan.messages, fan.fan_out * fan.payload_bytes)
        begin_s, clock = (each if self._links.is_uniform else each[:, None] for each in (begin_s, self.clock))
        self._free = np.maximum(np.maximum(begin_s, self._free) + fan.busy_s, clock)
        latest_s = _latest(self._free + fan.way_s, shown > 0, causal=step.causal)
        inbox = self._inboxes[""]
        inbox.complete_s = np.maximum(inbox.complete_s, latest_s)
        inbox.messages += fan.messages * _of_others(shown, causal=step.causal)
        inbox.num_bytes += _of_others(fan.payload_bytes, causal=step.causal)
        inbox.in_time *= fan.in_time

    def _fan_of(self, step: Broadcast) -> _Fan:
        """Return what a step is to each sender, worked out once."""
        if id(step) not in self._fans:
            self._fans[id(step)] = self._fan_out(step)
            self._kept.append(step)
        return self._fans[id(step)]

    def _fan_out(self, step: Broadcast) -> _Fan:
        count, is_datagram = len(self._devices), step.datagram_bytes is not None
        payload_bytes = np.array(step.payload_bytes, float)
        behind = count - 1 - np.arange(count) if step.causal else np.full(count, count - 1)
        fan_out = (behind * (payload_bytes > 0)).astype(float)
        uplink_bps = self._links.uplink_bps / np.maximum(fan_out, 1)
        size = np.array(step.link_bytes(curve=self._curve), float) * (fan_out > 0)
        if not self._links.is_uniform:
            size, uplink_bps = size[:, None], uplink_bps[:, None]
        size, rate_bps = size / (1 - self._loss), np.minimum(self._rate, uplink_bps)
        messages = max(map(len, step.datagram_bytes)) if step.datagram_bytes else 1
        paused_s, in_time = np.zeros(()), 1.0
        if not is_datagram:
            paused_s, in_time = start_s(size, rate_bps, self._delay), self._in_time(step, fan_out)
        return _Fan(fan_out, messages, payload_bytes, size * 8 / rate_bps, self._delay + paused_s, in_time)

    def _in_time(self, step: Broadcast, fan_out: Vector) -> float:
        """Return the chance that none of the messages waits for a timeout."""
        loss, spared = float(np.mean(self._loss)), 1.0
        for (size, peers), ranks in Counter(zip(step.payload_bytes, fan_out.tolist(), strict=True)).items():
            spared *= (1 - lost_end(size, loss)) ** (peers * ranks)
        return spared


def _of_others(values: Vector, *, causal: bool) -> Vector:
    """Add up for each rank what the ranks have that it looks at."""
    return (np.cumsum(values) if causal else values.sum()) - values


def _latest(arrivals: Vector, has_any: NDArray[np.bool_], *, causal: bool) -> Vector:
    """Return when the last of the others' rows arrives at each rank; minus infinity where there are none."""
    if arrivals.ndim == 2:
        allowed = np.triu(np.ones(arrivals.shape, bool), 1) if causal else ~np.eye(len(arrivals), dtype=bool)
        allowed = allowed & has_any[:, None]
        return np.asarray(np.where(allowed, arrivals, -np.inf).max(axis=0))
    sent = np.where(has_any, arrivals, -np.inf)
    if causal:
        return np.concatenate(([-np.inf], np.maximum.accumulate(sent)[:-1]))
    order = np.sort(sent)
    is_last = np.arange(len(sent)) == int(np.argmax(sent))
    return np.asarray(np.where(is_last, order[-2], order[-1]))
