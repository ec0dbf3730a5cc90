"""Every family's adapter equals Hugging Face's own forward, also in shards; checkpoints load or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from strategy_worlds import CONFIGS, FAMILIES, inputs_for, lively
from torch import Tensor

from astra.attention import attend
from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.models import ModelAdapter, adapt, build_model, load_model, planned_shape, save_checkpoint
from astra.models.bert import CLASS_ID
from astra.partition import split
from astra.presets import PRESETS

HALF = 0.05  # relative; bfloat16 has 8 bits of mantissa, over four layers
GRADIENT = 1e-4  # relative to the largest of a parameter; sums over all rows, in another order
EQUAL = 1e-5  # relative; the same operations on the same weights, in another order
TEXTS = [family for family in FAMILIES if family != "vit"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> ModelAdapter:
    return lively(request.param)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=EQUAL, atol=EQUAL * float(expected.abs().max()))


def of_hugging_face(model: Any, inputs: Tensor, *, training: bool = False) -> Tensor:
    """Let the library answer; for BERT it is given [CLS] as a token of the text."""
    if model.shape.family == "bert":
        inputs = torch.cat((torch.full((len(inputs), 1), CLASS_ID), inputs), dim=1)
    with torch.inference_mode(not training):
        logits: Tensor = model.huggingface(inputs).logits
    return logits[:, -1] if model.shape.causal else logits


def test_forward_equals_hugging_face(model: ModelAdapter) -> None:
    inputs = inputs_for(model, batch=2)
    close(model.forward(inputs), of_hugging_face(model, inputs))


def test_shape_is_known_without_the_model(model: ModelAdapter) -> None:
    assert model.shape == planned_shape(CONFIGS[model.shape.family])


@pytest.mark.parametrize("tokens", [range(25), range(7, 12), range(24, 25)])
def test_embed_content_of_a_band_equals_that_of_the_whole_input(model: ModelAdapter, tokens: range) -> None:
    inputs, rows = inputs_for(model, batch=2), model.input_rows(tokens)
    band = inputs[..., rows.start : rows.stop, :] if inputs.dim() == 4 else inputs[:, rows.start : rows.stop]
    close(
        model.embed_content(band, tokens, rows.start),
        model.embed_content(inputs, range(25))[:, tokens.start : tokens.stop],
    )


def test_embed_puts_class_tokens_first(model: ModelAdapter) -> None:
    x_BTD = model.embed(inputs_for(model, batch=2))
    assert x_BTD.shape[:2] == (2, model.shape.num_tokens)
    assert torch.equal(x_BTD[:, : model.shape.num_class_tokens], model.embed_class(2))


def test_key_value_weight_and_bias_are_those_of_key_value(model: ModelAdapter) -> None:
    block, u_BTD = model.blocks[1], torch.randn(1, 3, model.shape.width)
    k, v = block.key_value_unrotated(u_BTD)
    both = torch.nn.functional.linear(u_BTD, block.key_value_weight, block.key_value_bias)
    close(both, torch.cat((k.transpose(1, 2).flatten(2), v.transpose(1, 2).flatten(2)), dim=2))
    assert k.shape[1] == model.shape.num_kv_heads


def test_positions_shift_rotated_models_and_no_others(model: ModelAdapter) -> None:
    """Rotating the keys of `key_value_unrotated` is `key_value`; only distances between tokens count."""
    block, u_BTD = model.blocks[0], torch.randn(1, 5, model.shape.width)
    positions = torch.tensor([3, 4, 5, 9, 2000])
    k, v = block.key_value(u_BTD, positions)
    unrotated, same_v = block.key_value_unrotated(u_BTD)
    assert torch.equal(block.rotate(unrotated, positions), k)
    assert torch.equal(v, same_v)
    assert torch.equal(k, unrotated) == (model.shape.family != "llama")
    here = attend(block.query(u_BTD, positions), k, v)
    there = attend(block.query(u_BTD, positions + 17), block.rotate(unrotated, positions + 17), v)
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)  # angles of thousands of radians, in fp32


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [1.0, 2.0, 1.0], [0.1, 9.0, 1.0, 1.0]], ids=str)
def test_shards_add_up_to_the_block(model: ModelAdapter, weights: list[float]) -> None:
    """Also where heads that share keys are dealt to different shards."""
    shape, block, u_BTD = model.shape, model.blocks[0], torch.randn(2, 5, model.shape.width)
    shards = [
        block.shard(heads, hidden)
        for heads, hidden in zip(split(shape.num_heads, weights), split(shape.mlp_width, weights), strict=True)
    ]
    positions = torch.arange(4, 9)
    parts = [
        shard.output(attend(shard.query(u_BTD, positions), *shard.key_value(u_BTD, positions), causal=shape.causal))
        for shard in shards
    ]
    context = attend(block.query(u_BTD, positions), *block.key_value(u_BTD, positions), causal=shape.causal)
    bias = 0.0 if block.output_bias is None else block.output_bias
    close(torch.stack(parts).sum(dim=0) + bias, block.output(context))
    bias = 0.0 if block.mlp_bias is None else block.mlp_bias
    close(torch.stack([shard.mlp(u_BTD) for shard in shards]).sum(dim=0) + bias, block.mlp(u_BTD))


def test_shard_without_heads_adds_nothing(model: ModelAdapter) -> None:
    shard, u_BTD = model.blocks[0].shard(range(0), range(0)), torch.randn(1, 3, model.shape.width)
    context = attend(shard.query(u_BTD), *shard.key_value(u_BTD))
    assert not shard.output(context).any()
    assert not shard.mlp(u_BTD).any()


def test_blocks_and_shards_share_memory_with_the_library(model: ModelAdapter) -> None:
    """Change a weight of the library's module in place: the shard's output follows."""
    shard, u_BTD = model.blocks[0].shard(range(1, 2), range(3, 9)), torch.randn(1, 3, model.shape.width)
    before = shard.query(u_BTD), shard.mlp(u_BTD)
    with torch.no_grad():
        for parameter in model.huggingface.parameters():  # type: ignore[attr-defined]
            parameter.mul_(2.0)
        after = shard.query(u_BTD), shard.mlp(u_BTD)
        for parameter in model.huggingface.parameters():  # type: ignore[attr-defined]
            parameter.mul_(0.5)
    assert not torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_finish_is_its_four_steps(model: ModelAdapter) -> None:
    block, x, context = model.blocks[0], *torch.randn(2, 1, 3, model.shape.width)
    a = block.after_attention(x, block.output(context))
    assert torch.equal(block.after_mlp(a, block.mlp(block.mlp_input(a))), block.finish(x, context))


@pytest.mark.parametrize("family", TEXTS)
def test_seeded_weights_repeat_and_differ_between_seeds(family: str) -> None:
    config = CONFIGS[family]
    first, again, other = (load_model(config.model_copy(update={"seed": seed})) for seed in (1, 1, 2))
    inputs = inputs_for(first)
    assert torch.equal(first.forward(inputs), again.forward(inputs))
    assert not torch.equal(first.forward(inputs), other.forward(inputs))
    assert torch.isfinite(first.forward(inputs)).all()


@pytest.mark.parametrize("family", TEXTS)
def test_texts_longer_than_published_get_positions(family: str) -> None:
    model = load_model(CONFIGS[family].model_copy(update={"num_tokens": 2100}))
    inputs = inputs_for(model)
    close(model.forward(inputs), of_hugging_face(model, inputs))


def gradients_of(module: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every parameter that has one."""
    module.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}


