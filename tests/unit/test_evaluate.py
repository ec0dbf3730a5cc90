"""`astra evaluate`: exact strategies answer as `single` does, in threads as over ZeroMQ, whatever the devices."""

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import free_port
from torch.nn import functional
from typer.testing import CliRunner

from astra.cli import app
from astra.codebook import load_codebooks
from astra.config import ModelConfig
from astra.data import Examples, load_examples, to_input
from astra.data_config import DataConfig
from astra.environment import Environment
from astra.errors import ConfigError
from astra.evaluation import run
from astra.evaluation.answering import unknown_ids
from astra.evaluation.config import EvaluationConfig, load_evaluation, parse_evaluation
from astra.evaluation.results import rows_of, table_of, write_results
from astra.fit import CodebookSpec
from astra.models import ModelAdapter, build_model, load_model, save_checkpoint
from astra.training.emulation import emulate_astra

torch.set_num_threads(1)  # ranks are threads already

EXACT = 1e-4  # relative, of a perplexity
EMULATED = 1e-5  # relative: the same operations in another order
EXACT_STRATEGIES: list[Any] = [{"name": "sequence"}, "tensor", "galaxy", "pipeline"]
ASTRA = {"name": "astra", "num_groups": 2, "num_codewords": 16}
PRISM = {"name": "prism", "num_segments": 2}
DIGITS = {
    "model": {"size": "digits", "image_size": 8, "num_labels": 10, "seed": 1},
    "data": {"name": "digits"},
    "limit": 50,
    "batch_size": 16,
}
TEXTS = {
    "model": {"family": "gpt2", "size": "tiny", "num_tokens": 24},
    "data": {"name": "python-docs"},
    "limit": 6,
    "batch_size": 4,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "cache"))


def config_of(base: dict[str, Any], strategies: list[Any], **more: Any) -> EvaluationConfig:
    return parse_evaluation({"timeout_s": 60.0} | base | {"strategies": strategies} | more, where="e.yaml")


def evaluated(config: EvaluationConfig) -> list[dict[str, Any]]:
    return rows_of(config, run.evaluate_here(config, lambda title, done, total: None))


def by_ranks(config: EvaluationConfig, world_size: int) -> list[dict[str, Any]]:
    """Evaluate with one rank a thread, over ZeroMQ on 127.0.0.1."""
    port, outcomes, errors = free_port(), list[Any](), list[BaseException]()

    def live(rank: int) -> None:
        environment = Environment(rank, world_size, "127.0.0.1", port, Path("unused"), 1)
        try:
            outcomes.extend(run.evaluate_as_rank(config, environment, lambda title, done, total: None))
        except BaseException as error:  # noqa: BLE001 -- raised again below
            errors.append(error)

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return rows_of(config, outcomes)


def test_exact_strategies_answer_as_single_on_any_number_of_devices() -> None:
    rows = evaluated(config_of(DIGITS, ["single", *EXACT_STRATEGIES], devices=[2, 4]))
    assert [row["devices"] for row in rows] == [1, 2, 4, 2, 4, 2, 4, 2, 4]
    assert {row["value"] for row in rows} == {rows[0]["value"]}
    assert {(row["answers_lost"], row["answers_gained"], row["mcnemar_p"]) for row in rows[1:]} == {(0, 0, 1.0)}
    assert {row["change_vs_single"] for row in rows} == {0.0}


def test_single_has_the_accuracy_of_the_model_itself() -> None:
    (row,) = evaluated(config_of(DIGITS, ["single"]))
    model = ModelConfig(size="digits", image_size=8, num_labels=10, seed=1)
    examples = load_examples(DataConfig(name="digits"), model, "test", limit=50)
    with torch.inference_mode():
        logits_NC = load_model(model).forward(to_input(examples.inputs))
    assert row["value"] == np.mean(logits_NC.argmax(dim=1).numpy() == examples.labels)
    assert row["examples"] == 50


def test_threads_and_ranks_over_zeromq_come_to_the_same_numbers() -> None:
    config = config_of(DIGITS, ["single", {"name": "sequence", "wire": "int4"}, PRISM, ASTRA], devices=[3])
    here = evaluated(config)  # also fits the codebooks, which ranks must find
    assert by_ranks(config, 3) == here


def test_perplexity_of_exact_strategies_is_that_of_single_and_by_ranks_too() -> None:
    config = config_of(TEXTS, ["single", *EXACT_STRATEGIES], devices=[3], partition=[3.0, 1.0, 2.0])
    rows = evaluated(config)
    assert {row["metric"] for row in rows} == {"perplexity"}
    for row in rows:
        assert row["value"] == pytest.approx(rows[0]["value"], rel=EXACT)
    over_network = by_ranks(config_of(TEXTS, ["single", "sequence"], devices=[2]), 2)
    for row in over_network:
        assert row["value"] == pytest.approx(rows[0]["value"], rel=EXACT)


