"""`sequence` and `astra` on every family: exact where they should be, causal where they must be."""

import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from strategy_worlds import EXACT, FAMILIES, SPLITS, check_predicted, inputs_for, lively, relative_error, serve
from torch import Tensor

from astra.clustering import fit_codebooks
from astra.codebook import CodebookSpec, load_codebooks, save_codebooks
from astra.config import AstraConfig, SequenceConfig, SingleConfig
from astra.models import ModelAdapter
from astra.remote_tables import KeyValueTable, Way
from astra.strategies import STRATEGIES, predict_messages
from astra.strategy_config import Site

UNEVEN = [1.0, 5.0, 2.0]
SAME = 1e-5  # relative; other tokens change nothing but the shape of a matrix product
Codebooks = Callable[[int, int, Site], Path]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> ModelAdapter:
    return lively(request.param)


@pytest.fixture(scope="module")
def codebooks(model: ModelAdapter, tmp_path_factory: pytest.TempPathFactory) -> Codebooks:
    """Return codebooks that hold every sub-vector of every content token as a codeword, if 32 are asked for."""

    @cache
    def fitted(num_groups: int, num_codewords: int, site: Site) -> Path:
        folder = tmp_path_factory.mktemp("codebooks")
        save_codebooks(folder, fit_codebooks(model, inputs_for(model), num_groups, num_codewords, seed=0, site=site))
        return folder

    return fitted


@pytest.mark.parametrize("weights", SPLITS, ids=str)
def test_single_and_sequence_equal_the_model_and_send_what_is_predicted(
    model: ModelAdapter, weights: list[float]
) -> None:
    inputs = inputs_for(model)
    for config in (SingleConfig(), SequenceConfig()):
        world = serve(model, config, weights, inputs)
        assert relative_error(world.logits, model.forward(inputs)) < EXACT
        check_predicted(model, config, weights, world.traffic)


@pytest.mark.parametrize(("num_groups", "site"), [(1, "input"), (4, "kv")])
@pytest.mark.parametrize("weights", SPLITS, ids=str)
def test_astra_with_every_token_a_codeword_equals_single(
    model: ModelAdapter, codebooks: Codebooks, weights: list[float], num_groups: int, site: Site
) -> None:
    config = AstraConfig(num_groups=num_groups, num_codewords=32, site=site, tables="fp32")
    inputs = inputs_for(model)
    world = serve(model, config, weights, inputs, codebooks(num_groups, 32, site))
    assert relative_error(world.logits, model.forward(inputs)) < EXACT
    check_predicted(model, config, weights, world.traffic)


@pytest.mark.parametrize("site", ["input", "kv"])
def test_astra_attends_to_own_tokens_exactly_and_to_remote_ones_as_codewords(
    model: ModelAdapter, codebooks: Codebooks, site: Site
) -> None:
    folder, inputs = codebooks(1, 4, site), inputs_for(model)
    world = serve(model, AstraConfig(num_codewords=4, site=site), UNEVEN, inputs, folder)
    width = AstraConfig(site=site).quantised_width(model.shape.width, model.shape.kv_width)
    quantisers = load_codebooks(folder, CodebookSpec(model.shape.num_layers, width, 1, 4))
    expected = astra_by_masks(model, inputs, UNEVEN, [book.codewords_GKd[0] for book in quantisers], site)
    assert relative_error(world.logits, expected) < EXACT
    assert relative_error(world.logits, model.forward(inputs)) > EXACT