def trainable(family: str) -> Any:
    """Return a Hugging Face model as training gets it, with lively weights."""
    module = build_model(CONFIGS[family])
    module.load_state_dict(lively(family).huggingface.state_dict())  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_the_adapter_equal_those_through_hugging_face(family: str) -> None:
    """Also in a second step, after an optimiser has changed the weights in place."""
    module = trainable(family)
    inputs = inputs_for(lively(family), batch=2)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(2):
        adapter = adapt(module, CONFIGS[family].num_tokens)
        answers, expected = adapter.forward(inputs), of_hugging_face(adapter, inputs, training=True)
        close(answers.detach(), expected.detach())
        found = gradients_of(module, answers.square().mean())
        wanted = gradients_of(module, expected.square().mean())
        assert found.keys() == wanted.keys() == {name for name, _ in module.named_parameters()}
        for name in wanted:
            scale = float(wanted[name].abs().max())
            torch.testing.assert_close(found[name], wanted[name], rtol=GRADIENT, atol=GRADIENT * (scale + 1e-3))
        optimiser.step()


def test_adapt_lets_gradients_through_where_none_are_recorded(model: ModelAdapter) -> None:
    """An adapter made while validating must serve the next step of training too."""
    module = trainable(model.shape.family)
    with torch.inference_mode():
        adapter = adapt(module, CONFIGS[model.shape.family].num_tokens)
    adapter.forward(inputs_for(model)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_build_model_is_trainable_and_load_model_is_not() -> None:
    assert all(each.requires_grad for each in build_model(CONFIGS["vit"]).parameters())
    frozen: Any = load_model(CONFIGS["vit"])
    assert not any(each.requires_grad for each in frozen.huggingface.parameters())


def test_adapt_takes_all_positions_unless_told() -> None:
    lengths = {family: adapt(build_model(CONFIGS[family])).shape.num_content_tokens for family in FAMILIES}
    assert lengths == {"vit": 25, "bert": 511, "gpt2": 1024, "llama": 2048}


def test_adapt_refuses_another_type_of_model() -> None:
    from transformers import DistilBertConfig, DistilBertModel

    other = DistilBertModel(DistilBertConfig(dim=8, n_heads=1, n_layers=1, hidden_dim=8, vocab_size=8))
    with pytest.raises(ConfigError, match="model_type must be one of vit, bert, gpt2, llama, got 'distilbert'"):
        adapt(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_works_on_the_device_of_its_model(family: str) -> None:
    """On `meta`, which refuses tensors of the CPU as a GPU would."""
    module = build_model(CONFIGS[family]).to("meta")
    adapter = adapt(module, CONFIGS[family].num_tokens)
    adapter.forward(inputs_for(adapter).to("meta")).sum().backward()
    assert all(each.grad is not None and each.grad.is_meta for each in module.parameters())
    shard, x_BTD = adapter.blocks[0].shard(range(1, 4), range(3)), torch.empty(1, 5, adapter.shape.width).to("meta")
    q, (k, v) = shard.query(x_BTD, torch.arange(5)), shard.key_value(x_BTD)
    assert attend(q[:, :, :3], k, v, causal=True).is_meta
    assert adapter.head(adapter.embed_class(2)).is_meta


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_trains_under_autocast(family: str) -> None:
    module = trainable(family)
    adapter = adapt(module, CONFIGS[family].num_tokens)
    inputs = inputs_for(adapter, batch=2)
    expected = adapter.forward(inputs).detach()
    with torch.autocast("cpu", torch.bfloat16):
        answers = adapter.forward(inputs)
    answers.float().square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in module.parameters())
    assert float((answers.detach() - expected).abs().max() / expected.abs().max()) < HALF


@pytest.mark.parametrize(
    ("family", "key"), [("vit", "hidden_act"), ("bert", "hidden_act"), ("gpt2", "activation_function")]
)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_fast", "relu"])
def test_checkpoint_keeps_its_activation(family: str, key: str, activation: str, tmp_path: Path) -> None:
    config, path = saved(lively(family), tmp_path), tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: activation}))
    model = load_model(config)
    inputs = inputs_for(model)
    close(model.forward(inputs), of_hugging_face(model, inputs))


