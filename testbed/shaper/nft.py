"""The nftables ruleset that loses and counts packets, as text, and its comparison with `nft -j`. Pure.

    lose_1, a hook: packet from the first source --> counter seen --jump--┐
    pattern_1_0: position k = 0, 1, ... mod cycle --in pattern?--> counter lost, drop

A pattern has a chain of its own, so that the next one can be loaded, which takes time, before the jump is turned to it,
which takes none. Its positions begin with the first packet that it meets.

The hook comes after the ingress redirect, so a lost packet has used up the link's time, as on a real link. Its
priority is before connection tracking's defragmentation: each fragment is a packet of its own.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.loss import PATTERN_LENGTH

__all__ = [
    "TABLE",
    "LossRule",
    "differences",
    "forget_text",
    "load_text",
    "pattern_text",
    "remove_text",
    "switch_text",
]

TABLE = "testbed"
PRIORITY = -450


@dataclass(frozen=True)
class LossRule:
    """The k-th packet from `address` is lost where k modulo `cycle` is in `lost` (ascending)."""

    number: int
    address: str
    lost: tuple[int, ...]
    cycle: int = PATTERN_LENGTH
    version: int = 0
    """Counts the patterns that the link has had."""

    @property
    def chain(self) -> str:
        """Name of the link's own chain, so that it can change alone."""
        return f"lose_{self.number}"

    @property
    def pattern_chain(self) -> str:
        """Name of the chain that holds the pattern."""
        return f"pattern_{self.number}_{self.version}"

    @property
    def seen_counter(self) -> str:
        """Name of the counter of all packets that came over the link."""
        return f"seen_{self.number}"

    @property
    def lost_counter(self) -> str:
        """Name of the counter of those that were dropped."""
        return f"lost_{self.number}"

    @property
    def num_positions(self) -> int:
        """How many positions the kernel has to keep."""
        return min(len(self.lost), self.cycle - len(self.lost))

    def condition(self) -> tuple[str, list[int]] | None:
        """Return how the position is compared with which set; None without a comparison.

        The kernel gets the smaller half: the positions that are lost, or that are not (`!=`).
        """
        return _condition(self.lost, self.cycle)


def load_text(interface: str, rules: Sequence[LossRule]) -> str:
    """Return one transaction that replaces the whole table, positions and counters at 0."""
    counters = [f"counter {name} {{}}" for rule in rules for name in (rule.seen_counter, rule.lost_counter)]
    hook = f"type filter hook prerouting priority {PRIORITY}; policy accept;"
    chains = [
        f"chain {rule.chain} {{\n{hook}\n{_hook_rule(interface, rule)}\n}}\n"
        f"chain {rule.pattern_chain} {{\n{_pattern_rule(rule)}\n}}"
        for rule in rules
    ]
    return "\n".join([remove_text(), f"table ip {TABLE} {{", *counters, *chains, "}", ""])


def pattern_text(rule: LossRule) -> str:
    """Return one transaction that loads a pattern which no packet meets yet."""
    chain = f"ip {TABLE} {rule.pattern_chain}"
    return f"add chain {chain}\nflush chain {chain}\n" + (
        f"add rule {chain} {_pattern_rule(rule)}\n" if rule.lost else ""
    )


def switch_text(interface: str, rules: Sequence[LossRule]) -> str:
    """Return one transaction that turns links to patterns that are loaded; their counters go on."""
    return "".join(
        f"flush chain ip {TABLE} {rule.chain}\nadd rule ip {TABLE} {rule.chain} {_hook_rule(interface, rule)}\n"
        for rule in rules
    )


def forget_text(rule: LossRule) -> str:
    """Return one transaction that removes a pattern which no packet meets any more."""
    return f"delete chain ip {TABLE} {rule.pattern_chain}\n"


def remove_text() -> str:
    """Return a transaction that removes the table whether it is there or not."""
    return f"table ip {TABLE}\ndelete table ip {TABLE}\n"