def test_perplexity_of_single_is_exp_of_the_mean_cross_entropy() -> None:
    (row,) = evaluated(config_of(TEXTS, ["single"]))
    model, examples, labels = _texts()
    x_BTD = model.embed(to_input(examples.inputs))
    logits = _whole(model, x_BTD)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert row["value"] == pytest.approx(math.exp(float(expected)), rel=EXACT)


def test_perplexity_of_astra_is_that_of_its_emulation() -> None:
    config = config_of(TEXTS, ["single", ASTRA], devices=[2])
    row = evaluated(config)[1]
    model, examples, labels = _texts()
    (need,) = run.evaluation_needs(config)
    codebooks = load_codebooks(need.folder, CodebookSpec(model.shape.num_layers, model.shape.width, 2, 16))

    def quantise(layer: int, u: torch.Tensor) -> torch.Tensor:
        return codebooks[layer].decode(codebooks[layer].encode(u.flatten(0, -2))).view(u.shape)

    owners = torch.repeat_interleave(torch.arange(2), 12)
    with torch.inference_mode():
        emulated = emulate_astra(model, to_input(examples.inputs), owners, 2, quantise=quantise)
        logits = model.head(emulated.content_BTD)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert row["value"] == pytest.approx(math.exp(float(expected)), rel=EMULATED)


def _texts() -> tuple[ModelAdapter, Examples, torch.Tensor]:
    config = ModelConfig.model_validate(TEXTS["model"])
    examples = load_examples(DataConfig(name="python-docs"), config, "test", limit=6)
    return load_model(config), examples, torch.from_numpy(examples.labels)


@torch.inference_mode()
def _whole(model: ModelAdapter, x_BTD: torch.Tensor) -> torch.Tensor:
    from astra.models.block import run_blocks

    return model.head(run_blocks(model.blocks, x_BTD, causal=True))


