"""Scenario to per-device link rules, in SI units. Pure.

    Scenario (Mbps, ms, %)  --rules_for-->  DeviceRules (bit/s, s, fractions)  --shaper-->  kernel

Every device shapes what it *receives*, so `DeviceRules` lists the links that end at that device. Does not talk to
the kernel and does not read files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed.loss import NO_LOSS, Loss

if TYPE_CHECKING:  # agents get rules and never read a scenario, whose schema is slow to import
    from testbed.scenario import LinkSettings, Scenario

__all__ = ["DeviceRules", "LinkRule", "rules_for"]


@dataclass(frozen=True)
class LinkRule:
    """One directed link as its receiving device has to shape it."""

    source: str
    """Name of the sending device."""
    source_address: str
    """IPv4 address of the sending device on the data network."""
    rate_bps: float | None
    """Bits per second, counted with 14 Ethernet header bytes a frame; None leaves the rate alone."""
    delay_s: float
    jitter_s: float
    queue_s: float
    """Depth of the queue in seconds at `rate_bps`."""
    loss: Loss
    seed: int
    """The scenario's seed; with the names of both ends it fixes which packets are lost."""
    reorder: float = 0.0
    """Probability that a packet is not delayed, and so overtakes those that are; the others keep their order."""


@dataclass(frozen=True)
class DeviceRules:
    """All that one device shapes."""

    device: str
    address: str
    rules: tuple[LinkRule, ...]
    uplink_bps: float | None
    """Cap over all that the device sends, or None."""

    def without_loss(self) -> "DeviceRules":
        """Return the same rules with empty drop patterns and all packets in order, to measure what else links do."""
        return replace(self, rules=tuple(replace(rule, loss=NO_LOSS, reorder=0.0) for rule in self.rules))


def rules_for(scenario: "Scenario", destination: str, addresses: Mapping[str, str]) -> DeviceRules:
    """Return what the device `destination` shapes: one rule for every other device, in order of their names.

    `addresses` maps every device of the scenario to its IPv4 address on the data network. Raises KeyError if
    `destination` is not a device of the scenario or an address is missing.
    """
    from testbed.scenario import device_names

    names = device_names(scenario.devices.count)
    if destination not in names:
        raise KeyError(destination)
    uplink_mbps = scenario.links.uplink_mbps
    return DeviceRules(
        device=destination,
        address=addresses[destination],
        rules=tuple(
            _rule(scenario.links.settings(source, destination), source, addresses[source], scenario.seed)
            for source in names
            if source != destination
        ),
        uplink_bps=None if uplink_mbps is None else uplink_mbps * 1e6,
    )


def _rule(settings: "LinkSettings", source: str, address: str, seed: int) -> LinkRule:
    """Convert the settings of one link to SI units."""
    return LinkRule(
        source=source,
        source_address=address,
        rate_bps=None if settings.rate_mbps is None else settings.rate_mbps * 1e6,
        delay_s=settings.delay_ms / 1000,
        jitter_s=settings.jitter_ms / 1000,
        queue_s=settings.queue_ms / 1000,
        loss=settings.loss_model(),
        seed=seed,
        reorder=settings.reorder_pct / 100,
    )
