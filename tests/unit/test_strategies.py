"""Distributed answers equal `single`, and what is sent is what the formulas say; ranks are threads of one process."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from astra.clustering import fit_codebooks
from astra.codebook import CodebookSpec, load_codebooks, save_codebooks
from astra.collectives import Collectives
from astra.config import AstraConfig, ModelConfig, SequenceConfig, SingleConfig, StrategyConfig, WireName
from astra.errors import ConfigError
from astra.models import planned_shape
from astra.models.vit import ViTAdapter, build_vit
from astra.partial_attention import KeyValues
from astra.strategies import STRATEGIES, RankContext, Request, predict_bytes, predict_messages
from astra.timeline import Timeline
from astra.transport import Traffic
from astra.transport.inproc import connect

EXACT = 1e-4  # relative; the same fp32 operations, summed in another order over four layers
LOSSY: dict[WireName, float] = {
    "fp16": 2e-3,  # 11 bits of mantissa; 2.5e-4 seen
    "int8": 2e-2,  # half a step is 1/254 of a row's largest value; 4e-3 seen
    "int4": 3e-1,  # half a step is 1/14 of it; 7e-2 seen
}
TIMEOUT_S = 30.0
IMAGE_SIZE, NUM_TOKENS = 80, 25  # 25 tokens: no world size from 2 to 4 divides them
SPLITS = [[1.0], [1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [3.0, 1.0], [1.0, 5.0, 2.0], [1.0, 9.0, 0.1, 3.0]]

Answer = tuple[Tensor, list[Traffic], list[Timeline]]


@pytest.fixture(scope="module")
def model() -> ViTAdapter:
    """Return a model whose attention is uneven and whose biases and norms count."""
    adapter = ViTAdapter(build_vit(ModelConfig(size="tiny", image_size=IMAGE_SIZE, num_labels=10)))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.huggingface.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return adapter


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def expected(model: ViTAdapter, pixels: Tensor) -> Tensor:
    return model.forward(pixels)


def serve(
    model: ViTAdapter,
    config: StrategyConfig,
    weights: Sequence[float],
    pixels: Tensor,
    folder: Path | None = None,
    **context_of: Any,
) -> Answer:
    """Answer one request with one thread per rank, each given only the pixel rows that it needs."""
    strategy = STRATEGIES[config.name]
    ranges = strategy.partition(model.shape, config, weights)
    transports = connect(len(weights))

    def one_rank(rank: int) -> tuple[Tensor | None, Timeline]:
        context = RankContext(
            model,
            Collectives(transports[rank], TIMEOUT_S),
            ranges,
            tuple(weights),
            Timeline(rank),
            folder,
            **context_of,
        )
        rows = model.input_rows(ranges[rank])
        band = pixels[:, :, rows.start : rows.stop]
        return strategy(context, config).forward(Request(0, band, rows.start)), context.timeline

    with ThreadPoolExecutor(len(weights)) as pool:
        answers = list(pool.map(one_rank, range(len(weights))))
    traffic = [transport.traffic for transport in transports]
    for transport in transports:
        transport.close()
    logits, *others = [logits for logits, _ in answers]
    assert logits is not None
    assert others == [None] * (len(weights) - 1)
    return logits, traffic, [timeline for _, timeline in answers]


def relative_error(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).abs().max().detach() / expected.abs().max().detach())


@pytest.fixture(scope="module")
def lossless(model: ViTAdapter, pixels: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """Return codebooks that hold every sub-vector of every content token as a codeword, if 32 are asked for."""

    @cache
    def fitted(num_groups: int, num_codewords: int) -> Path:
        folder = tmp_path_factory.mktemp("codebooks")
        save_codebooks(folder, fit_codebooks(model, pixels, num_groups, num_codewords, seed=0))
        return folder

    return fitted


@pytest.mark.parametrize("weights", SPLITS)
def test_single_equals_the_model(model: ViTAdapter, pixels: Tensor, expected: Tensor, weights: list[float]) -> None:
    logits, traffic, _ = serve(model, SingleConfig(), weights, pixels)
    assert relative_error(logits, expected) < EXACT
    assert all(rank.messages_sent == 0 for rank in traffic)


@pytest.mark.parametrize("weights", SPLITS)
def test_sequence_equals_single(model: ViTAdapter, pixels: Tensor, expected: Tensor, weights: list[float]) -> None:
    logits, _, _ = serve(model, SequenceConfig(), weights, pixels)
    assert relative_error(logits, expected) < EXACT


@pytest.mark.parametrize("wire", list(LOSSY))
def test_sequence_with_narrow_wires_stays_close_and_is_not_exact(
    model: ViTAdapter, pixels: Tensor, expected: Tensor, wire: WireName
) -> None:
    logits, _, _ = serve(model, SequenceConfig(wire=wire), [1.0, 2.0, 1.0], pixels)
    assert EXACT < relative_error(logits, expected) < LOSSY[wire]


@pytest.mark.parametrize("num_groups", [1, 4])
@pytest.mark.parametrize("weights", SPLITS)
def test_astra_with_every_token_a_codeword_equals_single(
    model: ViTAdapter,
    pixels: Tensor,
    expected: Tensor,
    lossless: Callable[[int, int], Path],
    weights: list[float],
    num_groups: int,
) -> None:
    """Every class copy then attends to the same keys as the one of `single`, so their mean is that one too."""
    config = AstraConfig(num_groups=num_groups, num_codewords=32, tables="fp32")
    logits, _, _ = serve(model, config, weights, pixels, lossless(num_groups, 32))
    assert relative_error(logits, expected) < EXACT


def test_astra_with_few_codewords_differs_and_repeats_bit_for_bit(
    model: ViTAdapter, pixels: Tensor, expected: Tensor, lossless: Callable[[int, int], Path]
) -> None:
    config, folder = AstraConfig(num_codewords=4), lossless(1, 4)
    first, _, _ = serve(model, config, [1.0, 2.0, 1.0], pixels, folder)
    again, _, _ = serve(model, config, [1.0, 2.0, 1.0], pixels, folder)
    assert torch.equal(first, again)
    assert relative_error(first, expected) > EXACT


def test_astra_attends_to_own_tokens_exactly_and_to_remote_ones_as_codewords(
    model: ViTAdapter, pixels: Tensor, lossless: Callable[[int, int], Path]
) -> None:
    config, folder, weights = AstraConfig(num_codewords=4), lossless(1, 4), [1.0, 2.0, 1.0]
    logits, _, _ = serve(model, config, weights, pixels, folder)
    assert relative_error(logits, astra_by_masks(model, pixels, weights, folder)) < EXACT


def test_tokens_of_one_code_are_one_key(
    model: ViTAdapter, pixels: Tensor, lossless: Callable[[int, int], Path]
) -> None:
    seen: list[tuple[int, int, Tensor | None]] = []

    def keep(layer: int, own: KeyValues, remote: KeyValues) -> None:
        assert own.bias_S is None
        seen.append((own.k_BJSd.shape[2] - 1, remote.k_BJSd.shape[2], remote.bias_S))

    serve(model, AstraConfig(num_codewords=4), [1.0, 1.0], pixels, lossless(1, 4), keep=keep)
    assert len(seen) == 2 * model.shape.num_layers
    for num_own, num_remote, bias_S in seen:
        assert num_remote <= 4, "no more keys than codewords"
        assert bias_S is not None
        assert float(bias_S.exp().sum()) == pytest.approx(NUM_TOKENS - num_own), "every token counts once"


def astra_by_masks(model: ViTAdapter, pixels: Tensor, weights: list[float], folder: Path) -> Tensor:
    """Compute ASTRA's answer in one place: per rank, swap the others' rows of u for their codewords."""
    shape = model.shape
    codebooks = load_codebooks(folder, CodebookSpec(shape.num_layers, shape.width, 1, 4))
    ranges = STRATEGIES["astra"].partition(shape, AstraConfig(num_codewords=4), weights)
    class_copies = [model.embed_class(1) for _ in weights]
    content_BTD = model.embed_content(pixels, range(NUM_TOKENS))
    for block, codebook in zip(model.blocks, codebooks, strict=True):
        u_BTD = block.attention_input(content_BTD)
        quantised_BTD = codebook.decode(codebook.encode(u_BTD[0]))[None]
        next_BTD = torch.empty_like(content_BTD)
        for rank, tokens in enumerate(ranges):
            seen_BTD = quantised_BTD.clone()
            seen_BTD[:, tokens.start : tokens.stop] = u_BTD[:, tokens.start : tokens.stop]
            own_BTD = torch.cat((class_copies[rank], content_BTD[:, tokens.start : tokens.stop]), dim=1)
            own_u_BTD = block.attention_input(own_BTD)
            k, v = block.key_value(torch.cat((own_u_BTD[:, :1], seen_BTD), dim=1))
            weights_BHTS = torch.softmax(block.query(own_u_BTD) @ k.mT / shape.head_width**0.5, dim=-1)
            context_BTD = (weights_BHTS @ v).transpose(1, 2).flatten(2)
            own_BTD = block.finish(own_BTD, context_BTD)
            class_copies[rank], next_BTD[:, tokens.start : tokens.stop] = own_BTD[:, :1], own_BTD[:, 1:]
        content_BTD = next_BTD
    return model.head(torch.stack(class_copies).mean(dim=0)[:, 0])


def test_astra_without_codebooks_says_what_to_do(model: ViTAdapter, pixels: Tensor) -> None:
    with pytest.raises(ConfigError, match="run `astra fit` first"):
        serve(model, AstraConfig(), [1.0], pixels)


@pytest.mark.parametrize("config", [SingleConfig(), SequenceConfig(wire="int8"), AstraConfig(num_codewords=32)])
def test_strategies_keep_the_batch_dimension(
    model: ViTAdapter, lossless: Callable[[int, int], Path], pixels: Tensor, config: StrategyConfig
) -> None:
    both = torch.cat((pixels, pixels.flip(3)))
    folder = lossless(1, 32)
    together, _, _ = serve(model, config, [1.0, 2.0], both, folder)
    apart = [serve(model, config, [1.0, 2.0], one, folder)[0] for one in both.split(1)]
    assert relative_error(together, torch.cat(apart)) < EXACT


@pytest.mark.parametrize("weights", SPLITS)
@pytest.mark.parametrize(
    "config",
    [
        SingleConfig(),
        *(SequenceConfig(wire=wire) for wire in ("fp32", "fp16", "int8", "int4")),
        *(AstraConfig(num_groups=num_groups, num_codewords=8) for num_groups in (1, 16)),
    ],
)
def test_predictions_equal_what_the_transport_counts(
    model: ViTAdapter,
    pixels: Tensor,
    lossless: Callable[[int, int], Path],
    config: StrategyConfig,
    weights: list[float],
) -> None:
    folder = lossless(config.num_groups, 8) if isinstance(config, AstraConfig) else None
    _, traffic, _ = serve(model, config, weights, pixels, folder)
    predicted = predict_messages(model.shape, config, len(weights), weights)
    for rank, counted in enumerate(traffic):
        own = [message for message in predicted if message.source == rank]
        assert counted.messages_sent == sum(message.count for message in own)
        assert counted.payload_bytes_sent == sum(message.count * message.payload_bytes for message in own)
    counted_bytes = sum(counted.payload_bytes_sent for counted in traffic)
    assert predict_bytes(model.shape, config, len(weights), weights) == counted_bytes


def test_predict_bytes_of_the_published_case() -> None:
    """ViT-Base, 1,024 tokens, four devices, G = 1: 320 B from each rank to each of three peers in twelve layers."""
    shape = planned_shape(ModelConfig(size="tiny", image_size=512))
    codes = 12 * 4 * 3 * (1024 // 4) * 10 // 8
    assert predict_bytes(shape, AstraConfig(), 4) == codes * shape.num_layers // 12 + 3 * shape.width * 4


def test_timeline_spans_explain_every_layer(
    model: ViTAdapter, pixels: Tensor, lossless: Callable[[int, int], Path]
) -> None:
    _, _, timelines = serve(model, AstraConfig(num_codewords=32), [1.0, 1.0], pixels, lossless(1, 32))
    assert set(timelines[0].totals(0)) == {"embed", "encode", "send", "rest", "wait", "remote", "attention", "head"}
    assert set(timelines[1].totals(0)) == {"embed", "encode", "send", "rest", "wait", "remote", "attention"}