def astra_by_masks(
    model: ModelAdapter, inputs: Tensor, weights: Sequence[float], books: Sequence[Tensor], site: Site
) -> Tensor:
    """Compute ASTRA's answer in one place, from the formula: a token sees others through its rank."""
    shape = model.shape
    first = shape.num_class_tokens
    ranges = STRATEGIES["astra"].partition(shape, AstraConfig(num_codewords=4, site=site), weights)
    copies = [model.embed(inputs) for _ in ranges]  # of rank r: rows of other ranks are not used
    for block, book_KE in zip(model.blocks, books, strict=True):
        whole = torch.cat(
            [x[:, first + own.start : first + own.stop] for x, own in zip(copies, ranges, strict=True)], 1
        )
        u = block.attention_input(whole)
        hat_k, hat_v = quantised(block, u, book_KE, site)
        for rank in range(len(ranges)):
            x = torch.cat((copies[rank][:, :first], whole), dim=1)
            ux = block.attention_input(x)
            k, v = block.key_value_unrotated(ux)
            k, v = k.clone(), v.clone()
            for peer, theirs in enumerate(ranges):
                if peer != rank:
                    rows = slice(first + theirs.start, first + theirs.stop)
                    k[:, :, rows] = hat_k[:, :, theirs.start : theirs.stop]
                    v[:, :, rows] = hat_v[:, :, theirs.start : theirs.stop]
            context = plain_attention(block.query(ux), block.rotate(k), v, shape.causal)
            copies[rank] = block.finish(x, context)
    if shape.causal:
        return model.head(copies[-1][:, -1])
    return model.head(torch.stack([x[:, 0] for x in copies]).mean(dim=0))


def quantised(block: Any, u_1TD: Tensor, book_KE: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """Return keys and values, before positions, of tokens replaced by their nearest codeword."""
    k, v = block.key_value_unrotated(u_1TD)
    rows = u_1TD[0] if site == "input" else torch.cat((k, v), dim=1).transpose(1, 2).flatten(2)[0]
    nearest = book_KE[torch.cdist(rows, book_KE).argmin(dim=1)]
    if site == "input":
        hat: tuple[Tensor, Tensor] = block.key_value_unrotated(nearest[None])
        return hat
    both = nearest.view(1, len(nearest), 2 * k.shape[1], -1).transpose(1, 2)
    return both[:, : k.shape[1]], both[:, k.shape[1] :]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, dim=1).mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -torch.inf)
    return (scores.softmax(dim=-1) @ v.repeat_interleave(group, dim=1)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("num_groups", "way"), [(1, "look-up"), (4, "bag"), (4, "project")])
def test_tables_equal_dequantise_project_and_rotate(
    model: ModelAdapter, codebooks: Codebooks, num_groups: int, way: Way
) -> None:
    """Also with fewer key/value heads than heads, and with keys turned to the positions of their own tokens."""
    shape, block = model.shape, model.blocks[1]
    spec = CodebookSpec(shape.num_layers, shape.width, num_groups, 4)
    codebook = load_codebooks(codebooks(num_groups, 4, "input"), spec)[1]
    table = KeyValueTable(codebook, block, way)
    codes_BRG = torch.randint(0, 4, (2, 6, num_groups))
    positions = torch.tensor([0, 1, 2, 11, 12, 40])
    k, v = table.remote_key_value(codes_BRG)
    u_BRD = codebook.decode(codes_BRG.flatten(0, 1)).view(2, 6, -1)
    expected_k, expected_v = block.key_value(u_BRD, positions)
    assert relative_error(block.rotate(k, positions), expected_k) < SAME
    assert relative_error(v, expected_v) < SAME


ONE_STEP = 2e-3
"""A number that lies on the border of two int8 steps may fall on either side when a batch is added up in another order;
a step is 1/127 of a row's largest number. Rows that were mixed up would differ by about 1."""


@pytest.mark.parametrize(
    "config", [SequenceConfig(wire="int8"), AstraConfig(num_codewords=4, num_groups=2, tables="fp32")], ids=str
)
def test_strategies_keep_the_batch_dimension(model: ModelAdapter, codebooks: Codebooks, config: Any) -> None:
    both, folder = inputs_for(model, batch=2), codebooks(2, 4, "input")
    together = serve(model, config, UNEVEN, both, folder).logits
    apart = [serve(model, config, UNEVEN, one, folder).logits for one in both.split(1)]
    assert relative_error(together, torch.cat(apart)) < ONE_STEP


