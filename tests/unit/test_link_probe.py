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
    assert all(not links for links, _ in found[1:])
    assert all((prices is None) == (world_size == 1) for _, prices in found)
    return found[0][0]


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


@dataclass
class Costly(Recorder):
    """A transport whose messages take CPU time: so much each, sent or received, and so much a byte."""

    message_s: float = 0.0
    byte_s: float = 0.0

    def send(self, peer: int, tag: Tag, payload: bytes | bytearray | memoryview) -> None:
        super().send(peer, tag, payload)
        self._work(len(payload))

    def receive(self, peer: int, tag: Tag, timeout_s: float) -> memoryview:
        payload = super().receive(peer, tag, timeout_s)
        self._work(len(payload))
        return payload

    def _work(self, size: int) -> None:
        end_s = time.thread_time() + self.message_s + size * self.byte_s
        while time.thread_time() < end_s:
            pass


def test_cpu_time_of_messages_is_found() -> None:
    """Both ranks are threads of one process, whose CPU time is that of both ends."""
    transports = [Costly(pipe, message_s=1e-3, byte_s=2e-8) for pipe in inproc.connect(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda each: measure_links(Collectives(each, TIMEOUT_S)), transports))
    for _, prices in found:
        assert prices is not None
        assert 1e-3 <= prices.message_s < 2.5e-3
        assert 2e-8 * 0.9 <= prices.byte_s < 2 * 2e-8 * (1 + SLEEPS)
