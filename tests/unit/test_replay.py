"""What two run folders must have in common."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import InputError
from testbed.links import LinkRule
from testbed.loss import Bernoulli, lost_positions
from testbed.losses_seen import pattern_columns
from testbed.replay import differences, finished_run, not_compared

LINK = {"source": "d0", "destination": "d1", "packets": 10, "lost": 1, "pattern_digest": "ab", "lost_by_pattern": 1}
REQUEST = {"strategy": "astra", "request": 0, "latency_s": 1.5, "answer_digest": "12e3", "token_ids": "5 6"}


def folder(path: Path, *, link: dict[str, Any] | None = None, requests: list[dict[str, Any]] | None = None) -> Path:
    path.mkdir()
    for name, rows in (("links", [LINK | (link or {})]), ("requests", requests or [REQUEST])):
        with (path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def test_differences_of_runs_that_differ_in_numbers_only_are_none(tmp_path: Path) -> None:
    slower = [REQUEST | {"latency_s": 2.5}]
    other = folder(tmp_path / "b", link={"packets": 12, "lost": 2, "lost_by_pattern": 2}, requests=slower)
    assert differences(folder(tmp_path / "a"), other) == []


def test_differences_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [REQUEST, REQUEST | {"request": 1, "answer_digest": "99"}]
    assert differences(folder(tmp_path / "a", requests=rows), folder(tmp_path / "b", requests=rows[::-1])) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requests": [REQUEST | {"answer_digest": "12e4"}]}, "requests: must have the same rows, got only in"),
        ({"requests": [REQUEST | {"token_ids": "5 7"}]}, "'token_ids': '5 7'"),
        ({"link": {"pattern_digest": "cd"}}, "link d0→d1: pattern must be the same, got ab and cd"),
        ({"link": {"lost": 2}}, "link d0→d1: of 10 packets must lose 1, got 2"),
        ({"link": {"destination": "d2"}}, "link d0→d2: must be in both runs"),
    ],
)
def test_differences_name_what_must_not_differ(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in "\n".join(differences(folder(tmp_path / "a"), folder(tmp_path / "b", **changes)))


def test_rows_that_lacked_other_things_are_not_compared(tmp_path: Path) -> None:
    def sent(request: int, lacked: str, answer: str) -> dict[str, Any]:
        return REQUEST | {"request": request, "missing_digest": lacked, "codes_digest": answer, "answer_digest": answer}

    before = [sent(0, "a0", "1f"), sent(1, "a1", "2f"), sent(2, "", "3f")]
    first = folder(tmp_path / "a", requests=before)
    other = folder(tmp_path / "b", requests=[before[0], sent(1, "b1", "4f"), before[2]])
    assert differences(first, other) == []
    assert not_compared(first, other) == ["requests: 1 of 3 rows had to do without other things than in the first run"]
    wrong = folder(tmp_path / "c", requests=[sent(0, "a0", "5f"), *before[1:]])
    assert len(differences(first, wrong)) == 2
    assert not_compared(first, wrong) == []
    reliable = folder(tmp_path / "d", requests=[*before[:2], sent(2, "", "6f")])
    assert len(differences(first, reliable)) == 2


def test_only_finished_runs_can_be_replayed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="RUN_DIR: must be the folder of a run"):
        finished_run(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"options": {"runtime": "netns"}}))
    (tmp_path / "summary.json").write_text(json.dumps({"status": "interrupted", "error": "x"}))
    with pytest.raises(InputError, match=r"must be a finished run, got .* which is interrupted"):
        finished_run(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"status": "ok", "error": None}))
    assert finished_run(tmp_path) == {"runtime": "netns"}


@pytest.mark.parametrize("packets", [0, 1, 1000, 3 * 65_536 + 17])
def test_pattern_columns_count_what_the_pattern_loses(packets: int) -> None:
    rule = LinkRule("d0", "10.0.0.1", 1e6, delay_s=0, jitter_s=0, queue_s=0.2, loss=Bernoulli(0.1), seed=3)
    positions = lost_positions(rule.loss, seed=3, source="d0", destination="d1")
    rounds, rest = divmod(packets, 65_536)
    columns = pattern_columns(rule, "d1", packets, changed=False)
    assert columns["lost_by_pattern"] == rounds * len(positions) + sum(position < rest for position in positions)
    assert pattern_columns(rule, "d1", packets, changed=True)["lost_by_pattern"] is None
    assert pattern_columns(rule, "d2", packets, changed=False)["pattern_digest"] != columns["pattern_digest"]
