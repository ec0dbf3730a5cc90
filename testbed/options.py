"""How a scenario is to be run, and whether this machine and runtime can do so at all. Pure but for counting cores."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed.errors import UnsupportedError
from testbed.event_clock import SIGNALS
from testbed.runtimes import RUNTIMES
from testbed.scenario import Scenario, device_names

__all__ = ["Options", "check_cpus", "check_events"]

CPUS_SLACK = 1e-6
"""For sums of numbers such as 0.1."""


@dataclass(frozen=True)
class Options:
    """How to run a scenario, apart from what it says."""

    runtime: str = "netns"
    out: Path | None = None
    uncapped: bool = False
    calibrate: bool = True
    go_on: bool = False
    """Run although a link measured outside its tolerance."""
    timeout_s: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return them as JSON can say them, for the manifest."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def check_cpus(scenario: Scenario, options: Options) -> None:
    """Refuse devices that together have more CPUs than this machine: they would take them from one another."""
    if options.go_on or options.uncapped or options.runtime == "compose":
        return
    caps = [scenario.devices.spec(name).cpus or 0.0 for name in device_names(scenario.devices.count)]
    cores = len(os.sched_getaffinity(0))
    if sum(caps) > cores + CPUS_SLACK:
        raise UnsupportedError(
            f"devices.cpus: must add up to at most this machine's {cores} cores, got {sum(caps):g}; give the devices "
            "less (null sets no limit), or run with --go-on and do not believe the figures"
        )


def check_events(scenario: Scenario, options: Options) -> None:
    """Refuse events that neither the runtime nor an agent can carry out."""
    able = RUNTIMES[options.runtime].acts | SIGNALS.keys()
    faults = [
        f"events[{number}].action: must be {' or '.join(sorted(able))} with --runtime {options.runtime}, got "
        f"{event.action!r}; only an engine starts a device again: use --runtime docker or netns"
        for number, event in enumerate(scenario.events)
        if event.device is not None and event.action not in able
    ]
    if faults:
        raise UnsupportedError("\n".join(faults))
