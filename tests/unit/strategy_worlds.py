"""Ranks as threads that answer one request with a strategy, and tiny models whose every weight counts."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra.collectives import Collectives
from astra.config import ModelConfig
from astra.models import ModelAdapter, adapt, build_model
from astra.strategies import STRATEGIES, RankContext, Request, Strategy, predict_bytes, predict_messages
from astra.timeline import Timeline
from astra.traffic import bytes_of, bytes_of_most
from astra.transport import Traffic
from astra.transport.inproc import connect

torch.set_num_threads(1)  # ranks are threads already: more of them per rank double the CPU time of these tests

EXACT = 1e-4  # relative; the same fp32 operations, summed in another order over four layers
TIMEOUT_S = 30.0
IMAGE_SIZE = 80  # 25 tokens: no world size from 2 to 4 divides them
FAMILIES = ("vit", "bert", "gpt2", "llama")
CONFIGS = {"vit": ModelConfig(size="tiny", image_size=IMAGE_SIZE, num_labels=10)} | {
    family: ModelConfig.model_validate({"family": family, "size": "tiny", "num_tokens": 25})
    for family in FAMILIES
    if family != "vit"
}
SPLITS = [[1.0], [1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [3.0, 1.0], [1.0, 5.0, 2.0], [1.0, 9.0, 0.1, 3.0]]
"""Even and uneven shares for world sizes 1 to 4."""


@dataclass
class World:
    """What the ranks of one request left behind."""

    logits: Tensor
    traffic: list[Traffic]
    timelines: list[Timeline]
    outputs: list[tuple[range, Tensor]]
    """What ranks reported of content tokens after the last layer, if they were asked to."""


def lively(family: str) -> ModelAdapter:
    """Return a model of 25 content tokens whose attention is uneven and whose biases and norms count."""
    config = CONFIGS[family]
    model = build_model(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return adapt(model, config.num_tokens)


def lively_vit() -> ModelAdapter:
    """Return the ViT among them."""
    return lively("vit")


def inputs_for(model: ModelAdapter, batch: int = 1) -> Tensor:
    """Return inputs that are the same in every call: pixels or token ids."""
    generator = torch.Generator().manual_seed(4)
    shape = model.shape
    if shape.vocabulary:
        return torch.randint(0, shape.vocabulary, (batch, shape.num_content_tokens), generator=generator)
    return torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def band_of(model: ModelAdapter, inputs: Tensor, tokens: range) -> tuple[Tensor, int]:
    """Return the rows of the inputs that `tokens` need, and the first of them."""
    rows = model.input_rows(tokens)
    return inputs[:, :, rows.start : rows.stop] if inputs.dim() == 4 else inputs[:, rows.start : rows.stop], rows.start


def serve(
    model: ModelAdapter,
    config: Any,
    weights: Sequence[float],
    inputs: Tensor,
    codebooks: Path | None = None,
    *,
    outputs: bool = False,
) -> World:
    """Answer one request with one thread per rank, each given only the input rows that it needs."""
    strategy: type[Strategy] = STRATEGIES[config.name]
    ranges = strategy.partition(model.shape, config, weights)
    transports = connect(len(weights))
    reported: list[tuple[range, Tensor]] = []

    def keep_output(tokens: range, x_BTD: Tensor) -> None:
        reported.append((tokens, x_BTD.clone()))

    def one_rank(rank: int) -> tuple[Tensor | None, Timeline]:
        collectives = Collectives(transports[rank], TIMEOUT_S)
        context = RankContext(model, collectives, ranges, tuple(weights), Timeline(rank), codebooks)
        context = replace(context, keep_output=keep_output if outputs else None)
        return strategy(context, config).forward(Request(0, *band_of(model, inputs, ranges[rank]))), context.timeline

    with ThreadPoolExecutor(len(weights)) as pool:
        answers = list(pool.map(one_rank, range(len(weights))))
    traffic = [transport.traffic for transport in transports]
    for transport in transports:
        transport.close()
    logits, *others = [logits for logits, _ in answers]
    assert logits is not None
    assert others == [None] * (len(weights) - 1)
    return World(logits, traffic, [timeline for _, timeline in answers], reported)


def relative_error(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).abs().max() / expected.abs().max())


def check_predicted(model: ModelAdapter, config: Any, weights: Sequence[float], traffic: Sequence[Traffic]) -> None:
    """Hold the plan of one request of batch 1 to what each rank's transport counted: exactly, or within its bounds."""
    planned = predict_messages(model.shape, config, len(weights), weights)
    for rank, counted in enumerate(traffic):
        own = [message for message in planned if message.source == rank]
        assert counted.messages_sent == sum(message.count for message in own)
        certain = bytes_of(message for message in own if message.most_bytes is None)
        assert certain <= counted.payload_bytes_sent <= bytes_of_most(own)
    if all(message.most_bytes is None for message in planned):
        total = sum(counted.payload_bytes_sent for counted in traffic)
        assert predict_bytes(model.shape, config, len(weights), weights) == total
