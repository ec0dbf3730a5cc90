"""Keep the network between agents and controller for agents alone, where it is one (containers).

    eth0  data network      programs, shaped links
    eth1  control network   this agent --TCP--> controller, nothing else: what a program sends here would go unshaped
                            programs --TCP, port 29501--> one another, to say who still takes part (CONTROL_ENDPOINT)

In network namespaces the controller is a Unix socket and there is nothing to keep. Uses the programs `ip` and `nft`.

Engines write a line for each network into a container's /etc/hosts, in no order that they promise, so a device's own
name means both addresses. getaddrinfo(3) ranks them by /etc/gai.conf, in the image a link to the file written here.
"""

import json
import os
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import DeviceError
from testbed.retrying import retried

__all__ = ["PROGRAMS_PORT", "ControlNetwork", "ipv4_address", "name_order"]

PROGRAMS_PORT = 29501
"""Where a program may listen on the control network, which is not shaped: for words, not for data."""

RESOLVE_TIMEOUT_S = 60.0
RESOLVE_PERIOD_S = 0.5
PRECEDENCES = {"::1/128": 50, "::/0": 40, "2002::/16": 30, "::/96": 20, "::ffff:0:0/96": 10}
"""Of getaddrinfo itself (gai.conf(5)): a file that gives one has to give all."""
_TCP = re.compile(r"tcp://([^:]+):(\d+)")


@dataclass(frozen=True)
class ControlNetwork:
    """Where the controller is, and by which interface it is reached."""

    interface: str
    address: str
    port: int

    @classmethod
    def find(cls, endpoint: str) -> "ControlNetwork | None":
        """Find the network of an endpoint; None if that is a Unix socket.

        Waits for a controller that has no address yet, since containers start in any order. Raises DeviceError.
        """
        matched = _TCP.fullmatch(endpoint)
        if matched is None:
            return None
        address = _resolve(matched[1])
        return cls(_ip("route", "get", address)[0]["dev"], address, int(matched[2]))

    def data_interface(self) -> str:
        """Return the one other interface. Raises DeviceError if there are more or none."""
        names = [
            entry["ifname"]
            for entry in _ip("-4", "address", "show", "up")
            if entry["ifname"] not in ("lo", self.interface)
        ]
        if len(names) != 1:
            raise DeviceError(
                f"container: must have one network beside that of {self.address}, got {', '.join(names) or 'none'}; "
                "give it the networks data and control, both internal"
            )
        return str(names[0])

    def rank_addresses(self, folder: Path) -> None:
        """Let the device's own name mean its address on the data network first (see images/Dockerfile)."""
        file = folder / "gai.conf"
        file.write_text(name_order(ipv4_address(self.data_interface())))
        file.chmod(0o644)

    def reserve(self) -> None:
        """Drop what anybody but this process's user sends to this network, and all that comes from others; but for
        what programs say at `PROGRAMS_PORT`.

        Default routes go too: older engines give one to containers whose networks are all internal.
        """
        for route in _ip("-4", "route", "show", "default"):
            _run("ip", "-4", "route", "del", "default", "dev", route["dev"])
        rules = f"""
table inet testbed_control
delete table inet testbed_control
table inet testbed_control {{
  chain send {{
    type filter hook output priority 0; policy accept;
    oifname "{self.interface}" meta skuid {os.geteuid()} ip daddr {self.address} tcp dport {self.port} accept
    oifname "{self.interface}" tcp dport {PROGRAMS_PORT} accept
    oifname "{self.interface}" tcp sport {PROGRAMS_PORT} accept
    oifname "{self.interface}" counter drop
  }}
  chain receive {{
    type filter hook input priority 0; policy accept;
    iifname "{self.interface}" ip saddr {self.address} tcp sport {self.port} accept
    iifname "{self.interface}" tcp dport {PROGRAMS_PORT} accept
    iifname "{self.interface}" tcp sport {PROGRAMS_PORT} accept
    iifname "{self.interface}" counter drop
  }}
}}
"""
        _run("nft", "-f", "-", text=rules)


def ipv4_address(interface: str) -> str:
    """Return the first address of an interface. Raises DeviceError."""
    return str(_ip("-4", "address", "show", "dev", interface)[0]["addr_info"][0]["local"])


def name_order(preferred: str) -> str:
    """Return a gai.conf that puts the IPv4 address `preferred` before every other."""
    ranks = {**PRECEDENCES, f"::ffff:{preferred}/128": 100}
    return "".join(f"precedence {prefix} {rank}\n" for prefix, rank in ranks.items())


def _resolve(host: str) -> str:
    return retried(
        lambda: socket.gethostbyname(host),
        while_raising=OSError,
        timeout_s=RESOLVE_TIMEOUT_S,
        period_s=RESOLVE_PERIOD_S,
        complaint=lambda error: f"controller: {host} must have an address within {RESOLVE_TIMEOUT_S:g} s, got {error}",
    )


def _ip(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_run("ip", "-j", *arguments) or "[]")
    return found


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise DeviceError(f"{' '.join(command)}: must succeed, got {done.stderr.strip()}")
    return done.stdout