def _hook_rule(interface: str, rule: LossRule) -> str:
    return f'iifname "{interface}" ip saddr {rule.address} counter name {rule.seen_counter} jump {rule.pattern_chain}'


def _pattern_rule(rule: LossRule) -> str:
    if not rule.lost:
        return ""
    return f"{_condition_text(rule.lost, rule.cycle)}counter name {rule.lost_counter} drop"


def _condition(lost: Sequence[int], cycle: int) -> tuple[str, list[int]] | None:
    if len(lost) in (0, cycle):
        return None
    if 2 * len(lost) <= cycle:
        return "==", list(lost)
    kept = set(range(cycle)) - set(lost)
    return "!=", sorted(kept)


@functools.lru_cache(maxsize=128)  # what comes back is not written twice: events wait for it
def _condition_text(lost: tuple[int, ...], cycle: int) -> str:
    condition = _condition(lost, cycle)
    if condition is None:
        return ""
    operator, positions = condition
    written = "" if operator == "==" else f"{operator} "
    return f"numgen inc mod {cycle} {written}{{ {', '.join(map(str, positions))} }} "


def differences(
    interface: str, rules: Sequence[LossRule], listing: Mapping[str, Any], spare: Sequence[LossRule] = ()
) -> list[tuple[str, Any, Any]]:
    """Compare `nft -j list table` with what was asked: (field, asked, got) wherever they differ.

    `spare` are patterns that are loaded though no packet meets them.
    """
    objects = listing.get("nftables", [])
    chains = [entry["chain"] for entry in objects if "chain" in entry]
    got_chains = {chain["name"]: (chain.get("hook"), chain.get("prio"), chain.get("policy")) for chain in chains}
    wanted_chains: dict[str, Any] = {rule.chain: ("prerouting", PRIORITY, "accept") for rule in rules}
    wanted_chains |= {rule.pattern_chain: (None, None, None) for rule in (*rules, *spare)}
    different: list[tuple[str, Any, Any]] = []
    if got_chains != wanted_chains:
        different.append(("nftables chains", wanted_chains, got_chains))
    found = [(entry["rule"]["chain"], _flatten(entry["rule"]["expr"])) for entry in objects if "rule" in entry]
    expected = [_expected_hook(interface, rule) for rule in rules]
    expected += [_expected_pattern(rule) for rule in (*rules, *spare)]
    asked = [(chain, wanted) for each in expected for chain, wanted in each.items()]
    if sorted(chain for chain, _ in found) != sorted(chain for chain, _ in asked):
        different.append(("chains of nftables rules", [chain for chain, _ in asked], [chain for chain, _ in found]))
    got_rules = dict(found)
    for chain, wanted in asked:
        got = got_rules.get(chain, {})
        for name in wanted.keys() | got.keys():
            if wanted.get(name) != got.get(name):
                different.append((f"nftables rule in {chain}, {name}", wanted.get(name), got.get(name)))
    return different


def _expected_hook(interface: str, rule: LossRule) -> dict[str, dict[str, Any]]:
    """Return what is asked of the one rule of a link's own chain."""
    return {
        rule.chain: {
            "iifname": ("==", interface),
            "saddr": ("==", rule.address),
            "counters": [rule.seen_counter],
            "jump": rule.pattern_chain,
        }
    }


def _expected_pattern(rule: LossRule) -> dict[str, dict[str, Any]]:
    """Return what is asked of the one rule of a pattern; a pattern that loses nothing has none."""
    if not rule.lost:
        return {}
    asked: dict[str, Any] = {"counters": [rule.lost_counter], "drop": True}
    condition = rule.condition()
    if condition is not None:
        asked |= {"numgen": (condition[0], "inc", rule.cycle, 0), "positions": set(condition[1])}
    return {rule.pattern_chain: asked}


def _flatten(expressions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reduce the JSON of one rule to what is stated of it."""
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
            case {"jump": {"target": str(target)}}:
                got["jump"] = target
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
