"""Scenario to per-device link rules, in SI units. Pure.

    Scenario (Mbps, ms, %)  --rules_for-->  DeviceRules (bit/s, s, fractions)  --shaper-->  kernel

Every device shapes what it *receives*, so `DeviceRules` lists the links that end at that device. Does not talk to
the kernel and does not read files.
"""

from dataclasses import dataclass

__all__ = ["DeviceRules", "LinkRule"]


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
    loss: float
    """Bernoulli loss probability, 0 to 1."""
    seed: int
    """The scenario's seed; with the names of both ends it fixes which packets are lost."""


@dataclass(frozen=True)
class DeviceRules:
    """All that one device shapes."""

    device: str
    address: str
    rules: tuple[LinkRule, ...]
    uplink_bps: float | None
    """Cap over all that the device sends, or None."""
