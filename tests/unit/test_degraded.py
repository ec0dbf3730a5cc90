"""What degraded answers are: attention without the keys of the rank that is gone."""

from concurrent.futures import ThreadPoolExecutor

import torch
from datagram_worlds import serve
from strategy_worlds import EXACT, TIMEOUT_S, band_of, inputs_for, lively
from torch import Tensor

from astra.collectives import Collectives
from astra.strategies import STRATEGIES, RankContext, Request
from astra.strategy_config import PrismConfig
from astra.timeline import Timeline
from astra.transport.inproc import connect
from astra.transport_config import DatagramConfig

WEIGHTS = [1.0, 1.0, 1.0]
GONE = 2


def degraded(family: str) -> Tensor:
    """Answer with PRISM after the last of three ranks is gone."""
    model, config = lively(family), PrismConfig(num_segments=2)
    strategy = STRATEGIES["prism"]
    ranges = strategy.partition(model.shape, config, WEIGHTS)
    transports = connect(len(WEIGHTS))
    for transport in transports:
        transport.watch.gone = frozenset({GONE})

    def one_rank(rank: int) -> Tensor | None:
        context = RankContext(
            model, Collectives(transports[rank], TIMEOUT_S), ranges, tuple(WEIGHTS), Timeline(rank), None
        )
        return strategy(context, config).forward(Request(0, *band_of(model, inputs_for(model), ranges[rank])))

    with ThreadPoolExecutor(GONE) as pool:
        logits, nothing = pool.map(one_rank, range(GONE))
    assert nothing is None
    assert logits is not None
    return logits


def test_degraded_answer_is_the_one_without_the_keys_of_who_is_gone() -> None:
    model = lively("vit")
    config = PrismConfig(num_segments=2, transport=DatagramConfig(deadline_ms=3000.0))
    reference = serve(
        model, config, WEIGHTS, inputs_for(model), loses=lambda position, receiver, datagram: datagram.sender == GONE
    )
    logits = degraded("vit")
    whole = serve(model, config, WEIGHTS, inputs_for(model))
    assert torch.linalg.norm(logits - reference.logits[0]) < EXACT * torch.linalg.norm(logits)
    assert torch.linalg.norm(logits - whole.logits[0]) > EXACT * torch.linalg.norm(logits), "it makes a difference"
