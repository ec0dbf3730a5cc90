"""`code_bits: auto`: as many bits as links carry in time, more where fewer lose most, the same on all ranks."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datagram_worlds import serve as serve_datagrams
from strategy_worlds import CONFIGS, inputs_for, lively, serve
from worker_worlds import World, served

import astra.survey
from astra.bit_choice import LEAST_SHARE, MARGIN, Situation, choose_bits, raises
from astra.clustering import fit_codebooks
from astra.codebook import GroupedCodebook, save_codebooks
from astra.config import AstraConfig, BenchConfig, ModelConfig, SingleConfig
from astra.config_file import parse_config
from astra.errors import ConfigError
from astra.evaluation.config import parse_evaluation
from astra.evaluation.cost import bits_per_token
from astra.fit import bench_needs, ensure_fitted
from astra.models import planned_shape
from astra.nesting import losses, nested
from astra.planning.links import Links, LinkSpeed
from astra.planning.speed import Device, Speed
from astra.planning.work import KINDS
from astra.strategies import predict_messages
from astra.strategy_config import bits_text
from astra.traffic import bytes_of
from astra.transport_config import DatagramConfig

SHAPE = planned_shape(CONFIGS["vit"])
ASTRA = AstraConfig(num_groups=16)
MOST, LEAST = 10, 6
ALIKE = [[2.0**-bits for bits in range(MOST + 1)]] * SHAPE.num_layers
FAST, SLOW = 1e10, 1e3
RATES = [4e6 * 1.01**step for step in range(60)]
"""Bit/s, from one at which nothing is sent in time to one at which everything is."""
WORLD_SIZE = 3


def core(dense_s: float = 1e-9) -> Speed:
    """Return a speed at which only products count."""
    return Speed(seconds_per={kind: dense_s if kind == "dense" else 0.0 for kind in KINDS})


def situation(rate_bps: float, *, delay_s: float = 0.0, slow_core: float = 1.0) -> Situation:
    devices = [Device(core()), Device(core(1e-9 * slow_core))]
    return Situation(SHAPE, (1.0, 1.0), devices, Links(LinkSpeed(rate_bps, delay_s)))


# What is chosen


def test_fast_links_carry_all_bits_and_slow_ones_never_fewer_than_the_floor() -> None:
    assert math.ceil(LEAST_SHARE * MOST) == LEAST
    assert choose_bits(ASTRA, situation(FAST), ALIKE) == (MOST,) * SHAPE.num_layers
    assert choose_bits(ASTRA, situation(SLOW), ALIKE) == (LEAST,) * SHAPE.num_layers


def test_bits_rise_with_the_rate_as_long_as_they_are_sent_in_time() -> None:
    chosen = [choose_bits(ASTRA, situation(rate), ALIKE) for rate in RATES]
    totals = [sum(bits) for bits in chosen]
    assert totals == sorted(totals)
    assert (totals[0], totals[-1]) == (SHAPE.num_layers * LEAST, SHAPE.num_layers * MOST)
    assert len(set(totals)) > 10
    for rate, bits in zip(RATES, chosen, strict=True):
        if min(bits) > LEAST and max(bits) < MOST:
            assert situation(rate).sends_in_time(ASTRA, bits, MARGIN)
            assert not situation(rate).sends_in_time(ASTRA, tuple(count + 1 for count in bits), MARGIN)


def test_slow_peers_and_long_ways_are_not_taken_for_slow_links() -> None:
    whole = (MOST,) * SHAPE.num_layers
    assert choose_bits(ASTRA, situation(FAST, slow_core=1000), ALIKE) == whole
    assert choose_bits(ASTRA, situation(FAST, delay_s=0.05), ALIKE) == whole


def test_layers_that_lose_most_get_the_bits_of_the_margin() -> None:
    uneven = [[loss * (100 if layer == 2 else 1) for loss in each] for layer, each in enumerate(ALIKE)]
    different = [bits for rate in RATES if len(set(bits := choose_bits(ASTRA, situation(rate), uneven))) > 1]
    assert different
    assert all(bits[2] == max(bits) for bits in different)
    assert any(bits[2] > max(bits[:2] + bits[3:]) + 1 for bits in different)


def test_bits_are_added_where_they_save_most() -> None:
    steps = raises((1, 1), [[1.0, 0.5, 0.4, 0.3], [1.0, 0.9, 0.2, 0.19]])
    assert steps == [(1, 1), (1, 2), (2, 2), (3, 2), (3, 3)]


def test_losses_are_what_prefixes_leave_of_the_codewords() -> None:
    near = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    lost = losses(nested(GroupedCodebook(near.view(1, 4, 1))).codewords_GKd)
    assert lost == pytest.approx([1.0, 0.1, 0.0], abs=1e-6)
    assert losses(torch.ones(2, 4, 3)) == [0.0, 0.0, 0.0]


# Layer by layer

SIZES = {"num_groups": 4, "num_codewords": 16}
LAYERED = (4, 2, 3, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where nested codebooks of the lively ViT lie."""
    model, made = lively("vit"), tmp_path_factory.mktemp("nested")
    codebooks = fit_codebooks(model, inputs_for(model), SIZES["num_groups"], SIZES["num_codewords"], seed=0)
    save_codebooks(made, [nested(each) for each in codebooks])
    return made