def test_weights_of_a_strategy_and_seeds_in_their_names(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        config = ModelConfig(size="digits", image_size=8, num_labels=10, seed=seed)
        save_checkpoint(tmp_path / f"tuned-{seed}", build_model(config))
    tuned = str(tmp_path / "tuned-{seed}")
    strategies = ["single", {"name": "single", "checkpoint": tuned}, PRISM | {"checkpoint": tuned}]
    config = config_of(DIGITS | {"model": {"checkpoint": str(tmp_path / "tuned-1")}}, strategies, seeds=[0, 1, 2])
    outcomes = run.evaluate_here(config, lambda title, done, total: None)
    plain, control, prism = rows_of(config, outcomes)
    values = [outcome.answers.value("accuracy") for outcome in outcomes if outcome.index == 1]
    assert (plain["seeds"], control["seeds"], prism["seeds"]) == (1, 3, 3)
    assert plain["spread"] is None
    assert control["value"] == pytest.approx(np.mean(values))
    assert control["spread"] == pytest.approx(np.std(values, ddof=1))
    assert values[1] == plain["value"]
    assert control["settings"] == "weights=tuned-*"


def test_random_partitions_follow_from_the_seed_and_have_their_fpar() -> None:
    config = config_of(DIGITS, ["single", ASTRA], partition="random", seeds=[3, 4], devices=[3])
    outcomes = run.evaluate_here(config, lambda title, done, total: None)
    splits = [outcome.ranges for outcome in outcomes if outcome.index == 1]
    again = [cell.weights for cell in run.cells_of(config) if cell.index == 1]
    assert splits[0] != splits[1]
    assert again == [cell.weights for cell in run.cells_of(config) if cell.index == 1]
    row = rows_of(config, outcomes)[1]
    expected = [sum(len(tokens) ** 2 for tokens in ranges) / 16**2 for ranges in splits]
    assert row["fpar"] == pytest.approx(np.mean(expected))
    assert (row["bits_per_token"], row["compression_ratio"]) == (4 * 2 * 4, 48 * 32 / 8)


def test_cloze_takes_the_likeliest_candidate() -> None:
    model, examples, _ = _texts()
    inputs = examples.inputs.reshape(2, 3, -1)
    labels = np.full(inputs.shape, -100)
    labels[..., 10:14] = inputs[..., 11:15]
    cloze = Examples(inputs, labels, "cloze", None, ("accuracy",), np.array([0, 1]))
    with torch.inference_mode():
        log_NCTV = _whole(model, model.embed(to_input(inputs.reshape(6, -1)))).log_softmax(-1)
    costs = [-float(log_NCTV[text, range(10, 14), labels.reshape(6, -1)[text, 10:14]].sum()) for text in range(6)]
    chosen = np.array(costs).reshape(2, 3).argmin(axis=1)
    config = config_of(TEXTS, ["single", "sequence"], devices=[2])
    subject = run._Subject(config, run.cells_of(config))
    subject.examples = cloze
    for cell, job in zip(run.cells_of(config), subject.jobs, strict=True):
        (answers,) = run._in_threads(subject, cell, job, config, lambda title, done, total: None)
        assert answers.predictions_N is not None
        assert answers.predictions_N.tolist() == chosen.tolist()
        assert answers.value("accuracy") == np.mean(chosen == [0, 1])


def test_results_are_written_and_shown(tmp_path: Path) -> None:
    config = config_of(DIGITS, ["single", ASTRA], devices=[2])
    outcomes = run.evaluate_here(config, lambda title, done, total: None)
    rows = write_results(tmp_path, config, outcomes)
    lines = (tmp_path / "evaluation.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[0].startswith("strategy,settings,devices,metric,value,spread,seeds,examples,change_vs_single,")
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert [each["devices"] for each in record["runs"]] == [1, 2]
    assert record["rows"] == json.loads(json.dumps(rows))
    assert table_of(rows).row_count == 2


def test_a_set_that_the_model_cannot_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_labels must be 10 for digits, got 3"):
        evaluated(config_of(DIGITS | {"model": {"size": "digits", "image_size": 8, "num_labels": 3}}, ["single"]))
    model, examples, _ = _texts()
    too_high = replace(examples, inputs=np.full_like(examples.inputs, model.shape.vocabulary))
    (fault,) = unknown_ids(too_high, model.shape)
    assert "token ids must be below the model's vocabulary" in fault


def test_what_cannot_be_spread_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"tensor wire=fp32, 3 devices, seed 0: .*must divide the model's"):
        evaluated(config_of(DIGITS, ["single", "tensor"], devices=[3]))


def test_datagrams_need_devices() -> None:
    with pytest.raises(ConfigError, match=r"strategies\[0\].transport must be 'reliable' in one process"):
        evaluated(config_of(DIGITS, [ASTRA | {"transport": "datagram"}]))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"devices": [0]}, "e.yaml: devices[0] must be at least 1, got 0; give a larger number"),
        ({"seed": 3}, "e.yaml: the file must be a mapping without unknown keys, got 'seed'; did you mean 'seeds'?"),
        ({"partition": "cpus"}, "e.yaml: partition must be 'even', 'random' or a list of numbers greater than 0"),
        ({"partition": [1, 2], "devices": [3]}, "e.yaml: the file must be an evaluation whose devices are [2]"),
        ({"strategies": ["tensor", "single"]}, "e.yaml: strategies[1] must be another strategy: single comes first"),
        ({"data": {"name": "digit"}}, "e.yaml: data.name must be one of digits, "),
        (
            {"strategies": [{"name": "single", "checkpoint": "nowhere-{seed}"}], "seeds": [7]},
            "e.yaml: strategies[0].checkpoint must be a folder with config.json and model.safetensors, got 'nowhere-7'",
        ),
    ],
)
def test_config_faults_say_what_to_do(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_evaluation(DIGITS | {"strategies": ["single"]} | change, where="e.yaml")
    assert str(error.value).startswith(fault)


def test_cli_evaluates_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(
        "model: {size: digits, image_size: 8, num_labels: 10}\ndata: {name: digits}\nstrategies: [single, sequence]\n"
    )
    command = ["evaluate", str(path), "--devices", "2,3", "--limit", "20", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "sequence wire=fp32" in result.stdout
    assert len((tmp_path / "out" / "evaluation.csv").read_text().splitlines()) == 4
    config = load_evaluation(path, {"devices": [2, 3], "data.folder": "somewhere"} | {"data.name": "cifar10"})
    assert (config.devices, config.data.folder) == ((2, 3), "somewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml"], "no.yaml: the file must be readable text"),
        (["e.yaml", "--devices", "2;3"], "astra: --devices must be whole numbers with commas between them, got '2;3'"),
        (["e.yaml", "--data", "somewhere"], "e.yaml: data must be a set of files where folder is given"),
        (["list.yaml"], "list.yaml: the file must be a mapping of keys to values, got [1]"),
        ([], "--config must name a file"),
    ],
)
def test_cli_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TESTBED_CONFIG", raising=False)
    Path("e.yaml").write_text(json.dumps(DIGITS | {"strategies": ["single"]}))
    Path("list.yaml").write_text("[1]")
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    assert result.exit_code == 2
    assert message in result.output
