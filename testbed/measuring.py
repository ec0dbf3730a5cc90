"""Calibration as the controller has it done: the probe runs on every device, and its rows are kept and judged.

    measure_links --shape, without loss--> probe: speed --shape--> probe: loss --> rows of the table `calibration`
    report_calibration --> a line, or CalibrationError

What the probe measures, and how true is true enough, are for `probe` and `calibration` to know.
"""

from pathlib import Path

from testbed import probe
from testbed.display import Display
from testbed.errors import CalibrationError
from testbed.fleet import Fleet
from testbed.job import Job
from testbed.links import rules_for
from testbed.loss import NO_LOSS
from testbed.record import Record, Row
from testbed.runtimes.surroundings import Identity
from testbed.scenario import Scenario, device_names

__all__ = ["measure_links", "report_calibration"]

PROBE_TIMEOUT_S = 600.0


def measure_links(fleet: Fleet, scenario: Scenario, record: Record, *, full: bool) -> list[Row]:
    """Measure every link with the probe: speed without loss, then loss. The links are left shaped for neither."""
    rules = [rules_for(scenario, name, fleet.addresses()) for name in device_names(scenario.devices.count)]
    lossy = any(rule.loss != NO_LOSS for device in rules for rule in device.rules)
    fleet.shape(with_loss=False)
    _probe(fleet, probe.make_plan(rules, phase="speed", full=full))
    if lossy:
        fleet.shape()
        _probe(fleet, probe.make_plan(rules, phase="loss", full=full))
    return record.tables.get("calibration", [])


def _probe(fleet: Fleet, plan: probe.Plan) -> None:
    job = Job("the probe", probe.COMMAND, plan.model_dump(mode="json"), Path.cwd(), PROBE_TIMEOUT_S)
    fleet.execute(job, Identity())


def report_calibration(rows: list[Row], display: Display, *, go_on: bool) -> None:
    """Say how true the links are. Raises CalibrationError if one is not, unless told to go on."""
    off = [probe.describe(row) for row in rows if not row["ok"]]
    if not off:
        display.say(f"calibrated: {len(rows)} measurements of the links, all within tolerance")
        return
    if not go_on:
        raise CalibrationError(
            "\n".join([*off, "other programs on this machine disturb the links; stop them, or run with --go-on"])
        )
    for line in off:
        display.say(f"out of tolerance: {line}")
