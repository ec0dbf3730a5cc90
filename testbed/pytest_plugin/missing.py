"""Why a scenario cannot be run on this machine, as `testbed doctor` sees it."""

from functools import cache

from testbed.doctor import shortcomings
from testbed.scenario import Scenario, device_names

__all__ = ["missing_for"]


def missing_for(scenario: Scenario, *, runtime: str, uncapped: bool) -> str | None:
    """Name what this machine lacks for a scenario, with the way out, or return None."""
    caps = (scenario.devices.spec(name) for name in device_names(scenario.devices.count))
    limits = not uncapped and any(spec.cpus or spec.memory_mb for spec in caps)
    lacking = [*_shortcomings(runtime), *(_shortcomings("limits") if limits and runtime == "netns" else ())]
    return "; ".join(lacking) or None


@cache
def _shortcomings(need: str) -> tuple[str, ...]:
    return tuple(f"{each.name} ({each.detail}): {each.way_out}" for each in shortcomings(need))