def test_layers_may_have_different_bits(folder: Path) -> None:
    model = lively("vit")
    config = AstraConfig(**SIZES, code_bits=LAYERED)
    world = serve(model, config, [1.0, 1.0], inputs_for(model), folder)
    plan = predict_messages(model.shape, config, 2)
    assert sum(each.payload_bytes_sent for each in world.traffic) == bytes_of(plan)
    assert bits_per_token(config, model.shape, [range(12), range(12, 25)]) == 4 * sum(LAYERED)
    assert config.settings == "G=4 K=16 bits=4x1,2x1,3x1,1x1"
    same = serve(model, AstraConfig(**SIZES, code_bits=(2,) * 4), [1.0, 1.0], inputs_for(model), folder)
    two = serve(model, AstraConfig(**SIZES, code_bits=2), [1.0, 1.0], inputs_for(model), folder)
    assert torch.equal(same.logits, two.logits)
    assert not torch.equal(world.logits, two.logits)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("on_missing", ["mask", "stale"])
def test_datagrams_carry_different_bits_too(folder: Path, parity: bool, on_missing: str) -> None:
    model, inputs, weights = lively("vit"), inputs_for(lively("vit")), [3.0, 2.0, 2.0]
    transport = {"name": "datagram", "deadline_ms": 3000, "parity": parity, "on_missing": on_missing}
    config = AstraConfig(**SIZES, code_bits=LAYERED)
    over_udp = config.model_copy(update={"transport": DatagramConfig.model_validate(transport)})
    sure = serve(model, config, weights, inputs, folder)
    told = serve_datagrams(model, over_udp, weights, inputs, codebooks=folder)
    assert told.missing == 0
    assert torch.equal(told.logits[0], sure.logits)
    planned = bytes_of(
        message for message in predict_messages(model.shape, over_udp, 3, weights) if message.is_datagram
    )
    assert sum(len(each.piece) for sent in told.sent for _, each in sent) == planned


def test_stale_codes_are_read_in_the_codebook_of_another_size(folder: Path) -> None:
    model, inputs, weights = lively("vit"), inputs_for(lively("vit")), [3.0, 2.0, 2.0]
    transport = DatagramConfig(deadline_ms=60, on_missing="stale")
    config = AstraConfig(**SIZES, code_bits=LAYERED, transport=transport)
    told = serve_datagrams(
        model,
        config,
        weights,
        inputs,
        codebooks=folder,
        loses=lambda _, __, datagram: datagram.sender == 1 and datagram.label.layer > 0,
    )
    assert told.missing > 0
    assert bool(told.logits[0].isfinite().all())


