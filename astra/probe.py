"""How fast this device computes: CPU time of the parts of a model's layer, in about a second.

    layers ──run on few and on more rows──► seconds for an operation, and for reading a weight
    attention, quantiser, wire formats, copies, calls ──each timed──► Speed

Runs the code that strategies run, on a layer of the model in question. CPU time is counted, so a quota does not matter;
what other programs do to the caches does. A thread that waits for its peers spends none.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import get_args

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from astra.attention import attend
from astra.codebook import GroupedCodebook
from astra.models import Block, ModelShape
from astra.models.activation import Gelu
from astra.models.affine import Affine
from astra.models.block import Projections, Rotary, TransformerBlock
from astra.planning.speed import REFERENCE, Speed
from astra.planning.work import FEW_ROWS, Kind, LayerWork, Work, conversion
from astra.wire import Wire, decode, encode

__all__ = ["measure_speed", "sample_block", "small_enough"]

ROUNDS = 3
FEWER = 4
"""How many times as few rows the smaller measurement has."""
NUM_CODEWORDS = 1024
MANY_GROUPS = 16
CALLS = 64
MOST_WEIGHTS = 1 << 25
"""Weights of the largest layer that is made up: 128 MB."""
MOST_TOKENS = 1024
"""Rows of the one measurement of how much more many rows cost."""

Timed = Callable[[], object]


@torch.inference_mode()
def measure_speed(shape: ModelShape, blocks: Sequence[Block], rounds: int = ROUNDS) -> Speed:
    """Time the parts of `blocks`, layers of a model of this shape, in CPU seconds.

    They take turns, so that weights come from memory where those of the model do.
    """
    rows = min(shape.num_tokens, FEW_ROWS)
    fewer = max(1, rows // FEWER)
    seconds: dict[Kind, float] = {"calls": _call_s(rounds)}
    price = partial(_price, seconds, rounds)
    parts = LayerWork(shape)

    def layer(count: int) -> tuple[Timed, Work]:
        x_BTD = _normal(1, count, shape.width)
        work, in_turn = parts.query(count) + parts.key_value(count) + parts.finish(count), cycle(blocks)
        return lambda: _dense_part(next(in_turn), x_BTD), work

    def attention(count: int) -> tuple[Timed, Work]:
        q_BHTd = _normal(1, shape.num_heads, count, shape.head_width)
        k_BHSd = _normal(1, shape.num_kv_heads, shape.num_tokens, shape.head_width)
        return partial(attend, q_BHTd, k_BHSd, k_BHSd), parts.attend(count, shape.num_tokens)

    price(("dense", "weights"), layer(rows), layer(fewer))
    seconds["spilled"] = _spilled_s(seconds, *layer(min(shape.num_tokens, MOST_TOKENS)))
    price(("attention", "keys"), attention(rows), attention(fewer))
    _price_codes(seconds, shape, rows=fewer, rounds=rounds)
    _price_rows(seconds, shape, rows=rows, rounds=rounds)
    python = seconds["calls"] / REFERENCE.seconds_per["calls"]
    seconds["messages"] = REFERENCE.seconds_per["messages"] * python
    seconds["bytes"] = REFERENCE.seconds_per["bytes"] * seconds["gathered"] / REFERENCE.seconds_per["gathered"]
    where = f"{platform.processor() or platform.machine()}, {shape.family} of width {shape.width}"
    return Speed(seconds_per=seconds, measured_on=f"{where}, {torch.get_num_threads()} threads")


def sample_block(shape: ModelShape) -> Block:
    """Make a layer of this shape with random weights, packed as those of a benchmark where there is memory for it."""
    generator = torch.Generator().manual_seed(0)

    def map_of(outputs: int, inputs: int) -> Affine:
        return Affine(torch.randn(outputs, inputs, generator=generator) * inputs**-0.5, torch.zeros(outputs))

    width, heads_width, hidden = shape.width, shape.num_heads * shape.head_width, shape.mlp_width
    is_llama = shape.family == "llama"
    projections = Projections(
        query_map=map_of(heads_width, width),
        key_map=map_of(shape.kv_width, width),
        value_map=map_of(shape.kv_width, width),
        output_map=map_of(width, heads_width),
        up_map=map_of(hidden, width),
        down_map=map_of(width, hidden),
        activation=F.silu if is_llama else Gelu("tanh" if shape.family == "gpt2" else "none"),
        head_width=shape.head_width,
        gate_map=map_of(hidden, width) if is_llama else None,
        rotary=Rotary(torch.linspace(0.01, 1.0, shape.head_width // 2)) if is_llama else None,
    )
    with torch.no_grad():
        return TransformerBlock(projections.packed(), nn.LayerNorm(width), nn.LayerNorm(width))


def small_enough(shape: ModelShape) -> ModelShape:
    """Return the shape, or one of a layer as narrow as can be made up here: an operation costs about the same."""
    while shape.layer_weights > MOST_WEIGHTS:
        halves = {
            name: max(1, getattr(shape, name) // 2) for name in ("width", "num_heads", "num_kv_heads", "mlp_width")
        }
        shape = replace(shape, **halves)
    return replace(shape, num_content_tokens=min(shape.num_content_tokens, MOST_TOKENS))


def _dense_part(block: Block, x_BTD: Tensor) -> Tensor:
    """Do all of a layer but its attention."""
    u_BTD = block.attention_input(x_BTD)
    context_BHTd = block.query(u_BTD)
    block.key_value(u_BTD)
    return block.finish(x_BTD, context_BHTd.transpose(1, 2).flatten(2))


def _price(
    seconds: dict[Kind, float],
    rounds: int,
    kinds: tuple[Kind, Kind],
    large: tuple[Timed, Work],
    small: tuple[Timed, Work],
) -> None:
    """Find the prices of two kinds of work from two measurements, of which calls are paid already.

    A price below zero, which noise can make, counts as nothing: then the larger measurement alone says the other.
    """
    first, second = kinds
    times = [max(_cpu_s(run, rounds) - seconds["calls"] * work.counts["calls"], 1e-9) for run, work in (large, small)]
    counts = [[work.counts[first], work.counts[second]] for _, work in (large, small)]
    determinant = counts[0][0] * counts[1][1] - counts[0][1] * counts[1][0]
    if determinant:
        seconds[first] = (times[0] * counts[1][1] - times[1] * counts[0][1]) / determinant
        seconds[second] = (counts[0][0] * times[1] - counts[1][0] * times[0]) / determinant
    if not determinant or seconds[first] <= 0 or seconds[second] < 0:
        seconds[first], seconds[second] = times[0] / counts[0][0], 0.0


def _spilled_s(seconds: Mapping[Kind, float], run: Timed, work: Work) -> float:
    """Return what an operation on rows beyond the first few costs in addition to its price."""
    if not work.counts["spilled"]:
        return 0.0
    paid_s = sum(count * seconds[kind] for kind, count in work.counts.items() if kind != "spilled")
    return max(_cpu_s(run, rounds=1) - paid_s, 0.0) / work.counts["spilled"]


def _price_codes(seconds: dict[Kind, float], shape: ModelShape, *, rows: int, rounds: int) -> None:
    """Find what an operation and a score of the quantiser cost, with one group and with many."""
    parts, u_RD = LayerWork(shape), _normal(rows, shape.width)
    many = next(groups for groups in range(MANY_GROUPS, 0, -1) if shape.width % groups == 0)

    def quantise(num_groups: int) -> tuple[Timed, Work]:
        codebook = GroupedCodebook(_normal(num_groups, NUM_CODEWORDS, shape.width // num_groups))
        work = parts.quantise(rows, shape.width, num_groups, NUM_CODEWORDS)
        return partial(codebook.encode, u_RD), work

    _price(seconds, rounds, ("codes", "scores"), quantise(many), quantise(1))


def _price_rows(seconds: dict[Kind, float], shape: ModelShape, *, rows: int, rounds: int) -> None:
    """Find what a value of a row costs that is copied, becomes bytes, or comes from them."""
    x_RD = _normal(rows, shape.width)

    def price(kind: Kind, run: Timed, values: float) -> None:
        seconds[kind] = max(_cpu_s(run, rounds) - seconds["calls"], 0.0) / values

    order_R = torch.arange(rows).flip(0)
    price("gathered", lambda: x_RD.index_select(0, order_R), x_RD.numel())
    for wire in get_args(Wire):
        payload = encode(x_RD, wire)
        price(conversion("encode", wire), partial(encode, x_RD, wire), x_RD.numel())
        price(conversion("decode", wire), partial(decode, payload, wire, rows, shape.width), x_RD.numel())


def _normal(*sizes: int) -> Tensor:
    """Draw numbers that are the same each time, and leave the global generator alone."""
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(0))


def _call_s(rounds: int) -> float:
    """Return the CPU time of a call of torch that has nearly nothing to do."""
    x_11, weight_11 = torch.ones(1, 8), torch.ones(8, 8)

    def call_often() -> None:
        for _ in range(CALLS):
            F.linear(x_11, weight_11)

    return _cpu_s(call_often, rounds) / CALLS


def _cpu_s(run: Timed, rounds: int) -> float:
    """Return the median CPU time of one call, after a first one that is not counted."""
    run()
    taken_s = []
    for _ in range(rounds):
        begin_s = _clock()
        run()
        taken_s.append(_clock() - begin_s)
    return statistics.median(taken_s)


def _clock() -> float:
    """Return the CPU time that work has taken so far."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.process_time()
