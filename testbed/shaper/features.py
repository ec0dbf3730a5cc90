"""Ask the kernel what it can emulate by doing it, in a network namespace that is thrown away.

Modules that are not loaded yet are loaded by the attempt where this is possible, so the answer holds for the real run.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.shaper import delays

__all__ = ["FEATURES", "STAND_INS", "Feature", "has_netem", "has_packet_queues", "missing_features", "missing_programs"]

PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables", "ethtool": "ethtool", "unshare": "util-linux"}
"""Programs that are run, and the Debian packages they are in."""
NAMESPACE = ("unshare", "--net")
USER_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")
NETEM_ATTEMPT = "tc qdisc add dev {0} root netem delay 1ms"
ATTEMPT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Feature:
    """Something the kernel has to be able to do: what for, the option that builds it, and an attempt in shell."""

    purpose: str
    option: str
    module: str
    attempt: str

    def way_out(self) -> str:
        """Say what it is for and how to get it."""
        extra = "Debian and Ubuntu cloud kernels need linux-image-<arch> or linux-modules-extra-$(uname -r)"
        return f"{self.purpose}; modprobe {self.module}, or a kernel with {self.option} ({extra})"


FEATURES = {
    "veth": Feature("joins devices", "CONFIG_VETH", "veth", "ip link add v0 type veth peer name v1"),
    "bridge": Feature("is the switch", "CONFIG_BRIDGE", "bridge", "ip link add b0 type bridge"),
    "ifb": Feature("carries what a device receives", "CONFIG_IFB", "ifb", "ip link add i0 type ifb"),
    "sch_ingress": Feature(
        "takes received packets", "CONFIG_NET_SCH_INGRESS", "sch_ingress", "tc qdisc add dev lo clsact"
    ),
    "cls_u32": Feature(
        "tells sources apart",
        "CONFIG_NET_CLS_U32",
        "cls_u32",
        "tc filter add dev lo ingress protocol ip prio 1 u32 match u32 0 0 classid 1:1",
    ),
    "act_mirred": Feature(
        "redirects received packets",
        "CONFIG_NET_ACT_MIRRED",
        "act_mirred",
        "tc filter add dev lo ingress protocol ip prio 2 u32 match u32 0 0 action mirred egress redirect dev lo",
    ),
    "sch_htb": Feature("limits rates", "CONFIG_NET_SCH_HTB", "sch_htb", "tc qdisc add dev lo root handle 1: htb"),
    "sch_netem": Feature(
        "delays packets (delay_ms and jitter_ms; nothing else needs it)",
        "CONFIG_NET_SCH_NETEM",
        "sch_netem",
        f"tc qdisc del dev lo root 2>/dev/null; {NETEM_ATTEMPT.format('lo')}",
    ),
    "xt_NFQUEUE": Feature(
        "lets a process delay packets (to max(5 %, 1 ms) at up to 50 Mbps; needs the package iptables)",
        "CONFIG_NETFILTER_XT_TARGET_NFQUEUE and CONFIG_NETFILTER_NETLINK_QUEUE",
        "xt_NFQUEUE",
        delays.ATTEMPT,
    ),
    "nft_numgen": Feature(
        "loses packets by a pattern",
        "CONFIG_NFT_NUMGEN",
        "nft_numgen",
        "printf 'table ip t {\\n chain c {\\n type filter hook prerouting priority -450\\n"
        " numgen inc mod 65536 { 1, 2 } counter drop\\n }\\n}\\n' | nft -f -",
    ),
    "tcp_cubic": Feature(
        "is the congestion control of every run",
        "CONFIG_TCP_CONG_CUBIC",
        "tcp_cubic",
        "ip link set lo up && ip route add 192.0.2.0/24 dev lo congctl cubic",
    ),
}

STAND_INS = {"sch_netem": "xt_NFQUEUE", "xt_NFQUEUE": "sch_netem"}
"""Features of which one is enough."""


def missing_features() -> dict[str, str]:
    """Try every feature; return those that failed, each with what it is for and how to get it."""
    missing = missing_programs()
    if missing:
        return missing
    script = "\n".join(f"({feature.attempt}) >/dev/null 2>&1 && echo {name}" for name, feature in FEATURES.items())
    for prefix in (NAMESPACE, USER_NAMESPACE):
        done = _run([*prefix, "sh", "-c", f"echo entered\n{script}\ntrue"])
        if "entered" in done:
            return {name: feature.way_out() for name, feature in FEATURES.items() if name not in done}
    return {"network namespaces": "isolate devices; run as root, or allow unprivileged user namespaces"}


def missing_programs() -> dict[str, str]:
    """Return the programs that are not on the PATH, each with the package it is in."""
    return {
        name: f"sets links up; install the package {package}"
        for name, package in PROGRAMS.items()
        if shutil.which(name) is None
    }


def has_netem() -> bool:
    """Whether the kernel can delay packets.

    Where no namespace can be made (a container with nothing but NET_ADMIN) an interface of its own is used instead.
    """
    for prefix in (NAMESPACE, USER_NAMESPACE):
        done = _run([*prefix, "sh", "-c", f"echo entered; {NETEM_ATTEMPT.format('lo')} && echo netem"])
        if "entered" in done:
            return "netem" in done
    attempt = NETEM_ATTEMPT.format("tb-try")
    return "netem" in _run(["sh", "-c", f"ip link add tb-try type ifb && {attempt} && echo netem; ip link del tb-try"])


def has_packet_queues() -> bool:
    """Whether a process can hold packets back, which delays them where the kernel cannot.

    Where no namespace can be made the only way to know is to do it, so there the answer is yes.
    """
    for prefix in (NAMESPACE, USER_NAMESPACE):
        done = _run([*prefix, "sh", "-c", f"echo entered; ({delays.ATTEMPT}) >/dev/null 2>&1 && echo queues"])
        if "entered" in done:
            return "queues" in done
    return shutil.which("iptables") is not None


def _run(command: Sequence[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=ATTEMPT_TIMEOUT_S)
    return done.stdout.split()
