"""The probe from its start to its end: slot by slot, the device's part in it, and its rows."""

import contextlib
import os
import sys
from pathlib import Path

from testbed.calibration import Plan, slots
from testbed.device_client import DeviceClient
from testbed.probe.loss import measure_loss
from testbed.probe.speed import measure_speed

__all__ = ["main"]


def main() -> None:
    """Measure every link that ends here and serve those that begin here."""
    plan = Plan.model_validate_json(Path(os.environ["TESTBED_CONFIG"]).read_text())
    device = os.environ["TESTBED_DEVICE"]
    sys.setswitchinterval(1e-4)  # sender and receiver share one interpreter; the default of 5 ms would be measured
    call = DeviceClient(os.environ["TESTBED_SOCKET"])
    with contextlib.closing(call):
        schedule = slots(plan)
        for number, links in enumerate(schedule):
            call.ask(op="progress", label=f"calibrating {plan.phase}", done=number, total=len(schedule))
            measure = measure_speed if plan.phase == "speed" else measure_loss
            for row in measure(plan, device, links, f"{plan.phase}-{number}", call):
                call.ask(op="row", table="calibration", row=row)
        call.ask(op="progress", label=f"calibrating {plan.phase}", done=len(schedule), total=len(schedule))