def test_checkpoint_says_its_own_size(model: ModelAdapter, tmp_path: Path) -> None:
    config = saved(model, tmp_path).model_copy(update={"size": None, "image_size": None, "num_labels": None})
    inputs = inputs_for(model)
    close(load_model(config).forward(inputs), model.forward(inputs))
    assert planned_shape(config) == model.shape


def test_head_answers_every_row(model: ModelAdapter) -> None:
    x_BTD = torch.randn(2, 3, model.shape.width)
    logits_BTC = model.head(x_BTD)
    assert logits_BTC.shape == (2, 3, model.shape.num_outputs)
    close(logits_BTC[:, 1], model.head(x_BTD[:, 1]))


def test_save_checkpoint_is_read_by_the_library_and_by_us(model: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

    save_checkpoint(tmp_path / "new", model.huggingface)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["config.json", "model.safetensors"]
    config = CONFIGS[model.shape.family].model_copy(update={"checkpoint": str(tmp_path / "new")})
    inputs = inputs_for(model)
    close(load_model(config).forward(inputs), model.forward(inputs))
    kinds = {"vit": AutoModelForImageClassification, "bert": AutoModelForSequenceClassification}
    theirs = kinds.get(model.shape.family, AutoModelForCausalLM).from_pretrained(tmp_path / "new")
    assert all(map(torch.equal, theirs.state_dict().values(), model.huggingface.state_dict().values()))


def test_save_checkpoint_takes_the_tokenizer_along(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new", build_model(CONFIGS["gpt2"]), tokenizer="{}")
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"


def saved(model: Any, folder: Path) -> ModelConfig:
    model.huggingface.save_pretrained(folder)
    return CONFIGS[model.shape.family].model_copy(update={"checkpoint": str(folder)})


def test_checkpoint_gives_the_model_that_was_saved(model: ModelAdapter, tmp_path: Path) -> None:
    """To rounding: weights read from a file lie elsewhere in memory, which decides how products are summed."""
    inputs = inputs_for(model)
    close(load_model(saved(model, tmp_path)).forward(inputs), model.forward(inputs))


def test_checkpoint_that_lacks_a_weight_is_refused_and_not_filled_in(model: ModelAdapter, tmp_path: Path) -> None:
    config, path = saved(model, tmp_path), tmp_path / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in tensors if "norm" in name.lower() or "ln_" in name)
    tensors.pop(lost)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"must hold every weight, got none for \["):
        load_model(config)


