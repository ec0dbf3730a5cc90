"""Ranks as threads that continue a prompt with a strategy."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from strategy_worlds import TIMEOUT_S
from torch import Tensor

from astra.collectives import Collectives
from astra.generator import Generator
from astra.models import ModelAdapter
from astra.sampling import Sampler
from astra.strategies import STRATEGIES, RankContext, Request
from astra.timeline import Timeline
from astra.transport import Traffic
from astra.transport.inproc import connect

NEW_TOKENS = 6


def continue_texts(
    model: ModelAdapter,
    config: Any,
    weights: Sequence[float],
    prompts: Sequence[Tensor],
    *,
    sampler: Sampler | None = None,
    new_tokens: int = NEW_TOKENS,
    codebooks: Path | None = None,
) -> tuple[list[list[int]], list[Traffic], list[Traffic]]:
    """Return rank 0's tokens per prompt, and what each rank had sent before decoding the last and in the end."""
    ranges = STRATEGIES[config.name].partition(model.shape, config, weights)
    transports = connect(len(weights))

    def one_rank(rank: int) -> tuple[list[list[int]], Traffic]:
        collectives = Collectives(transports[rank], TIMEOUT_S)
        context = RankContext(model, collectives, ranges, tuple(weights), Timeline(rank), codebooks)
        generator = Generator(context, config, sampler or Sampler(), new_tokens)
        texts = []
        for number, prompt in enumerate(prompts):
            own = ranges[rank]
            request = Request(number * new_tokens, prompt[:, own.start : own.stop], own.start)
            first = generator.first_token(request, number)
            before = transports[rank].traffic
            texts.append([first, *generator.further_tokens(request.index, number, first)])
        return [[token for token in text if token is not None] for text in texts], before

    with ThreadPoolExecutor(len(weights)) as pool:
        (tokens, before), *others = pool.map(one_rank, range(len(weights)))
    after = [transport.traffic for transport in transports]
    for transport in transports:
        transport.close()
    assert all(texts == [[]] * len(prompts) for texts, _ in others)
    return tokens, [before, *(traffic for _, traffic in others)], after
