"""What a report says about a whole run, one that was cut off, several runs, and folders that are none."""

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from run_folders import LAYERS, PARTS, STRATEGIES, write_cut_off_run, write_repeated, write_run, write_sweep
from typer.testing import CliRunner

from testbed import controller, plots
from testbed.cli import app
from testbed.display import format_value
from testbed.errors import InputError
from testbed.report import is_cheap, read_report, write_charts, write_report
from testbed.report.axes import setting_axes
from testbed.report.folder import RunFolder, find_runs
from testbed.report.model import Report, Section
from testbed.report.rows import identity, label_of, percentile
from testbed.report.time_spent import by_layer, by_strategy
from testbed.runtimes import userns

SECTIONS = [
    "summary",
    "latency",
    "break-even",
    "time",
    "traffic",
    "calibration",
    "events",
    "rates",
    "environment",
    "again",
    "rest",
]
ROUNDING = 1e-6
"""Of times written in microseconds."""

STRAIGHT_LINE = 0.15
"""Between 20 and 50 Mbps, where the curve of the made-up runs is bent."""


def section(report: Report, key: str) -> Section:
    return next(found for found in report.sections if found.key == key)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def drawn() -> None:
    """Ask for charts as they are; other tests look at what they are about, and spare the time."""


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "to_svg", lambda figure: "<svg></svg>")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_report_of_a_run_has_all_sections_and_misses_nothing_but_break_even(run: Path) -> None:
    report = read_report(run)
    assert [found.key for found in report.sections] == SECTIONS
    assert [found.key for found in report.sections if found.missing] == ["break-even"]
    assert (report.title, report.status, report.error) == ("made-up", "ok", "")
    assert report.setting.replace("\N{NO-BREAK SPACE}", " ") == "4 devices, 0.4 CPU each, 10 Mbps a link, 1 % loss"
    assert [(verdict.met, verdict.text.split()[0]) for verdict in report.verdicts] == [(True, "speedup_vs_single")]


def test_report_tables_say_what_the_files_say(run: Path) -> None:
    report = read_report(run)
    for key, name in (
        ("summary", "summary"),
        ("traffic", "links"),
        ("calibration", "calibration"),
        ("events", "events"),
    ):
        (table,) = section(report, key).tables
        written = rows_of(run / f"{name}.csv")
        assert len(table.rows) == len(written)
        shown = [[cell.value for cell in row] for row in table.rows]
        for row, cells in zip(written, shown, strict=True):
            numbers = [float(text) for text in row.values() if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text)]
            assert {cell for cell in cells if isinstance(cell, float)} <= {*numbers, 0.0, 1.0}


def test_report_headline_is_the_summary(run: Path) -> None:
    facts = {fact.name: fact for fact in read_report(run).facts}
    best = min(rows_of(run / "summary.csv"), key=lambda row: float(row["latency_p50_s"]))
    assert facts["fastest"].value == f"{best['strategy']} {best['settings']}"
    assert facts["fastest"].note.startswith(format_value("x_s", float(best["latency_p50_s"])))
    assert facts["best over one device"].value == f"{float(best['speedup_vs_single']):.2f}×"
    assert facts["links true"].value == "24 of 24"


def test_report_draws_one_chart_of_layers_for_each_strategy(run: Path) -> None:
    titles = [figure.title for figure in section(read_report(run), "time").figures]
    labels = [f"{strategy} {settings}".strip() for strategy, settings in STRATEGIES]
    assert titles == ["A request, by part", *(f"{label}, layer by layer" for label in labels)]


def test_time_by_strategy_adds_up_to_the_latency(run: Path) -> None:
    folder = RunFolder.read(run)
    for label, parts in by_strategy(folder.rows("requests")).items():
        own = [row for row in folder.rows("requests") if f"{row['strategy']} {row['settings'] or ''}".strip() == label]
        mean = sum(float(str(row["latency_s"])) for row in own) / len(own)
        assert sum(parts.values()) == pytest.approx(mean)
        assert parts["untold"] == pytest.approx(mean * (1 - sum(PARTS.values())))


def test_time_by_layer_counts_measured_requests_only(run: Path) -> None:
    events = json.loads((run / "timeline.json").read_text())["traceEvents"]
    requests = rows_of(run / "requests.csv")
    last = max(event["ts"] for event in events if event.get("cat") == "spans")
    unmeasured = {"request": 10**6, "layer": 0}
    events.append(
        {"ph": "X", "cat": "spans", "name": "wait", "tid": 0, "ts": last + 9e9, "dur": 9e9, "args": unmeasured}
    )
    found = by_layer(events, {"astra G=1": 5})["astra G=1"]
    latencies = [float(row["latency_s"]) for row in requests if row["strategy"] == "astra"]
    assert sorted(found) == list(range(LAYERS))
    wait_s = PARTS["wait"] * sum(latencies) / len(latencies) / LAYERS
    assert found[0]["wait"] == pytest.approx(wait_s, rel=ROUNDING)


