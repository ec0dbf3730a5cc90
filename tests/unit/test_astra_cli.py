"""The command line: exit codes, what goes to which stream, and what a check does not import."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from loopback import free_port
from typer.testing import CliRunner

from astra.cli import app

CONFIG: dict[str, Any] = {
    "model": {"size": "tiny", "image_size": 64},
    "strategies": ["single", {"name": "astra", "num_codewords": 2}],
    "timeout_s": 0.5,
}


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TESTBED_CONFIG", "TESTBED_SOCKET", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TESTBED_OUT", str(tmp_path / "out"))


def write(folder: Path, **changes: Any) -> str:
    path = folder / "bench.json"
    path.write_text(json.dumps(CONFIG | changes))
    return str(path)


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), prog_name="astra")
    return result.exit_code, result.stdout, result.stderr


def test_cli_prints_its_version():
    assert invoke("--version") == (0, f"astra {version('astra-testbed')}\n", "")


def test_cli_check_accepts_a_good_config(tmp_path: Path):
    assert invoke("bench", "--check", "--config", write(tmp_path)) == (0, "bench.json: no mistakes found\n", "")


def test_cli_check_prints_every_fault_and_exits_2(tmp_path: Path):
    code, _, errors = invoke("bench", "--check", "--config", write(tmp_path, requests=0, rounds=1))
    assert code == 2
    assert errors.splitlines() == [
        "bench.json: requests must be at least 1, got 0; give a larger number",
        "bench.json: the file must be a mapping without unknown keys, got 'rounds'; "
        "known: model, input, strategies, requests, warmup, partition, generation, accuracy, timeout_s, failures, "
        "predict",
    ]


@pytest.mark.parametrize("arguments", [("bench", "--check"), ("bench",), ("fit",)])
def test_cli_refuses_a_shape_that_is_only_planned_with(tmp_path: Path, arguments: tuple[str, ...]):
    model = {"family": "llama", "size": "llama-3-8b", "num_tokens": 1024}
    code, _, stderr = invoke(*arguments, "--config", write(tmp_path, model=model))
    assert code == 2
    assert stderr == (
        "bench.json: model.size must be one of tiny, small, medium to be run, got 'llama-3-8b'; "
        "llama-3-8b only serves to predict traffic\n"
    )


def test_cli_check_finds_files_missing_from_a_checkpoint(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    model = CONFIG["model"] | {"checkpoint": str(tmp_path)}
    code, _, errors = invoke("bench", "--check", "--config", write(tmp_path, model=model))
    assert code == 2
    assert errors.endswith("missing: model.safetensors\n")


def test_cli_check_imports_nothing_heavy(tmp_path: Path):
    """torch and transformers take seconds; the testbed checks a scenario before every run."""
    code = (
        "import sys; from astra.cli import app; "
        f"app(['bench', '--check', '--config', {write(tmp_path)!r}], standalone_mode=False); "
        "print(sorted({'torch', 'transformers', 'sklearn', 'zmq', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["bench.json: no mistakes found", "[]"]


def test_cli_takes_the_config_that_the_testbed_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TESTBED_CONFIG", write(tmp_path))
    assert invoke("bench", "--check")[0] == 0


@pytest.mark.parametrize("command", ["bench", "fit"])
def test_cli_without_a_config_says_where_to_name_one(command: str):
    assert invoke(command) == (
        2,
        "",
        "astra: --config must name a file, got nothing; give it, or set TESTBED_CONFIG as `testbed` does\n",
    )


def test_cli_bench_without_ranks_names_the_variables(tmp_path: Path):
    code, _, errors = invoke("bench", "--config", write(tmp_path))
    assert code == 2
    assert [line.split()[1] for line in errors.splitlines()] == ["WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR"]


def test_cli_bench_without_codebooks_points_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place(monkeypatch, rank=0, world_size=1)
    code, _, errors = invoke("bench", "--config", write(tmp_path))
    assert code == 2
    assert "astra G=1 K=2: codebooks must be fitted before" in errors
    assert errors.endswith("run `astra fit` with this config\n")


def test_cli_bench_whose_peers_never_come_exits_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place(monkeypatch, rank=0, world_size=3)
    code, _, errors = invoke("bench", "--config", write(tmp_path, strategies=["single"]))
    assert code == 1
    assert len(errors.splitlines()) == 1
    assert "waited 0.5 s for ranks 1, 2 to show up" in errors


def test_cli_bench_alone_writes_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place(monkeypatch, rank=0, world_size=1)
    monkeypatch.setattr("astra.rank.SETTLE_S", 0.0)
    code, _, errors = invoke("bench", "--config", write(tmp_path, strategies=["single"], requests=2, warmup=0))
    assert (code, errors) == (0, "single:begin\nsingle: 1/2\nsingle: 2/2\nsingle:end\n")
    assert (tmp_path / "out" / "summary.csv").read_text().startswith("strategy,settings,placement,requests,")


def test_cli_fit_says_what_it_fitted_and_what_was_there(tmp_path: Path):
    config = write(tmp_path)
    code, _, lines = invoke("fit", "--config", config)
    assert code == 0
    assert lines.splitlines()[0] == "fit astra G=1 K=2: 1/4"
    assert "fit: 1 fitted, 0 found in the cache, " in lines
    code, _, lines = invoke("fit", "--config", config)
    assert code == 0
    assert lines.startswith("fit: 0 fitted, 1 found in the cache, ")


def test_cli_fit_without_astra_has_nothing_to_do(tmp_path: Path):
    assert invoke("fit", "--config", write(tmp_path, strategies=["single"])) == (
        0,
        "",
        "fit: no strategy needs codebooks\n",
    )


def place(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    variables = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
