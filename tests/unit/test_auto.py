"""`auto`: all ranks run what rank 0 predicts to be the fastest, and tables say so."""

import json
from pathlib import Path
from typing import Any

import pytest
from worker_worlds import served

import astra.survey
from astra.collectives import Collectives
from astra.config import BenchConfig, ModelConfig
from astra.config_file import parse_config
from astra.errors import AstraError, ConfigError
from astra.models import load_model
from astra.planning.links import LinkSpeed
from astra.planning.speed import Speed
from astra.planning.work import KINDS
from astra.survey import Survey
from astra.transport import framed_size
from astra.transport.inproc import connect

MODEL = {"family": "vit", "size": "tiny", "image_size": 80}
CHOICE = {"name": "auto", "among": ["single", {"name": "sequence", "wire": "int8"}]}


def config(*strategies: Any, **changes: Any) -> BenchConfig:
    wanted = {"model": MODEL, "strategies": list(strategies), "requests": 2, "warmup": 1, **changes}
    return parse_config(json.dumps(wanted), where="bench.json", command="bench")


def between(monkeypatch: pytest.MonkeyPatch, rate_bps: float) -> None:
    """Let ranks find that a dense operation takes a microsecond, and that links have this rate."""
    speed = Speed(seconds_per={kind: 1e-6 if kind == "dense" else 0.0 for kind in KINDS})
    links = [(a, b, LinkSpeed(rate_bps)) for a in range(2) for b in range(2) if a != b]
    monkeypatch.setattr(astra.survey, "measure_speed", lambda *_: speed)
    monkeypatch.setattr(astra.survey, "measure_links", lambda each: (links if each.rank == 0 else [], None))


@pytest.mark.parametrize(("rate_bps", "chosen"), [(1e3, "-> single"), (1e9, "-> sequence wire=int8")])
def test_auto_takes_the_best_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_bps: float, chosen: str
) -> None:
    between(monkeypatch, rate_bps)
    world = served(config("single", *CHOICE["among"][1:], CHOICE), tmp_path)
    (auto,) = [row for row in world.notebooks[0].rows["summary"] if row["strategy"] == "auto"]
    assert auto["settings"] == chosen
    predictions = world.notebooks[0].rows["predictions"]
    assert [row["strategy"] for row in predictions] == ["single", "sequence", "auto"]
    assert auto["latency_predicted_s"] == min(row["latency_predicted_s"] for row in predictions)  # type: ignore[type-var]
    assert auto["agreement_top1_pct"] == 100
    assert f"auto {chosen}:begin" in world.notebooks[1].marks


def test_every_strategy_has_a_prediction_beside_its_measurement(tmp_path: Path) -> None:
    world = served(config("single", {"name": "sequence"}, {"name": "tensor"}, predict=True), tmp_path)
    for row in world.notebooks[0].rows["summary"]:
        assert isinstance(row["latency_predicted_s"], float)
        assert row["latency_predicted_s"] > 0
    assert all("predictions" not in notebook.rows for notebook in world.notebooks[1:])


def test_nothing_is_measured_or_sent_unless_it_is_asked_for(tmp_path: Path) -> None:
    world = served(config("single", "sequence"), tmp_path)
    assert [row["latency_predicted_s"] for row in world.notebooks[0].rows["summary"]] == [None, None]
    assert "predictions" not in world.notebooks[0].rows
    phases = {tag.phase for recorder in world.recorders for _, tag, _ in recorder.sent}
    assert phases == {"start", "done", "ready", "end", "counters", "timeline", "slice"}


def test_encrypted_messages_are_predicted_to_be_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    between(monkeypatch, 1e6)
    wanted, model = config("single", "sequence"), load_model(ModelConfig.model_validate(MODEL))
    (transport,) = connect(1)
    sent_bytes = []
    for curve in (False, True):
        survey = Survey(None, curve=curve)
        survey.take(model, Collectives(transport, 1.0), [0, 1])
        found = survey.predict(wanted, wanted.candidates, model, (1.0, 1.0), [0, 1]).prospects[1].forecast
        assert found is not None
        sent_bytes.append(found.busiest_link_bytes)
    messages = model.shape.num_layers + 1  # slices, and the word to begin
    assert sent_bytes[1] - sent_bytes[0] == messages * (framed_size(0, curve=True) - framed_size(0))


def test_auto_passes_over_what_cannot_be_split(tmp_path: Path) -> None:
    choice = {"name": "auto", "among": [{"name": "block", "num_blocks": 2}, {"name": "sequence"}]}
    world = served(config("single", choice), tmp_path, world_size=3)
    assert world.notebooks[0].rows["summary"][-1]["settings"] == "-> sequence wire=fp32"


def test_auto_without_a_possible_strategy_names_what_is_in_the_way(tmp_path: Path) -> None:
    choice = {"name": "auto", "among": [{"name": "block", "num_blocks": 2}]}
    with pytest.raises(AstraError, match="no strategy of `among` can be used here: num_blocks must be at least one"):
        served(config("single", choice), tmp_path, world_size=3)


@pytest.mark.parametrize(
    ("strategies", "fault"),
    [
        (["single", "auto"], "bench.json: strategies[1].among must be given, got nothing; add the key 'among'"),
        (
            ["single", {"name": "auto", "among": [{"name": "astra", "num_groups": 5}]}],
            "bench.json: strategies[1].among[0].num_groups must be a divisor of the model's width 64, got 5; "
            "the nearest is 4",
        ),
        (
            ["single", CHOICE, CHOICE],
            "bench.json: strategies[2] must be different from strategies[1], got 'auto'; "
            "remove it or change its settings",
        ),
        (
            [{"name": "auto", "among": [{"name": "auto", "among": ["single"]}]}],
            "bench.json: strategies[0].among[0].name must be one of single, tensor, sequence, pipeline, galaxy, block, "
            "prism, astra, got 'auto'; choose one of them",
        ),
    ],
)
def test_auto_config_faults(strategies: list[Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*strategies)
    assert fault in caught.value.faults


def test_auto_is_not_for_generation_or_labelled_sets() -> None:
    with pytest.raises(ConfigError, match="accuracy must be left out where a strategy is 'auto'"):
        config("single", CHOICE, accuracy={"data": {"name": "digits"}})
    wanted = {
        "model": {"family": "gpt2", "size": "tiny", "num_tokens": 8},
        "strategies": ["single", CHOICE],
        "generation": {"max_new_tokens": 2},
    }
    with pytest.raises(ConfigError, match=r"strategies\[1\].name must be one of .* to generate, got 'auto'"):
        parse_config(json.dumps(wanted), where="generate.json", command="generate")


def test_generation_is_not_predicted() -> None:
    model = {"family": "gpt2", "size": "tiny", "num_tokens": 8}
    wanted = {"model": model, "strategies": ["single"], "generation": {"max_new_tokens": 2}, "predict": True}
    with pytest.raises(ConfigError) as caught:
        parse_config(json.dumps(wanted), where="generate.json", command="generate")
    fault = "generate.json: predict must be left out to generate, got True; or run `astra bench`"
    assert caught.value.faults == (fault,)