def test_report_says_how_to_run_it_again(run: Path) -> None:
    first, second = section(read_report(run), "again").commands
    assert first == f"testbed run --uncapped --timeout-s 60 {run}/scenario.yaml"
    assert second == f"testbed replay {run}"


@pytest.mark.usefixtures("drawn")
def test_report_draws_links_that_changed(run: Path) -> None:
    rates = section(read_report(run), "rates")
    assert [figure.title for figure in rates.figures] == ["d0 → d1"]
    assert "11 other links kept their rate" in rates.lead
    assert "var(--alarm" in rates.figures[0].svg
    events = section(read_report(run), "events")
    assert "0 rate d0→d1" in events.figures[0].svg
    assert "1 flap d0→d1" in events.figures[0].svg


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("summary.csv", "summary"),
        ("requests.csv", "time"),
        ("timeline.json", "time"),
        ("links.csv", "traffic"),
        ("calibration.csv", "calibration"),
        ("events.csv", "events"),
        ("manifest.json", "environment"),
        ("scenario.yaml", "again"),
    ],
)
def test_report_without_a_file_says_so_where_it_would_be(run: Path, file: str, key: str) -> None:
    (run / file).unlink()
    assert f"{file} is missing" in " ".join(section(read_report(run), key).missing)
    assert file in write_report(run).read_text()


@pytest.mark.parametrize("file", ["summary.json", "manifest.json", "scenario.yaml", "timeline.json", "requests.csv"])
def test_report_survives_a_broken_file(run: Path, file: str) -> None:
    (run / file).write_bytes(b'{"\xff')
    text = write_report(run).read_text()
    assert f"{file} cannot be read" in text or f"{file} is no trace" in text


def test_report_of_a_cut_off_run_shows_what_there_is(tmp_path: Path) -> None:
    report = read_report(write_cut_off_run(tmp_path / "cut"))
    assert (report.status, report.error) == ("interrupted", "the controller was killed")
    assert "marked interrupted" in section(report, "summary").missing[0]
    assert [figure.title for figure in section(report, "latency").figures] == ["Seconds a request"]
    assert [figure.title for figure in section(report, "time").figures] == ["A request, by part"]


def test_report_of_a_program_with_its_own_columns(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "summary.csv").write_text("link,mbps\nd0→d1,9.4\n")
    (run / "requests.csv").unlink()
    report = read_report(run)
    assert [cell.text for cell in section(report, "summary").tables[0].rows[0]] == ["d0→d1", "9.4"]
    assert "No latencies" in " ".join(section(report, "latency").missing)


