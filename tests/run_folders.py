"""Run folders for tests, as runs would have left them: written by the real `Record`, with figures by a formula."""

import json
import shutil
from pathlib import Path
from typing import Any

from testbed.record import Record, Row

PARTS = {"input": 0.02, "embed": 0.03, "encode": 0.05, "send": 0.05, "wait": 0.4, "attention": 0.15, "rest": 0.25}
"""Share of a request's latency; what they leave is untold."""
STRATEGIES = {
    ("single", ""): (3.4, 0),
    ("sequence", "wire=fp32"): (0.95, 9_500_000),
    ("sequence", "wire=int8"): (0.97, 2_400_000),
    ("prism", "Ls=10"): (1.15, 240_000),
    ("astra", "G=1"): (1.1, 6_400),
}
"""Seconds of computing, and bytes that each of four links carries one after another."""
LAYERS = 3
DEVICES = ("d0", "d1", "d2", "d3")


def write_run(
    out: Path, *, name: str = "made-up", rate_mbps: float = 10.0, loss_pct: float = 1.0, requests: int = 5
) -> Path:
    """Write a whole run that ended well."""
    record = Record.create(name=name, scenario=scenario(name, rate_mbps, loss_pct), out=out)
    record.manifest(manifest(out))
    single_s = STRATEGIES["single", ""][0]
    spans: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "astra"}}]
    for (strategy, settings), (compute_s, num_bytes) in STRATEGIES.items():
        about: Row = {"strategy": strategy, "settings": settings, "placement": "replicated"}
        base_s = compute_s + 8 * num_bytes / (1e6 * rate_mbps) * (1 + loss_pct / 20)
        spans.append(
            {"ph": "i", "cat": "marks", "name": f"{strategy} {settings}".strip() + ":begin", "tid": 0, "ts": ts(spans)}
        )
        latencies = [base_s * (1 + 0.03 * ((7 * number) % 5 - 2)) for number in range(requests)]
        for number, latency_s in enumerate(latencies):
            parts: Row = {f"{part}_s": share * latency_s for part, share in PARTS.items()}
            record.row(
                "requests", {**about, "request": number, "latency_s": latency_s, **parts, "answer_digest": "5322e2010"}
            )
            spans += request_spans(len(spans), latency_s, ts(spans))
        record.row(
            "summary",
            {
                **about,
                "requests": requests,
                "latency_p50_s": sorted(latencies)[requests // 2],
                "latency_p95_s": max(latencies),
                "speedup_vs_single": single_s / base_s,
                "bytes_per_request_predicted": 4 * num_bytes,
                "bytes_per_request_expected": round(4.3 * num_bytes) + 700,
                "bytes_per_request_counted": round(4.28 * num_bytes) + 650,
            },
        )
    write_network(record, rate_mbps, loss_pct)
    (out / "timeline.json").write_text(json.dumps({"traceEvents": spans}))
    (out / "logs" / "d0.log").write_text("ready\n")
    verdict = {"met": True, "text": "speedup_vs_single (strategy=astra) must be at least 1, got 3.05"}
    record.finish("ok", expectations=[verdict])
    return out


def write_cut_off_run(out: Path) -> Path:
    """Write what is left of a run that was killed while the program ran: its last row was not written to the end."""
    whole = write_run(out)
    for name in ("summary.csv", "links.csv", "manifest.json", "timeline.json", "events.csv"):
        (whole / name).unlink()
    text = (whole / "requests.csv").read_text()
    (whole / "requests.csv").write_text(text[: text.rindex(",") - 30])
    summary = json.loads((whole / "summary.json").read_text())
    summary |= {"status": "interrupted", "error": "the controller was killed", "rows": [], "expectations": []}
    (whole / "summary.json").write_text(json.dumps(summary))
    return whole


def write_sweep(out: Path) -> Path:
    """Write runs of four rates and two losses, as a sweep does."""
    values = [(rate, loss) for rate in (10.0, 20.0, 50.0, 200.0) for loss in (0.0, 1.0)]
    cells = []
    for rate, loss in values:
        folder = f"cells/rate={rate:g}-loss={loss:g}"
        (out / folder).mkdir(parents=True)
        write_run(out / folder / "run-1", rate_mbps=rate, loss_pct=loss)
        cells.append({"id": folder[-6:], "folder": folder, "values": {}})
    axes = ["links.default.rate_mbps", "links.default.loss_pct"]
    described = {"name": "rates", "axes": axes, "cells": cells, "num_cells": len(cells), "repeat": 1}
    (out / "sweep.json").write_text(json.dumps(described))
    return out


def write_repeated(out: Path, folder: Path, times: int) -> None:
    """Copy a run, so that it looks repeated."""
    for number in range(times):
        shutil.copytree(folder, out / f"run-{number}")


def write_network(record: Record, rate_mbps: float, loss_pct: float) -> None:
    """Write calibration, events and counters of all links."""
    links = [(one, other) for one in DEVICES for other in DEVICES if one != other]
    for place, (source, destination) in enumerate(links):
        ends: Row = {"source": source, "destination": destination}
        for metric, asked, tolerance in (("rate_mbps", rate_mbps, 0.01 * rate_mbps), ("round_trip_ms", 0.0, 1.0)):
            measured = asked + tolerance * (0.1 * (place % 7) - 0.2)
            row = {"metric": metric, "asked": asked, "measured": measured, "tolerance": tolerance, "ok": True}
            record.row("calibration", {**ends, **row})
        record.row(
            "links",
            {**ends, "rate_mbps": rate_mbps, "loss_pct": loss_pct, "bytes": 10**7 + place, "packets": 9000, "lost": 90},
        )
    for number, source, at_s, rate, loss in (
        (0, "d0", 2.0, 2.0, 0.0),
        (1, "d0", 4.0, 2.0, 100.0),
        (1, "d0", 4.5, 2.0, 0.0),
    ):
        record.row(
            "events",
            {
                "event": number,
                "destination": "d1",
                "source": source,
                "action": "link",
                "rate_mbps": rate,
                "loss_pct": loss,
                "intended_s": at_s,
                "applied_s": at_s + 0.002,
                "acknowledged_s": at_s + 0.003,
                "late_ms": 2.0,
            },
        )


def request_spans(request: int, latency_s: float, begin_us: float) -> list[dict[str, Any]]:
    """Return the spans of one request on rank 0: every part once a layer."""
    spans = []
    for layer in range(LAYERS):
        for part, share in PARTS.items():
            duration_us = 1e6 * latency_s * share / LAYERS
            about = {"request": request, "layer": layer}
            spans.append(
                {"ph": "X", "cat": "spans", "name": part, "tid": 0, "ts": begin_us, "dur": duration_us, "args": about}
            )
            begin_us += duration_us
    return spans


def ts(spans: list[dict[str, Any]]) -> float:
    """Return a time after all spans, in microseconds."""
    return max((float(span["ts"]) + float(span.get("dur", 0)) for span in spans if "ts" in span), default=0.0) + 1.0


def scenario(name: str, rate_mbps: float, loss_pct: float) -> str:
    return f"""\
name: {name}
seed: 7
devices: {{count: 4, cpus: 0.4, memory_mb: 3000}}
links:
  default: {{rate_mbps: {rate_mbps}, delay_ms: 0.0, loss_pct: {loss_pct}, queue_ms: 200.0}}
events:
  - {{at_s: 2.0, link: {{from: d0, to: d1}}, set: {{rate_mbps: 2.0}}}}
  - {{at_s: 4.0, link: {{from: d0, to: d1}}, action: flap, down_s: 0.5, up_s: 1.0, times: 1}}
workload: {{command: [astra, bench]}}
"""


def manifest(out: Path) -> dict[str, Any]:
    return {
        "utc": "2026-11-21T12:00:00+00:00",
        "command": ["testbed", "run", "made-up.yaml", "--out", str(out)],
        "python": "3.11.7",
        "versions": {"astra-testbed": "0.1.0", "torch": None},
        "kernel": "6.18.0",
        "cpu": "A processor",
        "mechanism": {"rate": "HTB", "loss": "nftables"},
        "options": {"runtime": "netns", "uncapped": True, "calibrate": True, "go_on": False, "timeout_s": 60.0},
    }