def test_causal_strategies_send_to_later_ranks_only(model: ModelAdapter) -> None:
    shape = model.shape
    for config in (SequenceConfig(), AstraConfig(num_codewords=4)):
        planned = predict_messages(shape, config, 3)
        per_layer = {(message.source, message.destination) for message in planned if message.count == shape.num_layers}
        expected = {(0, 1), (0, 2), (1, 2)} if shape.causal else {(a, b) for a in range(3) for b in range(3) if a != b}
        assert per_layer == expected
        last = [message for message in planned if message.count == 1]
        if shape.causal:
            assert [(m.source, m.destination, m.payload_bytes) for m in last] == [(2, 0, 4 * shape.width)]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "config", [SingleConfig(), SequenceConfig(), AstraConfig(num_codewords=32)], ids=lambda c: c.name
)
@pytest.mark.parametrize("first_poisoned", [1, 4, 17, 24])
def test_no_token_sees_a_later_one(
    family: str, config: Any, first_poisoned: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poison the embedding of every token from one on: no row of an earlier token moves, in any layer on any rank.

    A rank whose tokens are all poisoned gets NaN, which spreads to all that looks at it. In the rank that has the first
    poisoned token, hidden keys lie in the same matrix product, where 0 · NaN is NaN; it gets a number of 1e9 instead.
    """
    model = lively(family)
    save_codebooks(tmp_path, fit_codebooks(model, inputs_for(model), 1, 32, seed=0))
    ranges = STRATEGIES[config.name].partition(model.shape, config, UNEVEN)
    clean = rows_after_layers(model, config, tmp_path, monkeypatch)
    embed = model.embed_content

    def poisoned(inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        x_BTD = embed(inputs, tokens, first_row).clone()
        later = slice(max(first_poisoned - tokens.start, 0), None)
        hidden_only = tokens.start < first_poisoned
        x_BTD[:, later] = torch.randn_like(x_BTD[:, later]) * 1e9 if hidden_only else torch.nan
        return x_BTD

    monkeypatch.setattr(model, "embed_content", poisoned)
    monkeypatch.setattr("astra.wire._check_finite", lambda x_RD: None)  # a wire otherwise refuses to carry NaN
    found = rows_after_layers(model, config, tmp_path, monkeypatch)
    compared = 0
    for rank, own in enumerate(ranges):
        kept = max(min(first_poisoned, own.stop) - own.start, 0)
        for layer in range(model.shape.num_layers if kept else 0):
            before, after = clean[rank][layer][:, :kept], found[rank][layer][:, :kept]
            assert relative_error(after, before) < SAME, f"rank {rank}, layer {layer}"
            compared += 1
    assert compared > 0


def rows_after_layers(
    model: ModelAdapter, config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[int, list[Tensor]]:
    """Serve one request and return what `finish` gave, by rank and layer."""
    seen: dict[int, list[Tensor]] = {}
    rank_of_thread = threading.local()
    strategy = STRATEGIES[config.name]

    with monkeypatch.context() as patch:
        forward = strategy.forward

        def noted(self: Any, request: Any) -> Tensor | None:
            rank_of_thread.rank = self._collectives.rank if hasattr(self, "_collectives") else self._rank
            return forward(self, request)

        patch.setattr(strategy, "forward", noted)
        for block in model.blocks:

            def finish(x: Tensor, context: Tensor, finish: Any = block.finish) -> Tensor:
                out: Tensor = finish(x, context)
                seen.setdefault(rank_of_thread.rank, []).append(out.clone())
                return out

            patch.setattr(block, "finish", finish)
        serve_unchecked(model, config, folder)
    return seen


def serve_unchecked(model: ModelAdapter, config: Any, folder: Path) -> None:
    """Serve; a poisoned answer is of no interest."""
    serve(model, config, UNEVEN, inputs_for(model), folder)