class Links(HTMLParser):
    """What a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]


@pytest.mark.usefixtures("drawn")
def test_report_needs_nothing_else(run: Path) -> None:
    page = Links()
    text = write_report(run).read_text()
    page.feed(text)
    assert [target for target in page.targets if not target.startswith(("#", "data:"))] == []
    assert page.tags.isdisjoint({"img", "iframe", "object", "embed", "base"})
    assert "@import" not in text


@pytest.mark.usefixtures("drawn")
def test_report_escapes_what_runs_say(run: Path) -> None:
    evil = '<script>alert("x")</script>'
    (run / "logs" / "d0.log").write_text(evil)
    text = (run / "summary.csv").read_text()
    (run / "summary.csv").write_text(text.replace("wire=fp32", evil.replace('"', "")))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "error": evil}))
    page = write_report(run).read_text()
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert" in page


def test_report_of_a_sweep_compares_its_runs(tmp_path: Path) -> None:
    report = read_report(write_sweep(tmp_path / "sweep"))
    assert (report.title, report.status) == ("rates", "ok")
    assert report.setting == "8 runs; what differs: links.default.rate_mbps, links.default.loss_pct"
    titles = [figure.title for figure in section(report, "latency").figures]
    assert titles == [
        "Speed-up, loss 0 %",
        "Seconds a request, loss 0 %",
        "Speed-up, loss 1 %",
        "Seconds a request, loss 1 %",
    ]
    (table,) = section(report, "summary").tables
    assert len(table.rows) == 8 * len(STRATEGIES)
    assert [row[0].value for row in table.rows] == sorted(row[0].value for row in table.rows)


def test_report_of_a_sweep_finds_where_splitting_wins(tmp_path: Path) -> None:
    (table,) = section(read_report(write_sweep(tmp_path / "sweep")), "break-even").tables
    said = {(row[0].value, row[1].text): row[2].text for row in table.rows}
    assert said[0.0, "astra G=1"] == "at every value measured"
    compute_s, num_bytes = STRATEGIES["sequence", "wire=fp32"]
    exact_mbps = 8 * num_bytes / 1e6 / (STRATEGIES["single", ""][0] - compute_s)
    words = said[0.0, "sequence wire=fp32"].split()
    assert (words[0], words[2]) == ("from", "Mbps")
    assert float(words[1]) == pytest.approx(exact_mbps, rel=STRAIGHT_LINE)


def test_report_of_repeated_runs_shows_their_spread(tmp_path: Path) -> None:
    write_repeated(tmp_path / "many", write_run(tmp_path / "one", rate_mbps=10), 3)
    write_repeated(tmp_path / "many" / "fast", write_run(tmp_path / "two", rate_mbps=50), 3)
    report = read_report(tmp_path / "many")
    assert "least to most of 3 repetitions" in section(report, "latency").lead
    assert report.setting == "6 runs; what differs: links.default.rate_mbps"


def test_report_of_a_sweep_says_how_to_run_it_again(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    assert section(read_report(sweep), "again").commands[0].endswith("run-1/scenario.yaml")
    for path in sweep.rglob("manifest.json"):
        command = ["/usr/bin/testbed", "sweep", "rates.yaml", "--out", str(sweep)]
        path.write_text(json.dumps({**json.loads(path.read_text()), "command": command}))
    assert section(read_report(sweep), "again").commands == (f"testbed sweep rates.yaml --out {sweep}",)


def test_report_of_runs_names_those_that_failed(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    broken = sweep / "cells" / "rate=50-loss=1" / "run-1"
    summary = json.loads((broken / "summary.json").read_text())
    (broken / "summary.json").write_text(json.dumps({**summary, "status": "failed", "error": "device d1: gone"}))
    report = read_report(sweep)
    assert report.status == "failed"
    assert section(report, "summary").missing == ("cells/rate=50-loss=1/run-1, failed: device d1: gone",)
    assert report.facts[0].value == "7 of 8"


def test_axes_are_what_scenarios_differ_in() -> None:
    axes, settings = setting_axes(
        [
            {"name": "a", "links": {"default": {"rate_mbps": 1}}, "workload": {"config": {"strategies": ["single"]}}},
            {"name": "b", "links": {"default": {"rate_mbps": 2}}, "workload": {"config": {"strategies": ["astra"]}}},
        ]
    )
    assert axes == ("links.default.rate_mbps", "workload.config.strategies")
    assert settings[1] == {"links.default.rate_mbps": 2, "workload.config.strategies": '["astra"]'}


def test_labels_leave_out_what_all_share() -> None:
    rows = [{"strategy": "a", "settings": None, "placement": "x", "n": 1}, {"strategy": "a", "settings": "G=1", "n": 2}]
    assert identity(rows) == ["strategy", "settings", "placement"]
    keys = [("a", "", "x"), ("a", "G=1", "x")]
    assert [label_of(key, keys) for key in keys] == ["a", "a G=1"]
    assert percentile([1, 2, 3, 4], 25) == pytest.approx(1.75)


def test_find_runs_refuses_folders_without_any(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="DIR: must be the folder of a run or a sweep, got"):
            find_runs(folder)


def test_report_command_writes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(out)])
    assert done.exit_code == 0
    assert f"report: {out}" in done.output.replace("\n", "")
    assert out.read_text().startswith("<!doctype html>")
    with pytest.raises(InputError, match="--out: must be a file that can be written"):
        write_report(run, tmp_path)


@pytest.mark.usefixtures("drawn")
def test_report_writes_charts_that_stand_alone(run: Path, tmp_path: Path) -> None:
    names = [path.name for path in write_charts(run, tmp_path / "charts")]
    assert {"latency-seconds-a-request.svg", "rates-d0-to-d1.svg", "time-astra-g-1-layer-by-layer.svg"} <= set(names)
    assert len(set(names)) == len(names)
    for name in names:
        text = (tmp_path / "charts" / name).read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "prefers-color-scheme: dark" in text


def test_report_command_writes_charts(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run), "--charts", str(tmp_path / "charts")])
    assert done.exit_code == 0
    count = len(list((tmp_path / "charts").glob("*.svg")))
    assert f"charts: {count} in" in done.output
    assert count > 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: None, "report: {run}/report.html"),
        (lambda run: (run / "report.html").mkdir(), "no report: --out: must be a file that can be written"),
        (lambda run: (run / "large.csv").write_bytes(b"a\n" * (5 << 20)), "report: testbed report {run}"),
    ],
    ids=["written", "cannot be written", "not cheap"],
)
def test_run_command_ends_with_its_report(
    run: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(run)
    monkeypatch.setattr(controller, "run", lambda *_: controller.Outcome(run, {}))
    monkeypatch.setattr(userns, "needed", lambda: False)
    done = CliRunner().invoke(app, ["run", str(Path(__file__).parents[2] / "scenarios" / "smoke.yaml"), "--plain"])
    assert done.exit_code == 0, done.output
    assert said.format(run=run) in done.output


def test_report_is_cheap_unless_the_trace_is_large(run: Path) -> None:
    assert is_cheap(run)
    with (run / "timeline.json").open("a") as file:
        file.truncate(1 << 30)
    assert not is_cheap(run)
