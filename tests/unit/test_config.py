"""Configs: what is accepted, and the exact words for what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from astra.config import (
    AstraConfig,
    BenchConfig,
    BlockConfig,
    PipelineConfig,
    PrismConfig,
    SequenceConfig,
    SingleConfig,
    StrategyConfig,
)
from astra.config_file import load_config, parse_config
from astra.errors import ConfigError
from astra.presets import PRESETS

MODEL = {"size": "tiny", "image_size": 64}
GPT2 = {"family": "gpt2", "size": "tiny", "num_tokens": 8}
MINIMAL: dict[str, Any] = {"model": MODEL, "strategies": ["single"]}


def parse(changes: dict[str, Any]) -> BenchConfig:
    return parse_config(json.dumps(MINIMAL | changes), where="b.json")


def faults_of(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(changes)
    return list(caught.value.faults)


def test_config_minimal_has_documented_defaults():
    config = parse({})
    assert (config.requests, config.warmup, config.partition, config.timeout_s) == (10, 2, "even", 60.0)
    assert (config.input.images, config.input.placement, config.input.encoding) == ("sample", "replicated", "raw")
    assert config.model.preset == PRESETS["vit"]["tiny"]


def test_config_bare_name_is_that_strategy_with_defaults():
    config = parse({"strategies": ["single", "sequence", {"name": "astra", "num_groups": 4}]})
    assert config.strategies == (SingleConfig(), SequenceConfig(wire="fp32"), AstraConfig(num_groups=4))
    assert [strategy.settings for strategy in config.strategies] == ["", "wire=fp32", "G=4"]


def test_config_settings_name_codewords_only_when_unusual():
    assert AstraConfig(num_codewords=1024).settings == "G=1"
    assert AstraConfig(num_groups=2, num_codewords=64).settings == "G=2 K=64"


def test_config_is_the_same_after_a_round_trip_through_json():
    config = parse({"strategies": ["single", "astra"], "partition": [1, 2.5], "timeout_s": 3})
    assert parse_config(config.model_dump_json(), where="b.json") == config


CASES = [
    (
        {"model": {"size": "bse", "image_size": 64}},
        "b.json: model.size must be one of tiny, digits, mini, cifar, small, minilm, base, medium, llama-3-8b, "
        "got 'bse'; did you mean 'base'?",
    ),
    (
        {"model": {"family": "vitt", **MODEL}},
        "b.json: model.family must be one of vit, bert, gpt2, llama, got 'vitt'; did you mean 'vit'?",
    ),
    (
        {"model": {"size": "medium", "image_size": 64}},
        "b.json: model.size must be one of tiny, digits, mini, cifar, small, base where family is 'vit', got 'medium'; "
        "choose one of them",
    ),
    (
        {"model": {"family": "bert", **MODEL, "num_tokens": 8}},
        "b.json: model.image_size must be left out for BERT, got 64; num_tokens says how long a text is",
    ),
    (
        {"model": {"family": "gpt2", "size": "tiny"}},
        "b.json: model.num_tokens must be given, got nothing; add the key 'num_tokens'",
    ),
    (
        {"model": {**MODEL, "num_tokens": 8}},
        "b.json: model.num_tokens must be left out for ViT, got 8; image_size decides how many tokens there are",
    ),
    (
        {"model": {**GPT2, "num_labels": 3}},
        "b.json: model.num_labels must be left out for a language model, got 3; its outputs are its vocabulary",
    ),
    (
        {"model": GPT2, "input": {"images": "photographs"}},
        "b.json: input.images must be left out for family 'gpt2', got 'photographs'; it reads text",
    ),
    (
        {"input": {"text": "books"}},
        "b.json: input.text must be left out for family 'vit', got 'books'; it reads images",
    ),
    (
        {"model": GPT2, "input": {"text": "/nowhere"}},
        "b.json: input.text must be 'sample', or a file or folder that exists, got '/nowhere'; "
        "relative paths begin where astra is started",
    ),
    (
        {"model": {**GPT2, "family": "llama"}, "strategies": [{"name": "astra", "num_groups": 3, "site": "kv"}]},
        "b.json: strategies[0].num_groups must be a divisor of the width of keys and values, 64, got 3; "
        "the nearest is 2",
    ),
    (
        {"model": {"size": "tiny"}},
        "b.json: model.image_size must be given, got nothing; add the key 'image_size'",
    ),
    (
        {"model": {"size": "tiny", "image_size": "64"}},
        "b.json: model.image_size must be a whole number, got '64'; write it without quotes and without a point",
    ),
    (
        {"model": {"size": "tiny", "image_size": 65}},
        "b.json: model.image_size must be a multiple of the patch size 16, got 65; the nearest is 64",
    ),
    (
        {"model": {**MODEL, "sede": 1}},
        "b.json: model must be a mapping without unknown keys, got 'sede'; did you mean 'seed'?",
    ),
    (
        {"model": {**MODEL, "seed": -1}},
        "b.json: model.seed must be at least 0, got -1; give a larger number",
    ),
    (
        {"model": {**MODEL, "checkpoint": "/nowhere"}},
        "b.json: model.checkpoint must be a folder with config.json and model.safetensors, got '/nowhere'; "
        "missing: config.json, model.safetensors",
    ),
    (
        {"model": 3},
        "b.json: model must be a mapping of keys to values, got 3; see the keys in the documentation",
    ),
    (
        {"request": 3},
        "b.json: the file must be a mapping without unknown keys, got 'request'; did you mean 'requests'?",
    ),
    (
        {"input": {"zzz": 3}},
        "b.json: input must be a mapping without unknown keys, got 'zzz'; known: images, text, placement, encoding",
    ),
    (
        {"input": {"placement": "terminals"}},
        "b.json: input.placement must be one of replicated, terminal, got 'terminals'; did you mean 'terminal'?",
    ),
    (
        {"input": {"encoding": "png"}},
        "b.json: input.encoding must be 'raw' where placement is 'replicated', since no image is sent, got 'png'; "
        "set placement to 'terminal', or leave encoding out",
    ),
    (
        {"input": {"images": "/nowhere"}},
        "b.json: input.images must be 'sample' or a folder that exists, got '/nowhere'; "
        "relative paths begin where astra is started",
    ),
    (
        {"strategies": []},
        "b.json: strategies must be a list of at least 1, got []; add an entry",
    ),
    (
        {"strategies": "single"},
        "b.json: strategies must be a list, got 'single'; put the entries in [ ]",
    ),
    (
        {"strategies": ["singel"]},
        "b.json: strategies[0].name must be one of single, tensor, sequence, pipeline, galaxy, block, prism, astra, "
        "auto, got 'singel'; did you mean 'single'?",
    ),
    (
        {"strategies": ["single", {"wire": "int8"}]},
        "b.json: strategies[1].name must be given, got nothing; add the key 'name'",
    ),
    (
        {"strategies": [{"name": "sequence", "wire": "int2"}]},
        "b.json: strategies[0].wire must be one of fp32, fp16, int8, int4, got 'int2'; did you mean 'int8'?",
    ),
    (
        {"strategies": ["prism"]},
        "b.json: strategies[0] must be given either num_segments or compression_ratio, got {'name': 'prism'}; the "
        "first counts means per device and layer",
    ),
    (
        {"strategies": [{"name": "astra", "groups": 1}]},
        "b.json: strategies[0] must be a mapping without unknown keys, got 'groups'; did you mean 'num_groups'?",
    ),
    (
        {"strategies": [{"name": "astra", "num_groups": 5}]},
        "b.json: strategies[0].num_groups must be a divisor of the model's width 64, got 5; the nearest is 4",
    ),
    (
        {"strategies": [{"name": "astra", "num_codewords": 1000}]},
        "b.json: strategies[0].num_codewords must be a power of two from 2 to 65536, got 1000; the paper uses 1024",
    ),
    (
        {"strategies": ["astra", {"name": "astra", "num_groups": 1}]},
        "b.json: strategies[1] must be different from strategies[0], got 'astra G=1'; remove it or change its settings",
    ),
    (
        {"strategies": ["astra", "single"]},
        "b.json: strategies[1] must be another strategy: single comes first, got 'single'; "
        "the others are compared with its answers and its latency",
    ),
    (
        {"requests": 0},
        "b.json: requests must be at least 1, got 0; give a larger number",
    ),
    (
        {"warmup": True},
        "b.json: warmup must be a whole number, got True; write it without quotes and without a point",
    ),
    (
        {"requests": 2.5},
        "b.json: requests must be a whole number, got 2.5; write it without quotes and without a point",
    ),
    (
        {"timeout_s": 0},
        "b.json: timeout_s must be greater than 0.0, got 0; give a larger number",
    ),
    (
        {"timeout_s": "60"},
        "b.json: timeout_s must be a number, got '60'; write it without quotes",
    ),
    (
        {"partition": [1, 0]},
        "b.json: partition must be 'even', 'cpus' or a list of numbers greater than 0, one per device, got [1, 0]; "
        "a device with weight 2 gets twice the work of one with weight 1",
    ),
    (
        {"partition": "uneven"},
        "b.json: partition must be 'even', 'cpus' or a list of numbers greater than 0, one per device, got 'uneven'; "
        "a device with weight 2 gets twice the work of one with weight 1",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CASES, ids=[json.dumps(changes) for changes, _ in CASES])
def test_config_fault_reads_exactly(changes: dict[str, Any], message: str):
    assert faults_of(changes) == [message]


def test_config_faults_are_reported_all_at_once():
    faults = faults_of(
        {
            "model": {"size": "tiny", "image_size": 60},
            "strategies": ["single", "voltage", {"name": "astra", "num_groups": 7}],
            "requests": 0,
            "rounds": 3,
        }
    )
    fields = ["strategies[1].name", "requests", "the file", "model.image_size", "strategies[2].num_groups"]
    assert [fault.split(": ")[1].split(" must")[0] for fault in faults] == fields


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "must be JSON, got Expecting property name"),
        ('{"requests": 1, "requests": 2}', "got the key 'requests' twice in one object"),
        ("[]", "b.json: the file must be a mapping of keys to values, got []"),
        ('{"timeout_s": NaN}', "b.json: timeout_s must be a finite number, got nan"),
    ],
)
def test_config_text_that_is_no_config_is_refused(text: str, fault: str):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, where="b.json")
    assert fault in str(caught.value)


def test_config_file_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.json: the file must be readable text, got .*No such file"):
        load_config(tmp_path / "none.json")


VIT_SMALL = {
    "model_type": "vit",
    "hidden_size": 384,
    "num_attention_heads": 6,
    "num_hidden_layers": 12,
    "intermediate_size": 1536,
    "patch_size": 16,
    "image_size": 224,
    "id2label": {str(number): f"LABEL_{number}" for number in range(7)},
}


def described(folder: Path, stored: dict[str, object]) -> dict[str, object]:
    """Return the `model` of a config that names a checkpoint which says `stored` of itself."""
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "model.safetensors").write_bytes(b"")
    return {"checkpoint": str(folder)}


def test_config_checkpoint_of_another_size_is_refused(tmp_path: Path):
    model = described(tmp_path, VIT_SMALL)
    [fault] = faults_of({"model": {**MODEL, **model}})
    assert "model.checkpoint must be a checkpoint of size 'tiny', got {'hidden_size': 384" in fault
    assert fault.endswith("leave size out to take the checkpoint's")
    config = parse({"model": {"size": "small", "image_size": 64, **model}})
    assert config.model.checkpoint == str(tmp_path)


def test_config_takes_what_is_left_out_from_the_checkpoint(tmp_path: Path):
    model = parse({"model": described(tmp_path, VIT_SMALL)}).model
    assert model.preset == PRESETS["vit"]["small"]
    assert (model.side, model.num_content_tokens, model.num_classes) == (224, 196, 7)
    assert parse({"model": described(tmp_path, VIT_SMALL) | {"image_size": 64}}).model.num_content_tokens == 16


def test_config_without_a_size_needs_a_folder():
    advice = "add the key 'size', or read it from a checkpoint's folder"
    for model in ({}, {"checkpoint": "nobody/nothing"}):
        assert faults_of({"model": {"image_size": 64, **model}}) == [
            f"b.json: model.size must be given, got nothing; {advice}"
        ]


@pytest.mark.parametrize(
    ("family", "changes", "fault"),
    [
        ("vit", {"hidden_size": "384"}, "hidden_size must be a whole number of at least 1, got '384'"),
        ("vit", {"num_attention_heads": 5}, "num_attention_heads must be a divisor of hidden_size 384, got 5"),
        ("vit", {"num_channels": 1}, "num_channels must be 3, got 1; use a plain model"),
        ("vit", {"model_type": "deit"}, "model_type must be 'vit', got 'deit'; known are vit, bert, gpt2, llama"),
        ("vit", {"model_type": "bert"}, "model_type must be 'vit', got 'bert'; set model.family to it"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute', got"),
        ("bert", {"is_decoder": True}, "is_decoder must be False, got True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False, got True"),
        ("llama", {"num_key_value_heads": 4}, "num_key_value_heads must be a divisor of num_attention_heads 6, got 4"),
        ("llama", {"head_dim": 128}, "head_dim must be hidden_size / num_attention_heads = 64, got 128"),
        ("llama", {"rope_scaling": {"type": "yarn"}}, "rope_type must be one of default, linear, llama3, "),
    ],
)
def test_config_checkpoint_of_an_unsupported_kind_is_refused(family: str, changes, fault: str, tmp_path: Path):
    """Alone, the same checkpoint without the changes is right."""
    text = {"vocab_size": 512, "max_position_embeddings": 64}
    gpt2 = {"n_embd": 384, "n_head": 6, "n_layer": 2, "n_positions": 64}
    stored = VIT_SMALL | {"model_type": family} | ({} if family == "vit" else text | gpt2)
    model = {"family": family} | ({} if family == "vit" else {"num_tokens": 8})
    parse({"model": model | described(tmp_path, stored)})
    [found] = faults_of({"model": model | described(tmp_path, stored | changes)})
    assert found.startswith(f"{tmp_path}/config.json: {fault}")


def test_config_checkpoint_whose_description_is_damaged_is_refused(tmp_path: Path):
    model = described(tmp_path, VIT_SMALL)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hid')
    [fault] = faults_of({"model": model})
    assert "config.json: file must be readable JSON, got" in fault


def test_config_checkpoint_that_describes_no_vit_is_refused(tmp_path: Path):
    [fault] = faults_of({"model": MODEL | described(tmp_path, {})})
    assert "config.json: model_type must be 'vit', got None; known are vit, bert, gpt2, llama" in fault


def test_config_image_folder_with_one_image_is_refused(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    [fault] = faults_of({"input": {"images": str(tmp_path)}})
    assert "input.images must be a folder with at least 2 images" in fault
    assert "got ['one.png']" in fault


def test_config_weights_follow_the_number_of_ranks():
    assert parse({}).weights(3) == (1.0, 1.0, 1.0)
    assert parse({"partition": "cpus"}).weights(2, cpus=[0.4, 0.2]) == (0.4, 0.2)
    config = parse({"partition": [1, 3]})
    assert config.weights(2) == (1.0, 3.0)
    with pytest.raises(
        ConfigError, match=r"partition must be 'even', 'cpus' or a list of 3 weights.*got \[1\.0, 3\.0\]"
    ):
        config.weights(3)


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        (PrismConfig(num_segments=10), "Ls=10"),
        (PrismConfig(compression_ratio=12.5, wire="int8"), "CR=12.5 wire=int8"),
        (BlockConfig(), "AG coupled=1"),
        (BlockConfig(exchange="sequence", num_blocks=8, wire="fp16"), "SP coupled=1 blocks=8 wire=fp16"),
        (PipelineConfig(), "wire=fp32"),
    ],
)
def test_config_settings_name_what_is_unusual(strategy: StrategyConfig, settings: str):
    assert strategy.settings == settings
