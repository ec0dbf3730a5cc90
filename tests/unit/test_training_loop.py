"""Trainings: what they leave, that a killed one goes on as if nothing had been, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from astra.codebook import CodebookSpec, load_codebooks
from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.models import load_model
from astra.training.loop import Settings
from astra.training.recipe import Recipe, parse_recipe
from astra.training.start import CONTROL_FOLDER, finetune, train
from astra.training.state import STATE_FILE, read_state

DIGITS = {"family": "vit", "size": "digits", "image_size": 8, "num_labels": 10}


def recipe(method: Any = None, **course: Any) -> Recipe:
    given = {"steps": 4, "batch_size": 16, "learning_rate": 0.001, "evaluate_every": 2, "validation_limit": 40}
    tree = {"model": DIGITS, "data": {"name": "digits"}, "train": given | course, "method": method}
    return parse_recipe(tree, where="test")


def silent(done: int, total: int, loss: float, look: object) -> None:
    pass


@pytest.fixture
def few_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_training_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    summary = train(recipe(), tmp_path / "out", Settings(), silent)
    model = load_model(ModelConfig(family="vit", checkpoint=str(tmp_path / "out"), image_size=8, num_labels=10))
    assert model.shape.width == 48
    assert summary.steps == 4
    assert {"config.json", "model.safetensors", "log.csv", "loss.png", "recipe.json", "summary.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert not (tmp_path / "out" / STATE_FILE).exists()


@pytest.mark.parametrize(
    "method", [None, {"name": "astra", "num_groups": 2, "num_codewords": 16}, {"name": "prism", "num_segments": 1}]
)
def test_bf16_learns_what_fp32_learns_and_keeps_fp32_weights(tmp_path: Path, method: Any) -> None:
    losses: dict[str | None, list[float]] = {}
    for precision in ("fp32", "bf16"):
        seen = losses.setdefault(precision, [])
        train(
            recipe(method),
            tmp_path / precision,
            Settings(precision=precision),
            lambda done, total, loss, look, seen=seen: seen.append(loss),
        )
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    stored = load_file(tmp_path / "bf16" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_astra_leaves_codebooks_and_a_control(tmp_path: Path) -> None:
    method = {"name": "astra", "num_groups": 2, "num_codewords": 16}
    summaries = finetune(recipe(method), tmp_path, Settings(), lambda _: silent)
    assert list(summaries) == ["control", "astra"]
    codebooks = load_codebooks(tmp_path, CodebookSpec(4, 48, 2, 16))
    assert len(codebooks) == 4
    assert (tmp_path / CONTROL_FOLDER / "model.safetensors").exists()
    assert not (tmp_path / CONTROL_FOLDER / "codebooks.safetensors").exists()


def test_control_of_an_equal_course_is_kept(tmp_path: Path) -> None:
    method = {"name": "prism", "num_segments": 1}
    finetune(recipe(method), tmp_path, Settings(), lambda _: silent)
    names: list[str] = []
    other = {"name": "prism", "num_segments": 2}
    finetune(recipe(other), tmp_path, Settings(), lambda name: names.append(name) or silent)  # type: ignore[func-returns-value]
    assert names == ["prism"]


def test_loss_goes_down(tmp_path: Path) -> None:
    train(recipe(steps=120, weight_std=0.08, learning_rate=0.003), tmp_path, Settings(), silent)
    losses = [
        float(line.split(",")[1]) for line in (tmp_path / "log.csv").read_text().splitlines()[1:] if ",,," not in line
    ]
    assert losses[-1] < 0.7 * losses[0]


def test_training_stops_early_and_keeps_the_best(tmp_path: Path) -> None:
    course = recipe(steps=40, evaluate_every=1, patience=2, learning_rate=1e-9)
    summary = train(course, tmp_path, Settings(judged_on="test"), silent)
    assert summary.steps == 3  # the first look is the best, two more are no better
    assert summary.kept_step == 1
    assert summary.test_value is not None


def test_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, few_threads: None) -> None:
    method = {"name": "astra", "num_groups": 1, "num_codewords": 16}
    wanted = recipe(method, steps=6)
    train(wanted, tmp_path / "whole", Settings(), silent)

    class KilledError(Exception):
        pass

    def kill(done: int, total: int, loss: float, look: object) -> None:
        raise KilledError

    import astra.training.loop as loop

    before, loop.LOG_EVERY = loop.LOG_EVERY, 4
    try:
        with pytest.raises(KilledError):
            train(wanted, tmp_path / "cut", Settings(state_every_s=0.0), kill)
    finally:
        loop.LOG_EVERY = before
    assert read_state(tmp_path / "cut")[0].step == 3
    train(wanted, tmp_path / "cut", Settings(resume=True), silent)
    for name in ("model.safetensors", "codebooks.safetensors", "summary.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_training_killed_by_the_kernel_goes_on_to_the_same_metric(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    wanted = recipe(steps=60, weight_std=0.08, learning_rate=0.003, evaluate_every=30)
    path.write_text(json.dumps(wanted.model_dump(mode="json")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def begin(out: str, *more: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "astra",
            "train",
            str(path),
            "--out",
            str(tmp_path / out),
            "--state-minutes",
            "0",
        ]
        return subprocess.Popen([*command, *more], env=environment, stderr=subprocess.DEVNULL)

    whole, cut = begin("whole"), begin("cut")
    state = tmp_path / "cut" / STATE_FILE
    deadline_s = time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    cut.send_signal(signal.SIGKILL)
    assert cut.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert begin("cut", "--resume").wait(90) == 0
    assert whole.wait(90) == 0
    assert (tmp_path / "cut" / "summary.json").read_text() == (tmp_path / "whole" / "summary.json").read_text()


def test_resuming_a_finished_training_says_what_it_came_to(tmp_path: Path) -> None:
    summary = train(recipe(), tmp_path, Settings(), silent)
    assert train(recipe(), tmp_path, Settings(resume=True), silent) == summary


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "state must be a whole file"),
        (lambda path: path.write_bytes(b""), "state must be a whole file"),
        (lambda path: path.unlink(), "state must be a whole file"),
    ],
    ids=["truncated", "empty", "missing"],
)
def test_damaged_state_is_refused(tmp_path: Path, spoil: Any, said: str) -> None:
    begun(tmp_path)
    spoil(tmp_path / STATE_FILE)
    with pytest.raises(ConfigError, match=said):
        train(recipe(), tmp_path, Settings(resume=True), silent)


def test_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ConfigError, match="recipe must be the one that was begun"):
        train(recipe(learning_rate=0.5), tmp_path, Settings(resume=True), silent)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ConfigError, match="folder must be empty or of an earlier training"):
        train(recipe(), tmp_path, Settings(), silent)
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_batch_larger_than_the_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at most the 8 training examples, got 16"):
        train(recipe(train_limit=8), tmp_path, Settings(), silent)


def test_missing_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--torch-device must be one of cpu on this machine, got 'cuda'"):
        train(recipe(), tmp_path, Settings(torch_device="cuda"), silent)


def begun(folder: Path) -> None:
    """Leave the state of a training that was cut off."""

    def stop(done: int, total: int, loss: float, look: object) -> None:
        raise KeyboardInterrupt

    import astra.training.loop as loop

    before, loop.LOG_EVERY = loop.LOG_EVERY, 2
    try:
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), folder, Settings(state_every_s=0.0), stop)
    finally:
        loop.LOG_EVERY = before
