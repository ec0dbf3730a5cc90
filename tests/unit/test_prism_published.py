"""PRISM's published savings on BERT-Base: 51.24 % less computation per device and 99.2 % less traffic at CR = 128.

The abstract does not say for how many tokens and devices. 256 tokens (class token included) on two devices give both
figures: each device keeps 128 tokens and sends their one mean. Per layer, in multiplications:

    single        12·T·D² + 2·T²·D                                      T = 256, D = 768
    one device    12·P·D² + 2·M·D² + 2·P·(P + M)·D                      P = T/2 own rows, M = 1 remote mean

which is 1 - 0.4876. All layers are alike, so one is run here; embeddings and softmax multiply no matrices, and the head
runs on rank 0 alone, so rank 1 is counted and the head is taken off `single`.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from astra.collectives import Collectives
from astra.flops import counted_flops
from astra.models.bert import BertAdapter
from astra.strategies import RankContext, Request, predict_bytes
from astra.strategies.prism import PrismStrategy
from astra.strategy_config import PrismConfig, SequenceConfig
from astra.timeline import Timeline
from astra.transport.inproc import connect

NUM_TOKENS, RATIO = 256, 128.0
WEIGHTS = (127.0, 128.0)  # content tokens: rank 0 has the class token too, so both have 128 rows
PUBLISHED_COMPUTE_PCT, PUBLISHED_TRAFFIC_PCT = 51.24, 99.2


@pytest.fixture(scope="module")
def model() -> BertAdapter:
    """Return a BERT of BERT-Base's shape with one layer and few words."""
    adapter = BertAdapter(
        BertForSequenceClassification(BertConfig(num_hidden_layers=1, vocab_size=128)).train(False), NUM_TOKENS - 1
    )
    assert (adapter.shape.width, adapter.shape.mlp_width, adapter.shape.num_heads) == (768, 3072, 12)
    return adapter


def test_prism_saves_the_published_computation(model: BertAdapter) -> None:
    ids = torch.zeros(1, NUM_TOKENS - 1, dtype=torch.int64)
    with torch.inference_mode(), counted_flops() as single:
        model.forward(ids)
    with torch.inference_mode(), counted_flops() as head:
        model.head(torch.zeros(1, 768))
    transports = connect(2)
    ranges = PrismStrategy.partition(model.shape, PrismConfig(compression_ratio=RATIO), WEIGHTS)

    def one_rank(rank: int) -> int:
        context = RankContext(model, Collectives(transports[rank], 30.0), ranges, WEIGHTS, Timeline(rank))
        strategy = PrismStrategy(context, PrismConfig(compression_ratio=RATIO))
        own = ranges[rank]
        with counted_flops() as count:
            strategy.forward(Request(0, ids[:, own.start : own.stop], own.start))
        return count.total

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one_rank, range(2))
    assert first - head.total == second, "both ranks do the same work on the layers"
    saved_pct = 100 * (1 - second / (single.total - head.total))
    assert round(saved_pct, 2) == PUBLISHED_COMPUTE_PCT


def test_prism_saves_the_published_traffic(model: BertAdapter) -> None:
    shape = replace(model.shape, num_layers=12)
    sent = predict_bytes(shape, PrismConfig(compression_ratio=RATIO), 2, WEIGHTS)
    whole = predict_bytes(shape, SequenceConfig(), 2, WEIGHTS)
    assert (sent, whole) == (12 * 2 * 768 * 4, 12 * 2 * 128 * 768 * 4)
    assert round(100 * (1 - sent / whole), 1) == PUBLISHED_TRAFFIC_PCT
