"""The sweeps that are shipped: every cell is a sound scenario, and so is what it asks of the program."""

import json
from pathlib import Path

import pytest

from astra.config_file import load_config
from testbed.sweep.cells import load

SWEEPS = sorted((Path(__file__).parents[2] / "scenarios" / "sweeps").glob("*.yaml"))
FILES = [path for path in SWEEPS if path.stem != "small"]
PUBLISHED = [path for path in FILES if path.stem != "reference"]
"""Those that mirror a paper's axis; the other is one cell, for `make bench`."""
RATES = "links.default.rate_mbps"
MOST_SMALL_CELLS = 6
"""So that a small sweep takes less than ten minutes on two cores."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cells_of_a_shipped_sweep_are_sound(path: Path, tmp_path: Path) -> None:
    sweep = load(path)
    configs = {json.dumps(cell.scenario.workload.config) for cell in sweep.cells}
    for number, text in enumerate(configs):
        config = tmp_path / f"{number}.json"
        config.write_text(text)
        names = [strategy.name for strategy in load_config(config, "bench").strategies]
        assert names[0] == "single"  # what the others are compared with
        assert "astra" in names
    assert {"latency_p50_s", "speedup_vs_single"} <= set(sweep.show)
    cpus = [cell.scenario.devices.count * (cell.scenario.devices.cpus or 0) for cell in sweep.cells]
    assert max(cpus) <= 2


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_shipped_sweep_has_a_small_variant(path: Path) -> None:
    if path.stem.endswith("-small"):
        small = load(path)
        assert small.axes == load(path.with_stem(path.stem.removesuffix("-small"))).axes
        assert len(small.cells) <= MOST_SMALL_CELLS
        assert {cell.scenario.workload.config["model"]["size"] for cell in small.cells} == {"tiny"}
    else:
        assert path.with_stem(f"{path.stem}-small") in FILES


@pytest.mark.parametrize("name", ["vit-rates", "gpt2-prefill"])
def test_rates_are_those_of_the_paper(name: str) -> None:
    (path,) = (path for path in FILES if path.stem == name)
    assert [cell.values[RATES] for cell in load(path).cells] == [10, 20, 50, 100, 200, 500]
