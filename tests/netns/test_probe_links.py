"""The probe on shaped links: it finds what was asked, and finds a fault when the links are not as asked."""

import dataclasses
import json
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from testbed import probe
from testbed.links import DeviceRules, LinkRule
from testbed.loss import NO_LOSS, Bernoulli
from testbed.shaper import Shaper

pytestmark = pytest.mark.netns

RATE_BPS = 10e6
LOSS = 0.02
FAULTY_SHARE = 0.9
"""Of the asked rate; far outside every tolerance."""


class AgentStandIn:
    """Serves one device socket inside a device's process: counters from a Shaper, barriers over a shared one."""

    def __init__(self, path: Path, shaper: Shaper, barrier: Any, rows: Any):
        self._shaper, self._barrier, self._rows = shaper, barrier, rows
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection, connection.makefile("rw") as lines:
            for line in lines:
                lines.write(json.dumps({"ok": True, **self._answer(json.loads(line))}) + "\n")
                lines.flush()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "row":
            self._rows.put(request["row"])
        elif request["op"] == "barrier":
            self._barrier.wait(60)
        elif request["op"] == "mark":
            counted = self._shaper.counters().items()
            return {"links": {source: dataclasses.asdict(count) for source, count in counted}}
        return {}

    def close(self) -> None:
        self._thread.join(10)
        self._server.close()


def all_rules(net: Any, loss: float, share: float = 1.0) -> list[DeviceRules]:
    def rule(source: str) -> LinkRule:
        model = Bernoulli(loss) if loss else NO_LOSS
        return LinkRule(source, net.address(source), RATE_BPS * share, 0, 0, 0.2, model, seed=3)

    return [
        DeviceRules(device, net.address(device), tuple(rule(s) for s in net.devices if s != device), None)
        for device in net.devices
    ]


def calibrate(
    net: Any, folder: Path, shaped: list[DeviceRules], asked: list[DeviceRules], phase: Literal["speed", "loss"]
) -> list[dict[str, Any]]:
    """Shape the devices, run the probe on all of them and return its rows."""
    context = multiprocessing.get_context("fork")
    barrier, rows = context.Barrier(len(net.devices)), context.Queue()
    config = folder / "plan.json"
    config.write_text(probe.make_plan(asked, phase=phase, full=False).model_dump_json())

    def run(rules: DeviceRules) -> None:
        shaper = Shaper("eth0")
        shaper.apply(rules)
        path = folder / f"{rules.device}.sock"
        agent = AgentStandIn(path, shaper, barrier, rows)
        os.environ.update(TESTBED_DEVICE=rules.device, TESTBED_SOCKET=str(path), TESTBED_CONFIG=str(config))
        barrier.wait(60)
        probe.main()
        agent.close()

    calls = [net.start(rules.device, run, rules) for rules in shaped]
    found = []
    for call in calls:
        call.result()
    while not rows.empty():
        found.append(rows.get(timeout=1))
    rows.close()
    return found


def test_probe_finds_the_links_as_asked(network: Callable[[int], Any], tmp_path: Path) -> None:
    net = network(4)
    rows = calibrate(net, tmp_path, all_rules(net, 0), all_rules(net, 0), "speed")
    assert {row["metric"] for row in rows} == {"round_trip_ms", "message_8kb_ms", "rate_mbps"}
    assert len(rows) == 3 * 12
    assert [probe.describe(row) for row in rows if not row["ok"]] == []


def test_probe_reports_a_link_that_is_slower_than_asked(network: Callable[[int], Any], tmp_path: Path) -> None:
    net = network(2)
    rows = calibrate(net, tmp_path, all_rules(net, 0, FAULTY_SHARE), all_rules(net, 0), "speed")
    wrong = [row for row in rows if row["metric"] == "rate_mbps" and not row["ok"]]
    assert len(wrong) == 2
    for row in wrong:
        assert row["measured"] == pytest.approx(RATE_BPS * FAULTY_SHARE / 1e6, rel=0.02)


def test_probe_finds_the_loss_pattern(network: Callable[[int], Any], tmp_path: Path) -> None:
    net = network(3)
    rows = calibrate(net, tmp_path, all_rules(net, LOSS), all_rules(net, LOSS), "loss")
    assert len(rows) == 2 * 6
    assert [probe.describe(row) for row in rows if not row["ok"]] == []
    assert sum(row["measured"] for row in rows if row["metric"] == "loss_pct") > 0


def test_probe_reports_a_link_that_loses_other_packets(network: Callable[[int], Any], tmp_path: Path) -> None:
    net = network(2)
    rows = calibrate(net, tmp_path, all_rules(net, 0.0), all_rules(net, LOSS), "loss")
    assert {row["ok"] for row in rows if row["metric"] == "loss_pattern_wrong"} == {False}
