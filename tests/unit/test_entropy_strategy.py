"""ASTRA with entropy-coded codes: the same answers from fewer bytes, over either transport, with tables from `fit`."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datagram_worlds import serve as serve_datagrams
from strategy_worlds import check_predicted, inputs_for, lively, serve
from torch import Tensor
from worker_worlds import served as run_ranks

from astra.clustering import fit_codebooks
from astra.code_statistics import tables_of
from astra.code_tables import TABLES_FILE, load_tables, save_tables
from astra.codebook import CodebookSpec, load_codebooks, save_codebooks
from astra.coded_rows import CodedRows
from astra.config import AstraConfig, BenchConfig, InputConfig, ModelConfig, SingleConfig
from astra.data import load_images, to_input
from astra.errors import ConfigError, WireError
from astra.exchange import _PendingMessages
from astra.fit import bench_needs, ensure_fitted
from astra.jobs import plan_jobs
from astra.models import ModelAdapter, load_model
from astra.rows import Known, Ways
from astra.strategy_faults import strategy_faults
from astra.traffic import bytes_of, bytes_of_most
from astra.transport_config import DatagramConfig

pytest.importorskip("constriction")
GROUPS, CODEWORDS = 4, 16
WEIGHTS = [3.0, 2.0, 2.0]
LOSSY = DatagramConfig(deadline_ms=60)
GENEROUS = DatagramConfig(deadline_ms=3000)
"""What is not lost arrives, however busy the machine."""
EXPECTED = 0.1
"""Of the planned bytes: inputs differ, and tables were counted on few of them."""
MODEL = ModelConfig(size="tiny", image_size=64, num_labels=10)

Prepared = tuple[ModelAdapter, Tensor, Path]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prepared]:
    """Return a model, an input, and codebooks with tables counted on that very input."""

    @cache
    def of(family: str) -> Prepared:
        model, folder = lively(family), tmp_path_factory.mktemp("codebooks")
        inputs = inputs_for(model)
        codebooks = fit_codebooks(model, inputs, GROUPS, CODEWORDS, seed=0)
        save_codebooks(folder, codebooks)
        save_tables(folder, tables_of(model, inputs, codebooks, "input", seed=0))
        return model, inputs, folder

    return of


def astra(coding: Any, transport: Any = "reliable") -> AstraConfig:
    given = {"num_groups": GROUPS, "num_codewords": CODEWORDS, "coding": coding, "transport": transport}
    return AstraConfig.model_validate(given)


@pytest.mark.parametrize("family", ["vit", "gpt2"])
@pytest.mark.parametrize("weights", [[1.0, 1.0], WEIGHTS])
def test_answers_are_those_of_packed_codes_from_fewer_bytes(
    prepared: Callable[[str], Prepared], family: str, weights: list[float]
) -> None:
    model, inputs, folder = prepared(family)
    packed, coded = (serve(model, astra(coding), weights, inputs, folder) for coding in ("fixed", "entropy"))
    assert torch.equal(packed.logits, coded.logits)
    for config, world in ((astra("fixed"), packed), (astra("entropy"), coded)):
        check_predicted(model, config, weights, world.traffic)
    assert sum(t.payload_bytes_sent for t in coded.traffic) < sum(t.payload_bytes_sent for t in packed.traffic)


def test_batches_are_coded_too(prepared: Callable[[str], Prepared]) -> None:
    model, _, folder = prepared("vit")
    inputs = inputs_for(model, batch=3)
    packed, coded = (serve(model, astra(coding), WEIGHTS, inputs, folder) for coding in ("fixed", "entropy"))
    assert torch.equal(packed.logits, coded.logits)


def test_datagrams_are_coded_alone(prepared: Callable[[str], Prepared]) -> None:
    model, inputs, folder = prepared("vit")
    packed, coded = (
        serve_datagrams(model, astra(coding, GENEROUS), WEIGHTS, inputs, codebooks=folder, requests=2)
        for coding in ("fixed", "entropy")
    )
    assert (packed.missing, coded.missing) == (0, 0)
    assert all(torch.equal(one, other) for one, other in zip(packed.logits, coded.logits, strict=True))
    sent, packed_sent = (sum(each.payload_bytes_sent for each in served.traffic) for served in (coded, packed))
    assert sent < packed_sent


def test_a_lost_datagram_does_not_hurt_those_after_it(prepared: Callable[[str], Prepared]) -> None:
    model, inputs, folder = prepared("vit")
    packed, coded = (
        serve_datagrams(
            model,
            astra(coding, LOSSY),
            WEIGHTS,
            inputs,
            codebooks=folder,
            loses=lambda _, __, datagram: datagram.sender == 1 and datagram.label.layer == 0,
        )
        for coding in ("fixed", "entropy")
    )
    assert packed.missing == coded.missing > 0
    assert torch.equal(packed.logits[0], coded.logits[0])


def test_rows_whose_layer_before_did_not_come_are_absent(prepared: Callable[[str], Prepared]) -> None:
    model, _, folder = prepared("vit")
    shape = model.shape
    spec = CodebookSpec(shape.num_layers, shape.width, GROUPS, CODEWORDS)
    codec = CodedRows(4, load_tables(folder, spec, shape.num_content_tokens))
    rows_RV = torch.zeros(3, GROUPS, dtype=torch.int64)
    unknown, known = Known(1, 0), Known(1, 3, rows_RV)
    payloads = {1: codec.encode(rows_RV, known), 2: codec.encode(rows_RV, known)}
    pending: Any = SimpleNamespace(wait=lambda: payloads)
    ways = Ways([3, 3, 3], (1, 2), (1, 2))
    rows = _PendingMessages(pending, codec, ways, GROUPS, {1: unknown, 2: known}, {}).wait()
    assert rows.absent_R is not None
    assert rows.absent_R.tolist() == [True] * 3 + [False] * 3
    payloads[2] = payloads[2][:-1]
    with pytest.raises(WireError, match=r"rows of rank 2, layer 1: entropy-coded codes: bytes must be"):
        _PendingMessages(pending, codec, ways, GROUPS, {1: unknown, 2: known}, {}).wait()


# Configs and fit


def test_config_refuses_what_cannot_be_coded() -> None:
    with pytest.raises(ValueError, match="codes of at most 12 bits where coding is entropy; lower num_codewords or"):
        AstraConfig(num_codewords=8192, coding="entropy")
    assert AstraConfig(num_codewords=8192, code_bits=10, coding="entropy").bits == 10
    with pytest.raises(ValueError, match="without parity where coding is entropy"):
        AstraConfig(coding="entropy", transport=DatagramConfig(parity=True))
    assert AstraConfig(coding="entropy").settings == "G=1 entropy"


def test_check_says_where_the_coder_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astra.strategy_faults._CODER", "a_package_that_is_not_there")
    (found,) = strategy_faults("x.yaml", [SingleConfig(), AstraConfig(coding="entropy")], None)
    assert found == (
        "x.yaml: strategies[1].coding must be fixed where the package constriction is not installed, got 'entropy'; "
        "pip install 'astra-testbed[entropy]'"
    )


@pytest.fixture
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def nothing(label: str, done: int, total: int) -> None:
    """Show no progress."""


def test_fit_adds_tables_to_a_copy_of_the_codebooks(cache_root: Path) -> None:
    config = BenchConfig(model=MODEL, strategies=(SingleConfig(), astra("fixed"), astra("entropy")))
    ensure_fitted(config, nothing)
    packed, coded = bench_needs(config)
    assert (packed.faults(), coded.faults()) == ([], [])
    assert packed.folder == coded.codebooks != coded.folder
    assert not (packed.folder / TABLES_FILE).exists()
    names = {path.name for path in coded.folder.iterdir()}
    assert names == {path.name for path in packed.folder.iterdir()} | {TABLES_FILE}
    before = (coded.folder / TABLES_FILE).stat().st_mtime_ns
    ensure_fitted(config, nothing)
    assert (coded.folder / TABLES_FILE).stat().st_mtime_ns == before, "they are cached"
    (coded.folder / TABLES_FILE).write_bytes(b"damaged")
    ensure_fitted(config, nothing)
    assert coded.faults() == []


def test_jobs_expect_fewer_bytes_than_the_bound(cache_root: Path) -> None:
    sizes = {"num_groups": 16, "num_codewords": CODEWORDS}  # messages so long that the coder's own bytes hardly count
    strategies = (SingleConfig(), AstraConfig(**sizes), AstraConfig(**sizes, coding="entropy"))
    config = BenchConfig(model=MODEL, strategies=strategies)
    ensure_fitted(config, nothing)
    _, packed, coded = plan_jobs(config, load_model(MODEL), 2)
    assert bytes_of(coded.messages) < bytes_of_most(coded.messages) == bytes_of(packed.messages)
    assert 0 < coded.coded_share < 1 == packed.coded_share


def test_a_run_sends_about_what_is_planned(cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astra.rank.SETTLE_S", 0.0)
    strategies = (SingleConfig(), AstraConfig(num_groups=16, num_codewords=CODEWORDS, coding="entropy"))
    config = BenchConfig(model=MODEL, strategies=strategies, requests=4, warmup=0, timeout_s=20.0)
    ensure_fitted(config, nothing)
    world = run_ranks(config, tmp_path / "out")
    sent = sum(recorder.payload_bytes() for recorder in world.recorders) / config.requests
    _, coded = plan_jobs(config, load_model(MODEL), 2)
    assert world.results[-1].predicted_bytes == bytes_of(coded.messages) < bytes_of_most(coded.messages)
    assert sent == pytest.approx(bytes_of(coded.messages), rel=EXPECTED)


def test_old_trained_codebooks_get_tables_in_the_cache(cache_root: Path, tmp_path: Path) -> None:
    config = BenchConfig(model=MODEL, strategies=(SingleConfig(), astra("fixed")))
    ensure_fitted(config, nothing)
    (packed,) = bench_needs(config)
    need = replace(packed, astra=astra("entropy").model_copy(update={"checkpoint": str(packed.folder)}))
    assert need.codebooks == packed.folder
    assert need.folder.parent == cache_root / "codebooks"
    spec = CodebookSpec(MODEL.preset.num_layers, MODEL.preset.width, GROUPS, CODEWORDS)
    inputs = to_input(load_images(InputConfig(), MODEL, 2, "calibrate"))
    save_tables(
        packed.folder, tables_of(load_model(MODEL), inputs, load_codebooks(packed.folder, spec), "input", seed=0)
    )
    assert need.folder == packed.folder, "tables that lie beside trained codebooks are taken"


def test_tables_for_another_number_of_tokens_are_refused(prepared: Callable[[str], Prepared], cache_root: Path) -> None:
    config = BenchConfig(model=MODEL, strategies=(SingleConfig(), astra("entropy")))
    ensure_fitted(config, nothing)
    (need,) = bench_needs(config)
    _, _, folder = prepared("vit")
    (need.folder / TABLES_FILE).write_bytes((folder / TABLES_FILE).read_bytes())
    (fault, *_) = need.faults()
    assert "layer.0.position.classes must be uint16 (4, 16), got uint16 (4, 25); run `astra fit` again" in fault
    with pytest.raises(ConfigError):
        plan_jobs(config, load_model(MODEL), 2)
