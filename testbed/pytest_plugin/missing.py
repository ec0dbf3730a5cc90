"""Why a scenario cannot be run on this machine, as `testbed doctor` sees it."""

from functools import cache
from itertools import permutations

from testbed.doctor import shortcomings
from testbed.scenario import Scenario, device_names

__all__ = ["missing_for"]


def missing_for(scenario: Scenario, *, runtime: str, uncapped: bool) -> str | None:
    """Name what this machine lacks for a scenario, with the way out, or return None."""
    needs = [runtime]
    if runtime == "netns":
        caps = (scenario.devices.spec(name) for name in device_names(scenario.devices.count))
        if not uncapped and any(spec.cpus or spec.memory_mb for spec in caps):
            needs.append("limits")
        if _has_delays(scenario):
            needs.append("delays")
    return "; ".join(lack for need in needs for lack in _shortcomings(need)) or None


def _has_delays(scenario: Scenario) -> bool:
    names = device_names(scenario.devices.count)
    links = (scenario.links.settings(*pair) for pair in permutations(names, 2))
    changes = (event.set.given() for event in scenario.events if event.set is not None)
    return any(link.delay_ms for link in links) or any(change.get("delay_ms") for change in changes)


@cache
def _shortcomings(need: str) -> tuple[str, ...]:
    return tuple(f"{each.name} ({each.detail}): {each.way_out}" for each in shortcomings(need))
