"""The loss patterns of a device's links in nftables: loaded, turned to, read back, counted, forgotten.

    LinkRule --draw--> LossRule --load--> a chain that no packet meets --switch--> the link's pattern --> forgotten

`nft` is the text of all this and `testbed.loss` draws; what else a link does is not known here.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import replace

from testbed.links import DeviceRules, LinkRule
from testbed.loss import Loss, drop_pattern
from testbed.shaper import nft
from testbed.shaper.kernel import Kernel

__all__ = ["LossPatterns"]


class LossPatterns:
    """Which packets are lost on the links of one interface; links are numbered from 1, as in the rules."""

    def __init__(self, kernel: Kernel):
        self._kernel = kernel
        self._in_use: tuple[nft.LossRule, ...] = ()
        self._past: list[nft.LossRule] = []
        """Whose patterns are loaded still, though no packet meets them."""

    def apply(self, rules: DeviceRules) -> None:
        """Replace all patterns by those of `rules`."""
        self._in_use = tuple(_loss_rule(number, rule, rules.device) for number, rule in enumerate(rules.rules, start=1))
        self.reset()

    def reset(self) -> None:
        """Put every pattern back to position 0 and every counter to 0."""
        self._kernel.nft(nft.load_text(self._kernel.interface, self._in_use))

    def load(self, number: int, rule: LinkRule) -> nft.LossRule:
        """Load the pattern that a link is to have; no packet meets it before `switch`."""
        version = self._in_use[number - 1].version + 1
        loaded = replace(_loss_rule(number, rule, self._kernel.device), version=version)
        self._kernel.nft(nft.pattern_text(loaded))
        return loaded

    def switch(self, loaded: Sequence[nft.LossRule]) -> None:
        """Turn links to patterns that are loaded, in one transaction; they begin at position 0, and counters go on."""
        if not loaded:
            return
        self._kernel.nft(nft.switch_text(self._kernel.interface, loaded))
        new = {rule.number: rule for rule in loaded}
        self._past += [rule for rule in self._in_use if rule.number in new]
        self._in_use = tuple(new.get(rule.number, rule) for rule in self._in_use)

    def check_switches(self) -> None:
        """Read back which pattern every link is turned to; takes well under a millisecond, unlike `check`."""
        jumps = self._kernel.read(lambda reader: reader.nft_jumps(nft.TABLE))
        asked = {rule.chain: [rule.pattern_chain] for rule in self._in_use}
        got = {chain: jumps.get(chain, []) for chain in asked}
        self._kernel.complain([(self._kernel.interface, ("nftables jumps", asked, got))] if got != asked else [])

    def check(self) -> None:
        """Remove the patterns that `switch` has put out of use, and read back the others.

        Takes long where they are dense. Raises ShaperError with every difference.
        """
        while self._past:
            self._kernel.nft(nft.forget_text(self._past.pop()))
        listing = json.loads(self._kernel.run(["nft", "-j", "list", "table", "ip", nft.TABLE]))
        differences = nft.differences(self._kernel.interface, self._in_use, listing)
        self._kernel.complain([(self._kernel.interface, each) for each in differences])

    def lost(self) -> list[int]:
        """Return how many packets each link has lost, in the order of the rules; takes well under a millisecond."""
        counters = self._kernel.read(lambda reader: reader.nft_counters(nft.TABLE))
        return [counters[rule.lost_counter] for rule in self._in_use]

    def clear(self) -> None:
        """Remove all of it, also what another run left."""
        self._kernel.nft(nft.remove_text())
        self._in_use = ()
        self._past.clear()


def _loss_rule(number: int, rule: LinkRule, destination: str) -> nft.LossRule:
    lost, cycle = _pattern(rule.loss, rule.seed, rule.source, destination)
    return nft.LossRule(number, rule.source_address, lost, cycle)


@functools.lru_cache(maxsize=128)  # as in nft.py
def _pattern(loss: Loss, seed: int, source: str, destination: str) -> tuple[tuple[int, ...], int]:
    """Return the positions that are lost, and of how many."""
    pattern = drop_pattern(loss, seed=seed, source=source, destination=destination)
    return tuple(pattern.nonzero()[0].tolist()), len(pattern)
