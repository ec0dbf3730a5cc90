"""What makes an interface's packets count one by one, and its TCP the same on every machine.

Offloads would let one "packet" be many. Congestion control and the shortest timeout are set by route, because the
sysctls may not be written in a namespace, and /proc/sys is read-only in containers; a route's hold for connecting and
accepting sockets alike.
"""

import json
from typing import Any

from testbed.shaper.kernel import Kernel
from testbed.shaper.readback import Difference

__all__ = ["OwnInterface"]

CONGESTION_CONTROL = "cubic"
RTO_MIN_MS = 50
"""TCP's shortest retransmission timeout on every route; Linux's own is 200 ms, an age to a network of milliseconds.

Above the 40 ms for which a receiver may keep an acknowledgement back, or timeouts would fire for packets that arrived.
"""
OFFLOADS = (
    "tx-checksumming",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "tx-udp-segmentation",
    "generic-receive-offload",
    "large-receive-offload",
    "rx-gro-list",
    "rx-udp-gro-forwarding",
)
"""What would let one "packet" be many, or leave its checksum to hardware that is not there."""


class OwnInterface:
    """Offloads and routes of the interface itself."""

    def __init__(self, kernel: Kernel):
        self._kernel = kernel

    def set_up(self) -> None:
        """Switch offloads off, and give the interface's own routes a congestion control and a shortest timeout."""
        on = [name for name, state in self._offloads().items() if state == "on"]
        if on:
            words = [word for name in on for word in (name, "off")]
            self._kernel.run(["ethtool", "-K", self._kernel.interface, *words])
        self._set_metrics(f" congctl {CONGESTION_CONTROL} rto_min {RTO_MIN_MS}ms")

    def clear(self) -> None:
        """Take from the routes what they were given; offloads stay off."""
        self._set_metrics("")

    def differences(self) -> list[Difference]:
        """Compare with what `set_up` asked."""
        different: list[Difference] = [
            (name, "off", state) for name, state in self._offloads().items() if not state.startswith("off")
        ]
        for route in self._connected_routes():
            metrics = {name: value for values in route.get("metrics", []) for name, value in values.items()}
            for name, asked in (("congestion", CONGESTION_CONTROL), ("rto_min", RTO_MIN_MS)):
                if metrics.get(name) != asked:
                    different.append((f"{name} of route {route['dst']}", asked, metrics.get(name)))
        return different

    def mechanism(self) -> dict[str, str]:
        """Say what was set, for the record of a run."""
        return {
            "offloads_off": ", ".join(OFFLOADS),
            "tcp_congestion_control": f"{CONGESTION_CONTROL} (by route)",
            "tcp_rto_min": f"{RTO_MIN_MS} ms (by route)",
        }

    def _offloads(self) -> dict[str, str]:
        """Return the state of each of OFFLOADS that the interface has: on, off, or with "[fixed]"."""
        lines = self._kernel.run(["ethtool", "-k", self._kernel.interface]).splitlines()
        states = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
        return {name: states[name] for name in OFFLOADS if name in states}

    def _set_metrics(self, metrics: str) -> None:
        """Give all connected routes these metrics, or with "" take away those that they were given."""
        for route in self._connected_routes():
            pinned = any("congestion" in values for values in route.get("metrics", []))
            if metrics or pinned:
                place = f"dev {self._kernel.interface} proto kernel scope link src {route['prefsrc']}"
                if "metric" in route:
                    place += f" metric {route['metric']}"
                self._kernel.run(f"ip -4 route replace {route['dst']} {place}{metrics}".split())

    def _connected_routes(self) -> list[dict[str, Any]]:
        interface = self._kernel.interface
        shown = self._kernel.run(
            ["ip", "-j", "-4", "route", "show", "dev", interface, "proto", "kernel", "scope", "link"]
        )
        routes: list[dict[str, Any]] = json.loads(shown or "[]")
        return routes
