"""Rows, marks and progress: to an agent on a Unix socket, or to files."""

import csv
import json
import logging
import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from astra import reporting
from astra.errors import AstraError
from astra.reporting import AgentReporter, FileReporter, connect

LINKS = {"d1": {"bytes": 10, "packets": 1, "lost": 0, "overflowed": 0}}


class FakeAgent:
    """Answers each request with the next reply, byte for byte; then hangs up."""

    def __init__(self, path: Path):
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self.replies: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                self.requests.append(json.loads(line))
                connection.sendall(self.replies.pop(0))
                if not self.replies:
                    return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    fake = FakeAgent(tmp_path / "device.sock")
    monkeypatch.setenv("TESTBED_SOCKET", str(fake.path))
    yield fake
    fake.close()


def test_reporter_speaks_to_the_agent(agent: FakeAgent) -> None:
    marked = json.dumps({"ok": True, "links": LINKS}).encode() + b"\n"
    agent.replies = [b'{"ok": true}\n', marked, b'{"ok": true}\n']
    reporter = connect()
    reporter.row("summary", {"strategy": "astra", "latency_p50_s": 1.5, "requests": 3, "exact": False, "note": None})
    assert reporter.mark("astra:begin") == LINKS
    reporter.progress("astra G=1", 3, 10)
    reporter.close()
    reporter.close()
    row = {"strategy": "astra", "latency_p50_s": 1.5, "requests": 3, "exact": False, "note": None}
    assert agent.requests == [
        {"op": "row", "table": "summary", "row": row},
        {"op": "mark", "name": "astra:begin"},
        {"op": "progress", "label": "astra G=1", "done": 3, "total": 10},
    ]


def test_reporter_asks_whether_to_do_it_again_and_waits_for_the_answer(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agent.replies = [b'{"ok": true, "again": true}\n', b'{"ok": true, "again": false}\n']
    reporter = connect()
    assert reporter.again()
    assert not reporter.again()
    assert agent.requests == [{"op": "again"}] * 2
    reporter.close()
    assert not FileReporter(tmp_path).again()


def test_reporter_joins_replies_that_come_in_pieces_or_together(agent: FakeAgent) -> None:
    agent.replies = [b'{"ok": true}\n{"ok": tr', b'ue, "links": {}}\n']
    reporter = connect()
    reporter.progress("x", 0, 1)
    assert reporter.mark("y") == {}
    reporter.close()


def test_reporter_passes_on_why_the_agent_refused(agent: FakeAgent) -> None:
    agent.replies = [b'{"ok": false, "error": "no such table"}\n']
    reporter = connect()
    with pytest.raises(AstraError, match=r"device\.sock refused 'row': no such table"):
        reporter.row("nope", {})
    reporter.close()


@pytest.mark.parametrize("reply", [b"what?\n", b"[1]\n"])
def test_reporter_refuses_replies_that_are_not_objects(agent: FakeAgent, reply: bytes) -> None:
    agent.replies = [reply]
    reporter = connect()
    with pytest.raises(AstraError, match="reply to 'mark' must be a JSON object, got"):
        reporter.mark("x")
    reporter.close()


def test_reporter_says_so_when_the_agent_goes_away(agent: FakeAgent) -> None:
    agent.replies = [b'{"ok": true}\n']
    reporter = connect()
    reporter.progress("x", 0, 1)
    with pytest.raises(AstraError, match=r"device\.sock could not take 'mark': .*; the run has ended or was stopped"):
        reporter.mark("y")
    reporter.close()


def test_reporter_says_so_when_the_agent_does_not_answer(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "REPLY_TIMEOUT_S", 0.1)
    agent.replies = [b'{"ok": tr', b"never sent"]
    reporter = connect()
    with pytest.raises(AstraError, match="could not take 'mark': timed out"):
        reporter.mark("y")
    reporter.close()


def test_reporter_says_so_when_there_is_no_agent(tmp_path: Path) -> None:
    with pytest.raises(AstraError, match=r"could not be connected to: .* Unset TESTBED_SOCKET to run without"):
        AgentReporter(tmp_path / "nobody")


@pytest.mark.parametrize("cell", [math.nan, math.inf, [1], {"a": 1}, b"x"])
@pytest.mark.parametrize("with_agent", [True, False])
def test_reporter_refuses_cells_that_a_table_cannot_hold(
    agent: FakeAgent, tmp_path: Path, cell: Any, with_agent: bool
) -> None:
    reporter = connect() if with_agent else FileReporter(tmp_path)
    with pytest.raises(AstraError, match="table summary: cosine must be text, a finite number, a truth value or None"):
        reporter.row("summary", {"ok": 1, "cosine": cell})
    reporter.close()


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_file_reporter_writes_tables_as_it_goes(tmp_path: Path) -> None:
    reporter = FileReporter(tmp_path / "deep" / "results")
    reporter.row("summary", {"strategy": "single", "latency_p50_s": 4.05})
    reporter.row("summary", {"strategy": "astra, G=1"})
    table = tmp_path / "deep" / "results" / "summary.csv"
    assert read_table(table) == [
        {"strategy": "single", "latency_p50_s": "4.05"},
        {"strategy": "astra, G=1", "latency_p50_s": ""},
    ]


def test_file_reporter_makes_room_for_new_columns(tmp_path: Path) -> None:
    reporter = FileReporter(tmp_path)
    reporter.row("summary", {"a": 1})
    reporter.row("summary", {"b": True, "a": 2})
    reporter.row("summary", {"a": None, "b": 3})
    assert read_table(tmp_path / "summary.csv") == [{"a": "1", "b": ""}, {"a": "2", "b": "True"}, {"a": "", "b": "3"}]


def test_file_reporter_adds_to_what_is_there(tmp_path: Path) -> None:
    FileReporter(tmp_path).row("summary", {"a": 1})
    later = FileReporter(tmp_path)
    later.row("summary", {"a": 2})
    later.row("summary", {"a": 3, "b": 4})
    assert read_table(tmp_path / "summary.csv") == [{"a": "1", "b": ""}, {"a": "2", "b": ""}, {"a": "3", "b": "4"}]


def test_file_reporter_writes_lines_to_whoever_asked(tmp_path: Path) -> None:
    lines: list[str] = []
    reporter = FileReporter(tmp_path, lines.append)
    reporter.progress("astra G=1", 3, 10)
    assert reporter.mark("astra:end") is None
    assert lines == ["astra G=1: 3/10", "astra:end"]
    reporter.close()


def test_file_reporter_logs_when_nobody_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        FileReporter(tmp_path).progress("single", 1, 2)
    assert caplog.messages == ["single: 1/2"]


@pytest.mark.parametrize("out", [None, "elsewhere"])
def test_reporter_chooses_files_without_an_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TESTBED_SOCKET", raising=False)
    monkeypatch.delenv("TESTBED_OUT", raising=False)
    if out is not None:
        monkeypatch.setenv("TESTBED_OUT", str(tmp_path / out))
    connect().row("summary", {"a": 1})
    assert (tmp_path / (out or "astra-results") / "summary.csv").exists()
