"""Links measured from within: every pair once, rates and round trips that a transport double has."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from worker_worlds import Recorder

from astra.collectives import Collectives
from astra.link_probe import Measured, measure_links, pairs_in_turn
from astra.transport import Tag, framed_size, inproc

TIMEOUT_S = 30.0
SLEEPS = 0.35
"""A busy machine sleeps longer than it is asked to."""


@dataclass
class Slow(Recorder):
    """A transport on which each message takes as long as its bytes would on a link of this rate."""

    rate_bps: float = math.inf

    def receive(self, peer: int, tag: Tag, timeout_s: float) -> memoryview:
        payload = super().receive(peer, tag, timeout_s)
        time.sleep(8 * framed_size(len(payload)) / self.rate_bps)
        return payload


@pytest.mark.parametrize("world_size", range(1, 10))
def test_all_pairs_meet_once_and_nobody_twice_at_a_time(world_size: int) -> None:
    turns = [list(pairs_in_turn(rank, world_size)) for rank in range(world_size)]
    for rank, partners in enumerate(turns):
        assert sorted(each for each in partners if each is not None) == [r for r in range(world_size) if r != rank]
        assert all(turns[other][turn] == rank for turn, other in enumerate(partners) if other is not None)


def measured(world_size: int, rate_bps: float, turns: int = 7) -> Measured:
    transports = [Slow(pipe, rate_bps=rate_bps) for pipe in inproc.connect(world_size)]
    with ThreadPoolExecutor(world_size) as pool:
        found = list(pool.map(lambda each: measure_links(Collectives(each, TIMEOUT_S), turns), transports))
    assert all(not each for each in found[1:])
    return found[0]


def test_rates_are_found() -> None:
    links = measured(3, 20e6)
    assert [link[:2] for link in links] == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    for _, _, speed in links:
        assert speed.rate_bps == pytest.approx(20e6, rel=SLEEPS)
        assert speed.delay_s < 0.01


def test_links_that_were_left_out_are_taken_for_the_median() -> None:
    links = measured(4, 50e6, turns=1)
    rates = {link[2].rate_bps for link in links}
    assert len(links) == 12
    assert len(rates) <= 5  # two pairs, both ways, and the median


def test_one_rank_has_no_links() -> None:
    assert measured(1, 1e6) == []
