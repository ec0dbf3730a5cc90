"""What `astra generate --check` says about a config that cannot generate."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from loopback import free_port
from typer.testing import CliRunner

from astra.cli import app
from astra.decoding import DECODERS
from astra.generation_faults import GENERATING_STRATEGIES
from astra.strategy_config import AnyStrategy

CONFIG: dict[str, Any] = {
    "model": {"family": "gpt2", "size": "tiny", "num_tokens": 1000},
    "strategies": ["single", "sequence"],
    "generation": {"max_new_tokens": 25},
}
FAULTS = {
    "no generation": (
        {"generation": None},
        "generation must be given, got nothing; add the key 'generation'",
    ),
    "no tokens": (
        {"generation": {"max_new_tokens": 0}},
        "generation.max_new_tokens must be at least 1, got 0; give a larger number",
    ),
    "too many tokens": (
        {"generation": {"max_new_tokens": 26}},
        "generation.max_new_tokens must be at most 25 after a prompt of 1000 tokens, as the model has 1024 positions, "
        "got 26; ask for fewer tokens or use a shorter prompt",
    ),
    "too long a prompt": (
        {"model": {"family": "gpt2", "size": "tiny", "num_tokens": 1025}},
        "model.num_tokens must be at most the model's 1024 positions to generate, got 1025; use a shorter prompt",
    ),
    "vit": (
        {"model": {"family": "vit", "size": "tiny", "image_size": 32}},
        "model.family must be one of gpt2, llama to generate, got 'vit'; run `astra bench` for the others",
    ),
    "bert": (
        {"model": {"family": "bert", "size": "tiny", "num_tokens": 32}},
        "model.family must be one of gpt2, llama to generate, got 'bert'; run `astra bench` for the others",
    ),
    "block": (
        {"strategies": ["single", "block"]},
        "strategies[1].name must be one of single, tensor, sequence, pipeline, galaxy, prism, astra to generate, "
        "got 'block'; run `astra bench` for the others",
    ),
    "top_k of the best": (
        {"generation": {"max_new_tokens": 2, "top_k": 5}},
        "generation.top_k must be left out where temperature is 0, got 5; "
        "the best token is taken; raise temperature to draw",
    ),
    "cold": (
        {"generation": {"max_new_tokens": 2, "temperature": -1.0}},
        "generation.temperature must be at least 0.0, got -1.0; give a larger number",
    ),
    "unknown": (
        {"generation": {"max_new_tokens": 2, "top_p": 0.9}},
        "generation must be a mapping without unknown keys, got 'top_p'; did you mean 'top_k'?",
    ),
}


def check(folder: Path, command: str, changes: dict[str, Any]) -> tuple[int, str, str]:
    path = folder / "texts.json"
    path.write_text(json.dumps(CONFIG | changes))
    result = CliRunner().invoke(app, [command, "--check", "--config", str(path)])
    return result.exit_code, result.stdout, result.stderr


def test_check_accepts_what_can_generate(tmp_path: Path) -> None:
    assert check(tmp_path, "generate", {}) == (0, "texts.json: no mistakes found\n", "")


@pytest.mark.parametrize("name", FAULTS)
def test_check_refuses_what_cannot_generate(tmp_path: Path, name: str) -> None:
    changes, fault = FAULTS[name]
    assert check(tmp_path, "generate", changes) == (2, "", f"texts.json: {fault}\n")


def test_check_reports_all_faults_at_once(tmp_path: Path) -> None:
    changes = {"generation": {"max_new_tokens": 26, "top_k": 1}, "strategies": ["block"]}
    code, _, errors = check(tmp_path, "generate", changes)
    assert (code, len(errors.splitlines())) == (2, 3)


def test_bench_refuses_to_generate(tmp_path: Path) -> None:
    code, _, errors = check(tmp_path, "bench", {})
    assert code == 2
    assert errors == ("texts.json: generation must be left out, got {'max_new_tokens': 25}; or run `astra generate`\n")
    assert check(tmp_path, "bench", {"generation": None})[0] == 0


def test_lengths_are_those_of_a_checkpoint(tmp_path: Path) -> None:
    sizes = {"n_positions": 64, "n_embd": 64, "n_head": 4, "n_layer": 4, "vocab_size": 512}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | sizes))
    (tmp_path / "model.safetensors").touch()
    model = {"family": "gpt2", "size": "tiny", "num_tokens": 60, "checkpoint": str(tmp_path)}
    _, _, errors = check(tmp_path, "generate", {"model": model})
    assert "max_new_tokens must be at most 5 after a prompt of 60 tokens, as the model has 64 positions" in errors


def test_every_strategy_generates_or_is_refused() -> None:
    assert set(DECODERS) == set(GENERATING_STRATEGIES)
    names = {kind.model_fields["name"].default for kind in get_args(AnyStrategy)}
    assert names - set(DECODERS) == {"block"}


def test_check_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(CONFIG))
    code = (
        "import sys; from astra.cli import app; "
        f"app(['generate', '--check', '--config', {str(tmp_path / 'texts.json')!r}], standalone_mode=False); "
        "print(sorted({'torch', 'transformers', 'sklearn', 'zmq', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["texts.json: no mistakes found", "[]"]


def test_generate_alone_streams_to_stdout_and_writes_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place: dict[str, Any] = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    place["TESTBED_OUT"] = tmp_path
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TESTBED_SOCKET", raising=False)
    monkeypatch.setattr("astra.rank.SETTLE_S", 0.0)
    changes = {"model": {"family": "llama", "size": "tiny", "num_tokens": 9}, "requests": 1, "warmup": 0}
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(CONFIG | changes | {"strategies": ["single"], "generation": {"max_new_tokens": 3}}))
    result = CliRunner().invoke(app, ["generate", "--config", str(path)])
    assert (result.exit_code, result.stderr) == (0, "single:begin\nsingle:prefill 0\nsingle:decode 0\n")
    assert result.stdout.startswith("\nsingle, text 1: ")
    assert len(result.stdout.strip().removeprefix("single, text 1:")) > 0
    assert (
        (tmp_path / "summary.csv").read_text().startswith("strategy,settings,placement,requests,tokens,time_to_first")
    )
