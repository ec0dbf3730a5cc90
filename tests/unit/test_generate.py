"""Generation: token for token what `single` makes, which makes what Hugging Face makes; traffic as predicted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_worlds import NEW_TOKENS, continue_texts
from strategy_worlds import inputs_for, lively
from torch import Tensor

from astra.clustering import fit_codebooks
from astra.codebook import save_codebooks
from astra.config import AstraConfig, PrismConfig, SequenceConfig, SingleConfig
from astra.generator import plan_decode
from astra.models import ModelAdapter
from astra.sampling import Sampler
from astra.strategy_config import GalaxyConfig, PipelineConfig, TensorConfig
from astra.traffic import bytes_of

EXACT_STRATEGIES = [TensorConfig(), SequenceConfig(), PipelineConfig(), GalaxyConfig()]
SAMPLER = Sampler(temperature=0.9, top_k=20, seed=5)
SPLITS = [[1.0], [1.0, 1.0], [3.0, 1.0], [1.0, 5.0, 2.0], [1.0, 1.0, 1.0, 1.0], [1.0, 9.0, 0.1, 3.0]]
"""Even and uneven shares for world sizes 1 to 4."""


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_rank() -> Iterator[None]:
    """Ranks are threads: with torch's own threads besides, they would wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> ModelAdapter:
    return lively(request.param)


@pytest.fixture(scope="module")
def prompts(model: ModelAdapter) -> list[Tensor]:
    return list(inputs_for(model, batch=2).split(1))


@pytest.fixture(scope="module")
def alone(model: ModelAdapter, prompts: list[Tensor]) -> list[list[int]]:
    return continue_texts(model, SingleConfig(), [1.0], prompts)[0]


@pytest.fixture(scope="module")
def drawn_alone(model: ModelAdapter, prompts: list[Tensor], alone: list[list[int]]) -> list[list[int]]:
    drawn, *_ = continue_texts(model, SingleConfig(), [1.0], prompts[:1], sampler=SAMPLER)
    assert drawn != alone[:1], "the sampler draws"
    return drawn


def test_single_makes_the_tokens_of_hugging_face(
    model: ModelAdapter, prompts: list[Tensor], alone: list[list[int]]
) -> None:
    huggingface: Any = model.huggingface  # type: ignore[attr-defined]  # every adapter has one
    for prompt, tokens in zip(prompts, alone, strict=True):
        text = huggingface.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )
        assert text[0, prompt.shape[1] :].tolist() == tokens
    assert len({token for tokens in alone for token in tokens}) > 3, "not the same token over and over"


@pytest.mark.parametrize("config", EXACT_STRATEGIES, ids=lambda config: config.name)
@pytest.mark.parametrize("weights", SPLITS, ids=str)
def test_exact_strategies_make_the_tokens_of_single_and_send_what_is_predicted(
    model: ModelAdapter,
    prompts: list[Tensor],
    alone: list[list[int]],
    drawn_alone: list[list[int]],
    config: Any,
    weights: list[float],
) -> None:
    tokens, before, after = continue_texts(model, config, weights, prompts)
    assert tokens == alone
    check_decode_bytes(model, config, before, after)
    assert continue_texts(model, config, weights, prompts[:1], sampler=SAMPLER)[0] == drawn_alone


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 5.0, 2.0]], ids=str)
@pytest.mark.parametrize("site", ["input", "kv"])
def test_astra_with_lossless_codebooks_makes_the_tokens_of_single(
    model: ModelAdapter, prompts: list[Tensor], alone: list[list[int]], weights: list[float], site: Any, tmp_path: Path
) -> None:
    """With a codeword for every row that occurs, quantisation changes nothing."""
    config = AstraConfig(num_groups=1, num_codewords=64, site=site)
    codebooks = fit_codebooks(model, torch.cat(prompts), 1, config.num_codewords, seed=0, site=site)
    save_codebooks(tmp_path / "codebooks", codebooks)
    tokens, before, after = continue_texts(model, config, weights, prompts, codebooks=tmp_path / "codebooks")
    assert tokens == alone
    check_decode_bytes(model, config, before, after)
    assert sum(traffic.payload_bytes_sent for traffic in after[:-1]) > 0, "codes were sent"


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 5.0, 2.0]], ids=str)
def test_prism_with_a_mean_for_every_token_makes_the_tokens_of_single(
    model: ModelAdapter, prompts: list[Tensor], alone: list[list[int]], weights: list[float]
) -> None:
    config = PrismConfig(compression_ratio=1.0)
    tokens, before, after = continue_texts(model, config, weights, prompts)
    assert tokens == alone
    check_decode_bytes(model, config, before, after)


@pytest.mark.parametrize("config", [PrismConfig(num_segments=2), AstraConfig(num_codewords=4)], ids=lambda c: c.name)
def test_decode_on_the_last_rank_equals_a_prefill_of_the_longer_text(
    model: ModelAdapter, prompts: list[Tensor], config: Any, tmp_path: Path
) -> None:
    """The last slice grows by a token; what it sees of the others, lossy here, stays the same."""
    if config.name == "astra":
        save_codebooks(tmp_path / "codebooks", fit_codebooks(model, prompts[0], 1, config.num_codewords, seed=0))
    [tokens], *_ = continue_texts(model, config, [10.0, 15.0], prompts[:1], codebooks=tmp_path / "codebooks")
    longer: Any = type(model)
    for number in range(1, NEW_TOKENS):
        text = torch.cat((prompts[0], torch.tensor([tokens[:number]])), dim=1)
        grown = longer(model.huggingface, text.shape[1])  # type: ignore[attr-defined]
        weights, folder = [10.0, 15.0 + number], tmp_path / "codebooks"
        [[expected]], *_ = continue_texts(grown, config, weights, [text], new_tokens=1, codebooks=folder)
        assert tokens[number] == expected


@pytest.mark.parametrize("config", [SequenceConfig(wire="int8"), TensorConfig(wire="fp16")], ids=lambda c: c.name)
def test_narrow_wires_make_fewer_bytes_and_a_text(model: ModelAdapter, prompts: list[Tensor], config: Any) -> None:
    tokens, before, after = continue_texts(model, config, [1.0, 2.0], prompts)
    assert [len(text) for text in tokens] == [NEW_TOKENS] * len(prompts)
    check_decode_bytes(model, config, before, after)
    exact = config.model_copy(update={"wire": "fp32"})
    narrow, wide = (bytes_of(plan_decode(model.shape, each, 2, NEW_TOKENS)) for each in (config, exact))
    assert narrow < wide


def test_one_new_token_is_the_prefills(model: ModelAdapter, prompts: list[Tensor], alone: list[list[int]]) -> None:
    for config in [SingleConfig(), *EXACT_STRATEGIES]:
        tokens, before, after = continue_texts(model, config, [1.0, 3.0], prompts, new_tokens=1)
        assert tokens == [[text[0]] for text in alone]
        assert before == after
        assert plan_decode(model.shape, config, 2, 1) == []


def check_decode_bytes(model: ModelAdapter, config: Any, before: list[Any], after: list[Any]) -> None:
    """Hold the plan of one text's decode to what each rank's transport counted, exactly."""
    planned = plan_decode(model.shape, config, len(after), NEW_TOKENS)
    for rank, (earlier, later) in enumerate(zip(before, after, strict=True)):
        own = [message for message in planned if message.source == rank]
        assert later.messages_sent - earlier.messages_sent == sum(message.count for message in own)
        assert later.payload_bytes_sent - earlier.payload_bytes_sent == bytes_of(own)
