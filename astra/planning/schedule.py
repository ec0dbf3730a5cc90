"""What all ranks do in which order: compute, send, wait. Pure.

    (Compute(encode), Send(codes), Compute(own keys), Wait(), Compute(attention), …)     one tuple for all ranks

Each rank goes through the steps by itself and waits only where it says so: work between `Send` and `Wait` overlaps with
what is under way. A step may be nothing to a rank. Messages are those of `plan`, which tests hold the schedule to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from astra.exchange import plan_rows
from astra.models import ModelShape
from astra.overhead import forward_bytes
from astra.planning.work import LayerWork, Work, alone
from astra.rows import RowCodec
from astra.slices import answer_rank, plan_answer
from astra.traffic import PlannedMessage
from astra.transport_config import DatagramConfig, ReliableConfig

__all__ = [
    "Broadcast",
    "Compute",
    "Repeat",
    "Schedule",
    "Send",
    "Step",
    "Wait",
    "answered",
    "messages_of",
    "of_messages",
    "per_rank",
    "rows_seen",
    "rows_shown",
    "show_rows",
]


@dataclass(frozen=True)
class Compute:
    """Work of every rank."""

    work: tuple[Work, ...]


@dataclass(frozen=True)
class Send:
    """Messages that leave as soon as their senders are here."""

    messages: tuple[PlannedMessage, ...]
    phase: str = ""
    """Whoever waits for these waits for this phase."""


@dataclass(frozen=True)
class Broadcast:
    """Each rank sends the same to all others, or to later ranks: `Send` in short, for a thousand ranks."""

    payload_bytes: tuple[int, ...]
    """Of each rank's messages."""
    causal: bool = False
    datagram_bytes: tuple[tuple[int, ...], ...] | None = None
    """Sizes of the datagrams that each rank's rows travel as, copies included; None for one message over TCP."""

    def link_bytes(self, *, curve: bool = False) -> list[int]:
        """Return the bytes in frames of each rank's rows to one destination."""
        is_datagram = self.datagram_bytes is not None
        sizes = self.datagram_bytes or [(size,) for size in self.payload_bytes]
        known = {
            each: sum(forward_bytes(PlannedMessage(0, 0, size, 1, is_datagram), curve=curve) for size in each)
            for each in set(sizes)
        }
        return [known[each] for each in sizes]


@dataclass(frozen=True)
class Wait:
    """Each rank waits for all that has been sent to it in this phase."""

    phase: str = ""


@dataclass(frozen=True)
class Repeat:
    """Steps that are gone through several times."""

    times: int
    steps: "tuple[Step, ...]"


Step = Compute | Send | Broadcast | Wait | Repeat


@dataclass(frozen=True)
class Schedule:
    """A strategy's request, from the input in memory to the answer on rank 0."""

    steps: tuple[Step, ...]
    values_held: tuple[float, ...]
    """Numbers (4 bytes each) that each rank needs: its part of the weights, codebooks and tables."""


def per_rank(work_of: Callable[..., Work], *columns: Sequence[float]) -> Compute:
    """Compute `work_of(*row)` for every rank; equal rows are worked out once."""
    known: dict[tuple[float, ...], Work] = {}
    for row in zip(*columns, strict=True):
        if row not in known:
            known[row] = work_of(*row)
    return Compute(tuple(known[row] for row in zip(*columns, strict=True)))


def rows_seen(own_rows: Sequence[int], *, causal: bool) -> list[int]:
    """Return for each rank how many rows of others it looks at."""
    if not causal:
        return [sum(own_rows) - rows for rows in own_rows]
    ends: NDArray[np.int64] = np.cumsum(own_rows)
    return [int(end) - rows for end, rows in zip(ends, own_rows, strict=True)]


def rows_shown(own_rows: Sequence[int], *, causal: bool) -> list[int]:
    """Return how many rows of each rank others look at: all, unless it is alone or the last of a causal model."""
    last = len(own_rows) - 1
    return [rows if last and not (causal and rank == last) else 0 for rank, rows in enumerate(own_rows)]


def show_rows(
    transport: ReliableConfig | DatagramConfig, codec: RowCodec, own_rows: Sequence[int], values: int, *, causal: bool
) -> Broadcast:
    """Send each rank's rows, of so many values, to whoever looks at them: what `exchange.plan_rows` plans."""
    sizes = {rows: _sizes_of(transport, codec, rows, values) for rows in set(own_rows)}
    payloads = tuple(sum(sizes[rows]) for rows in own_rows)
    if isinstance(transport, ReliableConfig):
        return Broadcast(payloads, causal)
    return Broadcast(payloads, causal, tuple(sizes[rows] for rows in own_rows))


def _sizes_of(transport: ReliableConfig | DatagramConfig, codec: RowCodec, rows: int, values: int) -> tuple[int, ...]:
    messages = plan_rows(transport, codec, [rows, rows], values, rounds=1, causal=True)
    return tuple(message.payload_bytes for message in messages for _ in range(message.count))


def answered(shape: ModelShape, world_size: int) -> tuple[Step, ...]:
    """Bring the answer's row to rank 0, and read it there."""
    head = Compute(alone(0, world_size, LayerWork(shape).head()))
    return Send(tuple(plan_answer(shape, answer_rank(shape, world_size)))), Wait(), head


def of_messages(shape: ModelShape, ranges: Sequence[range], messages: Sequence[PlannedMessage]) -> Schedule:
    """Make the schedule of a strategy that states none: every rank runs all layers on its tokens.

    Messages of which there are as many as layers, or a multiple, are sent in each layer and waited for before its
    attention, which is over all tokens; the rest follow the last layer.
    """
    layers, parts, world_size = shape.num_layers, LayerWork(shape), len(ranges)
    rows = [len(tokens) + (shape.num_class_tokens if tokens else 0) for tokens in ranges]
    each = [message for message in messages if message.count % layers == 0]
    one = tuple(replace(message, count=message.count // layers) for message in each)
    seen = [shape.num_tokens if own and each else own for own in rows]
    steps: tuple[Step, ...] = (
        per_rank(parts.embed, rows),
        Repeat(layers, (Send(one), Wait(), per_rank(lambda own, keys: parts.layer(int(own), int(keys)), rows, seen))),
        Send(tuple(message for message in messages if message.count % layers)),
        Wait(),
        Compute(alone(0, world_size, parts.head())),
    )
    return Schedule(steps, (float(parts.all_weights),) * world_size)


def messages_of(steps: Sequence[Step], times: int = 1) -> Iterator[PlannedMessage]:
    """Yield all messages of a schedule, each as often as it is sent."""
    for step in steps:
        if isinstance(step, Repeat):
            yield from messages_of(step.steps, times * step.times)
        elif isinstance(step, Send):
            yield from (replace(message, count=times * message.count) for message in step.messages)
        elif isinstance(step, Broadcast):
            yield from _spelt_out(step, times)


def _spelt_out(step: Broadcast, times: int) -> Iterator[PlannedMessage]:
    ranks = range(len(step.payload_bytes))
    for source in ranks:
        sizes = (step.payload_bytes[source],) if step.datagram_bytes is None else step.datagram_bytes[source]
        for destination in ranks:
            if destination > source or (destination < source and not step.causal):
                for size in sizes:
                    is_datagram = step.datagram_bytes is not None
                    yield PlannedMessage(source, destination, size, times, is_datagram)