def test_checkpoint_of_another_family_is_refused(model: ModelAdapter, tmp_path: Path) -> None:
    config, path = saved(model, tmp_path), tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "roberta"}))
    with pytest.raises(ConfigError, match=f"model_type must be {model.shape.family!r}, got 'roberta'"):
        load_model(config)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_checkpoint_with_fewer_positions_than_tokens_is_refused(family: str, tmp_path: Path) -> None:
    config = saved(lively(family), tmp_path).model_copy(update={"num_tokens": 5000})
    longest = {"bert": 511, "gpt2": 1024, "llama": 2048}[family]
    with pytest.raises(ConfigError, match=f"num_tokens must be at most {longest} for this checkpoint, got 5000"):
        load_model(config)


def test_checkpoint_whose_angles_depend_on_the_length_is_refused(tmp_path: Path) -> None:
    config, path = saved(lively("llama"), tmp_path), tmp_path / "config.json"
    stored = json.loads(path.read_text())
    stored["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"rope_type must be one of default, linear, llama3, .*got 'dynamic'"):
        load_model(config)


def test_checkpoint_with_stretched_angles_equals_hugging_face(tmp_path: Path) -> None:
    config, path = saved(lively("llama"), tmp_path), tmp_path / "config.json"
    stored = json.loads(path.read_text())
    stored["rope_parameters"] = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    path.write_text(json.dumps(stored))
    model = load_model(config)
    inputs = inputs_for(model)
    close(model.forward(inputs), of_hugging_face(model, inputs))


def test_checkpoint_on_a_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"a model on a hub that can be reached, got 'nobody/nothing' .*name its folder"
    ):
        load_model(CONFIGS["gpt2"].model_copy(update={"checkpoint": "nobody/nothing"}))


def test_llama_3_8b_is_planned_with_and_not_made() -> None:
    config = ModelConfig(family="llama", size="llama-3-8b", num_tokens=1024)
    shape = planned_shape(config)
    assert (shape.num_layers, shape.width, shape.kv_width, shape.mlp_width) == (32, 4096, 1024, 14336)
    with pytest.raises(ConfigError, match="must be one of tiny, small, medium to be run, got 'llama-3-8b'"):
        load_model(config)


def test_load_model_checks_fields_against_one_another() -> None:
    with pytest.raises(ConfigError, match=r"model.num_tokens must be given"):
        load_model(ModelConfig(family="gpt2", size="tiny"))


def test_presets_divide_evenly() -> None:
    for sizes in PRESETS.values():
        for preset in sizes.values():
            assert preset.width % preset.num_heads == preset.num_heads % preset.num_kv_heads == 0