# A benchmark's ranks

MODEL = ModelConfig(size="tiny", image_size=80)
OPEN: dict[str, Any] = {"num_groups": 16, "num_codewords": 64}
RATE_BETWEEN = 4.47e6
"""Bit/s at which layers of MODEL on `core()` differ."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fitted(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASTRA_CACHE", str(cache))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, out: Path, rate_bps: float, code_bits: Any) -> World:
    """Serve `single` and ASTRA on ranks that find links of this rate."""
    ranks = range(WORLD_SIZE)
    links = [(a, b, LinkSpeed(rate_bps)) for a in ranks for b in ranks if a != b]
    monkeypatch.setattr(astra.survey, "measure_speed", lambda *_: core())
    monkeypatch.setattr(astra.survey, "measure_links", lambda each: (links if each.rank == 0 else [], None))
    strategies = (SingleConfig(), AstraConfig(**OPEN, code_bits=code_bits))
    config = BenchConfig(model=MODEL, strategies=strategies, requests=2, warmup=1)
    ensure_fitted(config, lambda label, done, total: None)
    return served(config, out, world_size=WORLD_SIZE)


def chosen_by(world: World) -> tuple[int, ...]:
    """Return what `ranks` says that every rank took."""
    (text,) = {str(row["code_bits"]) for row in world.notebooks[0].rows["ranks"] if row["strategy"] == "astra"}
    runs = [part.split("x") for part in text.split(",")]
    return tuple(int(bits) for bits, layers in runs for _ in range(int(layers)))


def digests(world: World) -> list[Any]:
    return [row["answer_digest"] for row in world.notebooks[0].rows["requests"] if row["strategy"] == "astra"]


@pytest.mark.parametrize(("rate_bps", "bits"), [(FAST, (6,) * 4), (SLOW, (4,) * 4)])
def test_ranks_take_what_links_allow(
    fitted: Path, monkeypatch: pytest.MonkeyPatch, rate_bps: float, bits: tuple[int, ...]
) -> None:
    assert chosen_by(run(monkeypatch, fitted, rate_bps, "auto")) == bits


def test_all_ranks_send_what_is_chosen_and_answer_as_if_it_were_stated(
    fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = run(monkeypatch, fitted, RATE_BETWEEN, "auto")
    bits = chosen_by(world)
    assert len(set(bits)) > 1, "else nothing is shown of layers"
    for recorder in world.recorders:
        sent = {(tag.layer, len(payload)) for _, tag, payload in recorder.sent if tag.phase == "codes"}
        rows = [8, 9][recorder.rank == 0]
        assert sent == {(layer, math.ceil(rows * OPEN["num_groups"] * count / 8)) for layer, count in enumerate(bits)}
    stated = run(monkeypatch, fitted, RATE_BETWEEN, bits)
    assert digests(world) == digests(stated)
    rows_of = (each.summary() for each in (world, stated))
    told, same = (next(row for name, row in rows.items() if name != "single") for rows in rows_of)
    assert told["settings"] == "G=16 K=64 bits=auto"
    assert same["settings"] == f"G=16 K=64 bits={bits_text(bits)}"
    for column in ("bytes_per_request_predicted", "bytes_per_request_expected"):
        assert told[column] == same[column]
    phases = ("codes", "class")
    counted = sum(len(payload) for each in world.recorders for _, tag, payload in each.sent if tag.phase in phases)
    assert counted == 3 * int(str(told["bytes_per_request_predicted"])), "two requests and one to warm up"


def test_latency_is_predicted_with_what_is_chosen(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = run(monkeypatch, fitted, SLOW, "auto").notebooks[0].rows["predictions"][-1]
    whole = run(monkeypatch, fitted, FAST, "auto").notebooks[0].rows["predictions"][-1]
    assert float(str(slow["latency_predicted_s"])) > float(str(whole["latency_predicted_s"]))
    sizes = [int(str(row["busiest_link_bytes"])) for row in (slow, whole)]
    plans = [predict_messages(planned_shape(MODEL), AstraConfig(**OPEN, code_bits=bits), WORLD_SIZE) for bits in (4, 6)]
    payloads = [bytes_of(each for each in plan if (each.source, each.destination) == (1, 0)) for plan in plans]
    assert sizes[1] - sizes[0] == payloads[1] - payloads[0]


def test_fit_takes_open_bits(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRA_CACHE", str(fitted / "empty"))
    config = BenchConfig(model=MODEL, strategies=(AstraConfig(**OPEN, code_bits="auto"),))
    (need,) = bench_needs(config)
    assert "run `astra fit` with this config" in need.faults()[0]
    ensure_fitted(config, lambda label, done, total: None)
    assert need.faults() == []
    assert [len(each) for each in need.losses()] == [7] * 4


# What is refused

TINY = {"family": "vit", "size": "tiny", "image_size": 80}


def faults_of(*strategies: Any, **changes: Any) -> tuple[str, ...]:
    wanted = {"model": TINY, "strategies": list(strategies), **changes}
    with pytest.raises(ConfigError) as caught:
        parse_config(json.dumps(wanted), where="bench.json", command="generate" if "generation" in changes else "bench")
    return caught.value.faults


def open_bits(**changes: Any) -> dict[str, Any]:
    return {"name": "astra", "code_bits": "auto", **changes}


@pytest.mark.parametrize("code_bits", [0, True, 2.5, "all", [], [4, 0], [4, "auto"]])
def test_bits_that_are_none_are_refused(code_bits: Any) -> None:
    (fault,) = faults_of(open_bits(code_bits=code_bits))
    assert "strategies[0].code_bits must be a whole number from 1, a list of them, or 'auto', got" in fault


def test_bits_have_to_fit_the_model_and_its_codes() -> None:
    (fault,) = faults_of(open_bits(code_bits=[4, 4]))
    assert "strategies[0].code_bits must be a list of 4 numbers, one for each layer, got [4, 4]" in fault
    (fault,) = faults_of(open_bits(code_bits=[4, 11, 4, 4]))
    assert "a strategy whose code_bits are at most 10" in fault


@pytest.mark.parametrize("code_bits", ["auto", [4, 4, 4, 4]])
def test_entropy_coding_takes_one_number(code_bits: Any) -> None:
    (fault,) = faults_of(open_bits(code_bits=code_bits, coding="entropy"))
    assert "a strategy whose code_bits are one number where coding is entropy" in fault


def test_only_a_benchmark_chooses_bits() -> None:
    stated = "strategies[1].code_bits must be stated"
    (fault,) = faults_of("single", {"name": "auto", "among": ["single", open_bits()]})
    assert "strategies[1] must be a choice among strategies whose code_bits are stated" in fault
    (fault,) = faults_of("single", open_bits(), accuracy={"data": {"name": "digits"}})
    assert f"{stated} where there is accuracy, got 'auto'" in fault
    accuracy = {"data": {"name": "digits"}, "strategies": ["single", open_bits()]}
    (fault,) = faults_of("single", open_bits(code_bits=6), accuracy=accuracy)
    assert f"accuracy.{stated} for a labelled set, got 'auto'" in fault
    texts = {"family": "gpt2", "size": "tiny", "num_tokens": 8}
    (fault,) = faults_of("single", open_bits(), model=texts, generation={"max_new_tokens": 2})
    assert f"{stated} to generate, got 'auto'" in fault
    tree = {"model": TINY | {"num_labels": 10}, "data": {"name": "digits"}, "strategies": ["single", open_bits()]}
    with pytest.raises(ConfigError, match=r"strategies\[1\].code_bits must be stated to evaluate, got 'auto'"):
        parse_evaluation(tree, where="x.yaml")
