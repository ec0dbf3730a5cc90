"""Sweep files become cells: what varies, what is left out, ids that stay, and every fault at once."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from testbed.errors import InputError
from testbed.sweep.cells import Sweep, load
from testbed.sweep.order import num_programs, ordered, plan, shard
from testbed.sweep.paths import PathError, last_words, parse_path, replaced

BASE = {
    "name": "base",
    "devices": {"count": 2, "cpus": 0.5},
    "links": {"default": {"rate_mbps": 50}},
    "workload": {"command": ["true"], "config": {"strategies": ["single", {"name": "astra", "num_groups": 1}]}},
}
RATES, LOSSES = "links.default.rate_mbps", "links.default.loss_pct"


def write(folder: Path, **content: Any) -> Path:
    path = folder / "sweep.yaml"
    for name, tree in (("base.yaml", BASE), ("sweep.yaml", {"name": "s", "base": "base.yaml", **content})):
        writer = YAML(typ="safe", pure=True)
        writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # annotated as None
        with (folder / name).open("w") as file:
            writer.dump(tree, file)
    return path


def sweep(folder: Path, **content: Any) -> Sweep:
    return load(write(folder, **content))


def faults(folder: Path, **content: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        sweep(folder, **content)
    return [fault.removeprefix(f"{folder}/") for fault in caught.value.faults]


def test_matrix_is_crossed_and_the_last_axis_changes_fastest(tmp_path: Path) -> None:
    made = sweep(tmp_path, matrix={RATES: [10, 20], LOSSES: [0, 1, 5]})
    points = [(cell.values[RATES], cell.values[LOSSES]) for cell in made.cells]
    assert points == [(10, 0), (10, 1), (10, 5), (20, 0), (20, 1), (20, 5)]
    assert [cell.scenario.links.default.rate_mbps for cell in made.cells] == [10, 10, 10, 20, 20, 20]
    assert {cell.scenario.name for cell in made.cells} == {"s"}


def test_zipped_paths_change_together_and_are_crossed_with_the_rest(tmp_path: Path) -> None:
    made = sweep(tmp_path, zip=[{"devices.count": [2, 4], "devices.cpus": [0.4, 0.2]}], matrix={RATES: [10, 20]})
    points = [tuple(cell.values.values()) for cell in made.cells]
    assert points == [(10, 2, 0.4), (10, 4, 0.2), (20, 2, 0.4), (20, 4, 0.2)]


def test_paths_lead_into_lists(tmp_path: Path) -> None:
    made = sweep(tmp_path, matrix={"workload.config.strategies[1].num_groups": [1, 16]})
    groups = [cell.scenario.workload.config["strategies"][1]["num_groups"] for cell in made.cells]
    assert groups == [1, 16]


def test_set_is_merged_over_the_base_of_every_cell(tmp_path: Path) -> None:
    made = sweep(tmp_path, set={"seed": 5, "devices": {"cpus": 0.1}}, matrix={RATES: [10]})
    assert (made.cells[0].scenario.seed, made.cells[0].scenario.devices.spec("d0").cpus) == (5, 0.1)


def test_sweep_may_extend_another(tmp_path: Path) -> None:
    write(tmp_path, matrix={RATES: [10, 20]}, set={"seed": 5})
    small = tmp_path / "small.yaml"
    small.write_text("extends: sweep.yaml\nname: small\nset: {devices: {cpus: 0.1}}\n")
    cell = load(small).cells[0]
    assert (cell.scenario.seed, cell.scenario.devices.cpus, len(load(small).cells)) == (5, 0.1, 2)


def test_excluded_cells_are_left_out(tmp_path: Path) -> None:
    made = sweep(tmp_path, matrix={RATES: [10, 20], LOSSES: [0, 1]}, exclude=[{RATES: 10, LOSSES: 1}, {RATES: 20}])
    assert [tuple(cell.values.values()) for cell in made.cells] == [(10, 0)]


def test_ids_stay_when_other_values_come_and_change_with_what_is_measured(tmp_path: Path) -> None:
    before = {cell.label: cell.id for cell in sweep(tmp_path, matrix={RATES: [10, 20]}).cells}
    more = {cell.label: cell.id for cell in sweep(tmp_path, name="other", matrix={RATES: [5, 20, 10]}).cells}
    assert before.items() <= more.items()
    changed = {cell.label: cell.id for cell in sweep(tmp_path, set={"seed": 2}, matrix={RATES: [10, 20]}).cells}
    assert not set(before.values()) & set(changed.values())


def test_folder_names_are_readable_and_safe(tmp_path: Path) -> None:
    (cell,) = sweep(tmp_path, matrix={RATES: [10], "workload.config.strategies": [["single", "a/b"]]}).cells
    assert cell.folder_name.startswith("rate_mbps=10_strategies=")
    assert cell.folder_name.endswith(f"-{cell.id}")
    assert "/" not in cell.folder_name


def test_faults_of_a_sweep_file_come_all_at_once(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        named="x",
        matrix={RATES: [1, 1], "links.default": [2], "a b": [3], "name": ["x"], "seed": 7},
        zip=[{"devices.count": [1, 2], "devices.cpus": [1]}],
        exclude=[{"foo": 1}],
    )
    text = "\n".join(found)
    assert "named must be a known key, got 'named'; did you mean name?" in text
    assert f"matrix['{RATES}'] must be a list of different values, got [1, 1]; 1 stands twice" in text
    assert f"matrix['links.default'] must be apart from the axis {RATES}" in text
    assert "matrix['a b'] must be a path such as links.default.rate_mbps" in text
    assert "matrix.name must be a path to something that is measured" in text
    assert "matrix.seed must be a list, got 7" in text
    assert "zip[0] must be lists of equal length" in text
    assert "exclude[0] must be a path of matrix or zip, got 'foo'" in text


def test_faults_of_cells_name_the_file_that_holds_the_value_and_come_once(tmp_path: Path) -> None:
    found = faults(tmp_path, matrix={RATES: [0.01, 10], "devices.count": [2, 100], "links.lossy": [1]})
    assert sorted(found) == [
        "sweep.yaml: devices.count must be a whole number from 1 to 64, got 100; it counts devices",
        "sweep.yaml: links.default.rate_mbps must be a number from 0.1 to 10000 or null, got 0.01; "
        "it counts Mbit/s; null leaves the rate alone",
        "sweep.yaml: links.lossy must be a known key, got 'lossy'; known here: default, overrides, uplink_mbps",
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"matrix": {}}, "matrix must be given an axis, got nothing; add a path and its values to matrix or zip"),
        (
            {"base": "no.yaml", "matrix": {"seed": [1]}},
            "base must be an existing file, got 'no.yaml'; there is no file",
        ),
        (
            {"matrix": {"workload.config.strategies[9]": [1]}},
            "must be a path into the base scenario, where workload.config.strategies has 2 items, got [9]",
        ),
        ({"matrix": {"seed.x": [1]}, "set": {"seed": 3}}, "where seed has keys, got 3; correct the path"),
        ({"matrix": {"seed": [1, 2]}, "exclude": [{"seed": 3}]}, "exclude[0] must be about a cell, got {'seed': 3}"),
        ({"matrix": {"seed": [1]}, "exclude": [{"seed": 1}]}, "exclude must leave at least one cell, got none"),
        ({"matrix": {"seed": [0]}, "cell_s": 0}, "cell_s must be a number above 0 or null, got 0"),
        ({"matrix": {"devices.cpus": [0.5, 0.50]}}, "matrix['devices.cpus'] must be a list of different values"),
        (
            {"matrix": {"devices.memory_mb": [None]}, "zip": [{"links.uplink_mbps": [None, None]}]},
            "matrix must give different scenarios, got the same for",
        ),
    ],
)
def test_fault_is_named(tmp_path: Path, content: dict[str, Any], fault: str) -> None:
    assert any(fault in line for line in faults(tmp_path, **content))


def test_cells_that_may_share_stand_together(tmp_path: Path) -> None:
    matrix = {LOSSES: [0, 1], "workload.config.requests": [1, 2], "devices.count": [2, 4]}
    cells = ordered(sweep(tmp_path, matrix=matrix).cells)
    points = [tuple(cell.values.values()) for cell in cells]
    assert points == [(0, 1, 2), (1, 1, 2), (0, 2, 2), (1, 2, 2), (0, 1, 4), (1, 1, 4), (0, 2, 4), (1, 2, 4)]
    batches = plan(cells, 1)
    assert [len(batch.runs) for batch in batches] == [4, 4]
    assert num_programs(batches) == 4


def test_cells_with_events_share_nothing(tmp_path: Path) -> None:
    events = [{"at_s": 1, "device": "d1", "action": "pause"}]
    batches = plan(ordered(sweep(tmp_path, set={"events": events}, matrix={LOSSES: [0, 1]}).cells), 1)
    assert [len(batch.runs) for batch in batches] == [1, 1]


def test_repetitions_take_turns_and_finished_runs_are_left_out(tmp_path: Path) -> None:
    cells = ordered(sweep(tmp_path, matrix={LOSSES: [0, 1]}).cells)
    (batch,) = plan(cells, 2, {(cells[1].id, 1)})
    assert [(run.cell.values[LOSSES], run.number) for run in batch.runs] == [(0, 1), (0, 2), (1, 2)]
    assert plan(cells, 1, {(cell.id, 1) for cell in cells}) == []


@given(st.integers(1, 40), st.integers(1, 12))
def test_shards_are_disjoint_complete_and_even(num_cells: int, count: int) -> None:
    cells: Any = list(range(num_cells))
    parts = [shard(cells, number, count) for number in range(1, count + 1)]
    assert [cell for part in parts for cell in part] == cells
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_path_is_parsed_and_its_value_replaced() -> None:
    location = parse_path("a.b[1].c-d")
    assert location == ("a", "b", 1, "c-d")
    tree = {"a": {"b": [0, {"c-d": 1, "e": 2}]}, "f": 3}
    assert replaced(tree, location, 9) == {"a": {"b": [0, {"c-d": 9, "e": 2}]}, "f": 3}
    assert tree["f"] == 3
    assert replaced({}, parse_path("x.y"), 1) == {"x": {"y": 1}}


@pytest.mark.parametrize("text", ["", ".a", "a.", "a..b", "a[x]", "[0]", "a b", "1a"])
def test_path_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PathError):
        parse_path(text)


def test_paths_are_shortened_as_far_as_they_differ() -> None:
    assert last_words([RATES, LOSSES]) == {RATES: "rate_mbps", LOSSES: "loss_pct"}
    assert last_words(["a.x", "b.x", "c.y"]) == {"a.x": "a.x", "b.x": "b.x", "c.y": "y"}
