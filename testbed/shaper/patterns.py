"""The loss patterns of a device's links in nftables: loaded, turned to, read back, counted, forgotten.

    LinkRule --draw--> LossRule --load--> a chain that no packet meets --switch--> the link's pattern

Drawing and loading take milliseconds, switching does not. So what a schedule will need is loaded and read back before
it begins, and stays; a link that comes back to a pattern goes on where it left it. `nft` is the text of all this and
`testbed.loss` draws; what else a link does is not known here.
"""

import functools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from testbed.links import DeviceRules, LinkRule
from testbed.loss import Loss, drop_pattern
from testbed.shaper import nft
from testbed.shaper.kernel import Kernel

__all__ = ["MOST_POSITIONS", "LossPatterns"]

MOST_POSITIONS = 1 << 17
"""Kept by the kernel for one device, for forty patterns of 5 % loss or four of half: 12 MB of its memory."""
LOADING_S = 1.5
"""Most that loading ahead may take, on a machine that is too busy for MOST_POSITIONS; reading back takes twice that."""


class LossPatterns:
    """Which packets are lost on the links of one interface; links are numbered from 1, as in the rules."""

    def __init__(self, kernel: Kernel):
        self._kernel = kernel
        self._in_use: tuple[nft.LossRule, ...] = ()
        self._loaded: dict[tuple[int, Loss], nft.LossRule] = {}
        """By link and model, whether or not packets meet them."""
        self._late: list[tuple[int, Loss]] = []
        """Those that were loaded when they were due; they do not stay."""
        self.unread = False
        """Whether patterns have been loaded that were not read back yet."""

    def apply(self, rules: DeviceRules) -> None:
        """Replace all patterns by those of `rules`."""
        numbered = list(enumerate(rules.rules, start=1))
        self._in_use = tuple(_loss_rule(number, rule, rules.device) for number, rule in numbered)
        self._loaded = {(number, rule.loss): self._in_use[number - 1] for number, rule in numbered}
        self.reset()

    def reset(self) -> None:
        """Put every pattern in use back to position 0 and every counter to 0; forget the others."""
        self._kernel.nft(nft.load_text(self._kernel.interface, self._in_use))
        self._loaded = {key: rule for key, rule in self._loaded.items() if self._is_used(rule)}
        self._late.clear()
        self.unread = True

    def load_ahead(self, to_come: Iterable[tuple[int, LinkRule]]) -> None:
        """Load the patterns that links will have, first those that come first, and read them back.

        Those beyond MOST_POSITIONS and LOADING_S are left for when they are due.
        """
        end = time.monotonic() + LOADING_S
        room = MOST_POSITIONS - sum(rule.num_positions for rule in self._loaded.values())
        for number, rule in to_come:
            if (number, rule.loss) not in self._loaded:
                drawn = self._draw(number, rule)
                room -= drawn.num_positions
                if room < 0 or time.monotonic() > end:
                    break
                self._load(drawn, rule)
        if self.unread:
            self.check()

    def load(self, number: int, rule: LinkRule) -> nft.LossRule:
        """Return the pattern that a link is to have, loaded; no packet meets it before `switch`."""
        key = (number, rule.loss)
        if key not in self._loaded:
            self._load(self._draw(number, rule), rule)
            self._late.append(key)
        return self._loaded[key]

    def switch(self, loaded: Sequence[nft.LossRule]) -> None:
        """Turn links to patterns that are loaded, in one transaction; counters go on.

        Positions begin at 0 with a pattern that is new to a link, and go on where they were with one that is not.
        """
        if loaded:
            self._kernel.nft(nft.switch_text(self._kernel.interface, loaded))
            new = {rule.number: rule for rule in loaded}
            self._in_use = tuple(new.get(rule.number, rule) for rule in self._in_use)

    def check_switches(self) -> None:
        """Read back which pattern every link is turned to; takes well under a millisecond, unlike `check`."""
        jumps = self._kernel.read(lambda reader: reader.nft_jumps(nft.TABLE))
        asked = {rule.chain: [rule.pattern_chain] for rule in self._in_use}
        got = {chain: jumps.get(chain, []) for chain in asked}
        self._kernel.complain([(self._kernel.interface, ("nftables jumps", asked, got))] if got != asked else [])

    def check(self) -> None:
        """Remove what was loaded late and is out of use, and read back the others.

        Takes long where they are dense. Raises ShaperError with every difference.
        """
        for key in [key for key in self._late if not self._is_used(self._loaded[key])]:
            self._kernel.nft(nft.forget_text(self._loaded.pop(key)))
            self._late.remove(key)
        listing = json.loads(self._kernel.run(["nft", "-j", "list", "table", "ip", nft.TABLE]))
        spare = [rule for rule in self._loaded.values() if not self._is_used(rule)]
        differences = nft.differences(self._kernel.interface, self._in_use, listing, spare)
        self._kernel.complain([(self._kernel.interface, each) for each in differences])
        self.unread = False

    def lost(self) -> list[int]:
        """Return how many packets each link has lost, in the order of the rules; takes well under a millisecond."""
        counters = self._kernel.read(lambda reader: reader.nft_counters(nft.TABLE))
        return [counters[rule.lost_counter] for rule in self._in_use]

    def clear(self) -> None:
        """Remove all of it, also what another run left."""
        self._kernel.nft(nft.remove_text())
        self._in_use, self.unread = (), False
        self._loaded.clear()
        self._late.clear()

    def _draw(self, number: int, rule: LinkRule) -> nft.LossRule:
        version = 1 + max(known.version for known in self._loaded.values() if known.number == number)
        return replace(_loss_rule(number, rule, self._kernel.device), version=version)

    def _load(self, drawn: nft.LossRule, rule: LinkRule) -> None:
        self._kernel.nft(nft.pattern_text(drawn))
        self._loaded[drawn.number, rule.loss] = drawn
        self.unread = True

    def _is_used(self, rule: nft.LossRule) -> bool:
        return any(rule is used for used in self._in_use)


def _loss_rule(number: int, rule: LinkRule, destination: str) -> nft.LossRule:
    lost, cycle = _pattern(rule.loss, rule.seed, rule.source, destination)
    return nft.LossRule(number, rule.source_address, lost, cycle)


@functools.lru_cache(maxsize=128)  # as in nft.py
def _pattern(loss: Loss, seed: int, source: str, destination: str) -> tuple[tuple[int, ...], int]:
    """Return the positions that are lost, and of how many."""
    pattern = drop_pattern(loss, seed=seed, source=source, destination=destination)
    return tuple(pattern.nonzero()[0].tolist()), len(pattern)
