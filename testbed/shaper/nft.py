"""The nftables ruleset that loses and counts packets, as text, and its comparison with `nft -j`. Pure.

    packet from a source --> counter seen --> position k = 0, 1, ... mod cycle --in pattern?--> counter lost, drop

The hook comes after the ingress redirect, so a lost packet has used up the link's time, as on a real link. Its
priority is before connection tracking's defragmentation: each fragment is a packet of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.loss import PATTERN_LENGTH

__all__ = ["TABLE", "LossRule", "change_text", "differences", "load_text", "remove_text"]

TABLE = "testbed"
PRIORITY = -450


@dataclass(frozen=True)
class LossRule:
    """The k-th packet from `address` is lost where k modulo `cycle` is in `lost` (ascending)."""

    number: int
    address: str
    lost: tuple[int, ...]
    cycle: int = PATTERN_LENGTH

    @property
    def chain(self) -> str:
        """Name of the link's own chain, so that it can change alone."""
        return f"lose_{self.number}"

    @property
    def seen_counter(self) -> str:
        """Name of the counter of all packets that came over the link."""
        return f"seen_{self.number}"

    @property
    def lost_counter(self) -> str:
        """Name of the counter of those that were dropped."""
        return f"lost_{self.number}"

    def condition(self) -> tuple[str, list[int]] | None:
        """Return how the position is compared with which set; None without a comparison.

        The kernel gets the smaller half: the positions that are lost, or that are not (`!=`).
        """
        if len(self.lost) in (0, self.cycle):
            return None
        if 2 * len(self.lost) <= self.cycle:
            return "==", list(self.lost)
        kept = set(range(self.cycle)) - set(self.lost)
        return "!=", sorted(kept)


def load_text(interface: str, rules: Sequence[LossRule]) -> str:
    """Return one transaction that replaces the whole table, positions and counters at 0."""
    counters = [f"counter {name} {{}}" for rule in rules for name in (rule.seen_counter, rule.lost_counter)]
    hook = f"type filter hook prerouting priority {PRIORITY}; policy accept;"
    chains = ["\n".join([f"chain {rule.chain} {{", hook, _rule_text(interface, rule), "}"]) for rule in rules]
    return "\n".join([remove_text(), f"table ip {TABLE} {{", *counters, *chains, "}", ""])


def change_text(interface: str, rule: LossRule) -> str:
    """Return one transaction that replaces one link's pattern: its position is 0 again, its counters go on."""
    chain = f"chain ip {TABLE} {rule.chain}"
    return f"flush {chain}\nadd rule ip {TABLE} {rule.chain} {_rule_text(interface, rule)}\n"


def remove_text() -> str:
    """Return a transaction that removes the table whether it is there or not."""
    return f"table ip {TABLE}\ndelete table ip {TABLE}\n"


def _rule_text(interface: str, rule: LossRule) -> str:
    text = f'iifname "{interface}" ip saddr {rule.address} counter name {rule.seen_counter}'
    condition = rule.condition()
    if condition is not None:
        operator, positions = condition
        written = "" if operator == "==" else f"{operator} "
        text += f" numgen inc mod {rule.cycle} {written}{{ {', '.join(map(str, positions))} }}"
    return f"{text} counter name {rule.lost_counter} drop" if rule.lost else text


def differences(interface: str, rules: Sequence[LossRule], listing: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Compare `nft -j list table` with what was asked: (field, asked, got) wherever they differ."""
    objects = listing.get("nftables", [])
    chains = [entry["chain"] for entry in objects if "chain" in entry]
    got_hook = [(chain["name"], chain.get("hook"), chain.get("prio"), chain.get("policy")) for chain in chains]
    found = [_flatten(entry["rule"]["expr"]) for entry in objects if "rule" in entry]
    asked = [_expected(interface, rule) for rule in rules]
    wanted_hook = [(rule.chain, "prerouting", PRIORITY, "accept") for rule in rules]
    different: list[tuple[str, Any, Any]] = []
    if got_hook != wanted_hook:
        different.append(("nftables chains", wanted_hook, got_hook))
    if len(found) != len(asked):
        different.append(("number of nftables rules", len(asked), len(found)))
    for rule, wanted, got in zip(rules, asked, found, strict=False):
        for name in wanted.keys() | got.keys():
            if wanted.get(name) != got.get(name):
                different.append((f"nftables rule of {rule.address}, {name}", wanted.get(name), got.get(name)))
    return different


def _expected(interface: str, rule: LossRule) -> dict[str, Any]:
    wanted: dict[str, Any] = {"iifname": ("==", interface), "saddr": ("==", rule.address)}
    wanted["counters"] = [rule.seen_counter] + ([rule.lost_counter] if rule.lost else [])
    condition = rule.condition()
    if condition is not None:
        wanted["numgen"] = (condition[0], "inc", rule.cycle, 0)
        wanted["positions"] = set(condition[1])
    if rule.lost:
        wanted["drop"] = True
    return wanted


def _flatten(expressions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reduce the JSON of one rule to what `_expected` states of it."""
    got: dict[str, Any] = {"counters": []}
    for expression in expressions:
        match expression:
            case {"counter": str(name)}:
                got["counters"].append(name)
            case {"match": {"op": op, "left": {"numgen": generator}, "right": right}}:
                got["numgen"] = (op, generator["mode"], generator["mod"], generator.get("offset", 0))
                got["positions"] = _positions(right)
            case {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}:
                got[key] = (op, right)
            case {"match": {"op": op, "left": {"payload": {"field": field}}, "right": right}}:
                got[field] = (op, right)
            case {"drop": None}:
                got["drop"] = True
            case other:
                got[str(sorted(other))] = other
    return got


def _positions(right: Any) -> set[int]:
    """Return the members of an anonymous set; nft writes a single one bare and neighbours as ranges."""
    members = right["set"] if isinstance(right, dict) else [right]
    found: set[int] = set()
    for member in members:
        if isinstance(member, dict):
            first, last = member["range"]
            found.update(range(first, last + 1))
        else:
            found.add(member)
    return found
