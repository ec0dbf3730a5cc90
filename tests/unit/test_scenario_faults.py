"""Every way to get a scenario wrong, with the line that says so."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.scenario import load, parse

SOUND = "name: sound\ndevices: {count: 4}\nworkload: {command: [run]}\n"
FAULT_LINE = re.compile(r"[^\n]*: \S[^\n]* must be [^\n]+, got [^\n]+; [^\n]+")


def read_table(path: Path) -> list[tuple[str, list[str]]]:
    """Read pairs of what a scenario adds and the fault lines that this must give."""
    table: list[tuple[str, list[str]]] = []
    for line in path.read_text().splitlines():
        if line.startswith("> "):
            table.append((line.removeprefix("> "), []))
        elif line and not line.startswith("#"):
            table[-1][1].append(line)
    return table


BROKEN = read_table(Path(__file__).with_name("broken_scenarios.txt"))


def faults_of(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    return list(caught.value.faults)


@pytest.mark.parametrize(("change", "lines"), BROKEN, ids=[change for change, _ in BROKEN])
def test_load_names_fault(tmp_path: Path, change: str, lines: list[str]) -> None:
    (tmp_path / "sound.yaml").write_text(SOUND)
    path = tmp_path / "broken.yaml"
    path.write_text(f"extends: sound.yaml\n{change}\n")
    assert faults_of(path) == [f"{path}: {line}" for line in lines]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the file must be a mapping, got nothing; add at least name, devices and workload"),
        ("# only a comment\n", "the file must be a mapping, got nothing; add at least name, devices and workload"),
        ("[a]", "the file must be a mapping, got ['a']; write keys as `key: value` lines"),
        (
            "name: a\nseed: b: c",
            "line 2, column 8 must be valid YAML, got mapping values are not allowed here; "
            "put text that holds a colon and a space in quotes, and check the indentation",
        ),
        (
            "name: [a\n",
            "line 2, column 1 must be valid YAML, got expected ',' or ']', but got '<stream end>' "
            "(while parsing a flow sequence); check brackets, quotes and indentation there and on the line before",
        ),
        (
            "links: {overrides: [{from: *, to: d1}]}",
            "line 1, column 29 must be valid YAML, got expected alphabetic or numeric character, but found ',' "
            '(while scanning an alias); put a star in quotes: "*"',
        ),
        (
            "\tname: a",
            "line 1, column 1 must be valid YAML, got found character '\\t' that cannot start any token "
            "(while scanning for the next token); indent with spaces, not tabs",
        ),
        (
            "name: a\n---\nname: b",
            "line 2, column 1 must be valid YAML, got but found another document "
            "(expected a single document in the stream); keep one scenario a file, without a second `---` line",
        ),
        (
            "name: a\nseed: 1\nseed: 2",
            'line 3, column 1 must be a key that stands once, got duplicate key "seed" with value "2"; '
            "remove one of the two",
        ),
        (
            "name: !!python/name:os.system x",
            "line 1, column 7 must be valid YAML, got could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/name:os.system'; "
            "check brackets, quotes and indentation there and on the line before",
        ),
        (
            "name: \x01",
            "the file must be valid YAML, got unacceptable character #x0001: special characters are not allowed; "
            "correct that value",
        ),
        ("a: &a [*a]", "the file must be a finite tree, got an alias inside its own anchor; remove it"),
        ("[" * 5000, "the file must be valid YAML, got thousands of nested brackets; nest less"),
        ("extends: 5", "extends must be the name of another scenario file, got 5; write extends: base.yaml"),
    ],
)
def test_load_names_fault_of_text(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert faults_of(path) == [f"{path}: {line}"]


def test_load_names_impossible_number(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("seed: " + "1" * 5000)
    assert "the file must be valid YAML, got Exceeds the limit" in faults_of(path)[0]


def test_load_names_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "gone.yaml"
    assert faults_of(path) == [f"{path}: the file must be readable, got No such file or directory; check the path"]


def test_load_names_folder(tmp_path: Path) -> None:
    assert faults_of(tmp_path) == [f"{tmp_path}: the file must be readable, got Is a directory; check the path"]


def test_load_names_other_encoding(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: Zürich".encode("latin-1"))
    assert faults_of(path) == [f"{path}: the file must be UTF-8 text, got byte 7; save it as UTF-8"]


def test_load_names_missing_base(tmp_path: Path) -> None:
    path = tmp_path / "child.yaml"
    path.write_text("extends: gone.yaml")
    todo = f"there is no file {tmp_path / 'gone.yaml'}; paths are relative to {path}"
    assert faults_of(path) == [f"{path}: extends must be an existing file, got 'gone.yaml'; {todo}"]


def test_load_names_circle(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("extends: second.yaml")
    second.write_text("extends: first.yaml")
    rule = "extends must be a file that does not lead back here, got 'first.yaml'"
    assert faults_of(first) == [f"{second}: {rule}; break the circle {first} -> {second} -> {first}"]


def test_load_reports_missing_keys_of_every_block(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("devices: {cpus: 1}\nworkload: {}\n")
    assert faults_of(path) == [
        f"{path}: name must be given, got nothing; add name (Name of the scenario and of its result folders)",
        f"{path}: devices.count must be given, got nothing; add count (Number of devices, 1 to 64)",
        f"{path}: workload.command must be given, got nothing; add command (Program and arguments, as a list)",
    ]


def test_load_reports_faults_of_all_kinds_at_once(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(
        """
        name: a b
        devices: {count: 2, cpus: -1, colour: red}
        links:
          default: {rate_mbps: "10", loss_pct: 1, loss: {model: bernoulli, loss_pct: 2}}
          overrides: [{from: d0, to: d5, queue_ms: 0}, {from: d1, to: d1}]
        events: [{at_s: 1, device: d0, action: dance}]
        workload: {command: run}
        expect: [{metric: latency_p50_s, at_most: high}, {metric: latency_p50_s}]
        """
    )
    about = [line.removeprefix(f"{path}: ").split(" must be ")[0] for line in faults_of(path)]
    assert about == [
        "name",
        "devices.cpus",
        "devices.colour",
        "links.default.rate_mbps",
        "links.default.loss",
        "links.overrides[0].queue_ms",
        "links.overrides[0].to",
        "links.overrides[1].to",
        "links.overrides[1]",
        "events[0].action",
        "workload.command",
        "expect[0].at_most",
        "expect[1]",
    ]


def test_load_checks_links_although_devices_are_wrong_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(SOUND.replace("count: 4", "count: 4, cpus: 0") + "links: {default: {jitter_ms: 1}}")
    assert [line.split(" must ")[0] for line in faults_of(path)] == [
        f"{path}: devices.cpus",
        f"{path}: links.default.jitter_ms",
    ]


def test_load_does_not_guess_names_when_count_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(
        SOUND.replace("count: 4", "count: many") + "links: {overrides: [{from: d0, to: d70, rate_mbps: 1}]}"
    )
    assert [line.split(" must ")[0] for line in faults_of(path)] == [f"{path}: devices.count"]


def test_load_names_the_file_that_holds_the_fault(tmp_path: Path) -> None:
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text(SOUND + "seed: -1\nlinks: {default: {loss_pct: 200, queue_ms: 0}}\n")
    child.write_text("extends: base.yaml\nlinks: {default: {queue_ms: -5, colour: red}}\n")
    assert [line.split(" must ")[0] for line in faults_of(child)] == [
        f"{base}: seed",
        f"{base}: links.default.loss_pct",
        f"{child}: links.default.queue_ms",
        f"{child}: links.default.colour",
    ]


def test_faults_stay_on_one_short_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(SOUND + 'seed: "' + "7\\n" * 500 + '"\n')
    (line,) = faults_of(path)
    assert "\n" not in line
    assert len(line) < len(str(path)) + 250


KEYS = "name seed devices links events workload expect count cpus memory_mb overrides default rate_mbps delay_ms "
KEYS += "jitter_ms loss_pct loss queue_ms from to between command config metric where at_least equals at_s link set"
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 100),
    st.floats(),
    st.sampled_from(["d0", "d1", "*", "10", "1_000", "5 ms", "bernoulli", "a", ""]),
    st.dates(),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5),
        st.dictionaries(st.sampled_from([1, 1.5, None, "é", "a.b", "", "[key]"]), inner, max_size=2),
    ),
    max_leaves=20,
)
SECTIONS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("name", "seed", "devices", "links", "events", "workload", "expect", "more"), TREES)
)


@settings(deadline=None)  # a busy machine is no fault
@given(SECTIONS)
def test_parse_finds_words_for_any_nonsense(sections: dict[str, Any]) -> None:
    sound = {"name": "x", "devices": {"count": 2}, "workload": {"command": ["run"]}}
    try:
        parse({**sound, **sections}, "nonsense.yaml")
    except InputError as error:
        for line in error.faults:
            assert FAULT_LINE.fullmatch(line)
            assert "must be valid" not in line  # the words of last resort, pydantic's own
