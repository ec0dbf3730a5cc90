"""Ring exchanges add up and bring round, in every wire, and send what the formulas say; ranks are threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from astra.collectives import Collectives
from astra.ring import Ring, plan_all_gather, plan_all_reduce, plan_reduce_scatter
from astra.timeline import Timeline
from astra.traffic import PlannedMessage
from astra.transport import Tag, Traffic
from astra.transport.inproc import connect
from astra.wire import Wire

WIDTH = 6
SUMMED = 1e-6  # fp32 sums of four values in another order
ERRORS: dict[Wire, float] = {"fp32": SUMMED, "fp16": 4e-3, "int8": 4e-2, "int4": 0.7}  # of sums of size 4, three hops
TAG = Tag(0, 2, "ring")
TILES = [[3], [2, 1], [4, 0, 2], [1, 5, 2, 3]]

Result = TypeVar("Result")


def on_every_rank(
    world_size: int, wire: Wire, work: Callable[[int, Ring], Result]
) -> tuple[list[Result], list[Traffic]]:
    transports = connect(world_size)

    def one_rank(rank: int) -> Result:
        return work(rank, Ring(Collectives(transports[rank], 20.0), Timeline(rank), wire))

    with ThreadPoolExecutor(world_size) as pool:
        results = list(pool.map(one_rank, range(world_size)))
    return results, [transport.traffic for transport in transports]


def parts(world_size: int, num_tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(world_size)
    return [torch.randn(2, num_tokens, WIDTH, generator=generator) for _ in range(world_size)]


def check_counted(planned: Sequence[PlannedMessage], traffic: Sequence[Traffic], batch: int) -> None:
    for rank, counted in enumerate(traffic):
        own = [message for message in planned if message.source == rank]
        assert counted.messages_sent == sum(message.count for message in own)
        assert counted.payload_bytes_sent == batch * sum(message.payload_bytes * message.count for message in own)


@pytest.mark.parametrize("tile_tokens", TILES)
def test_all_gather_brings_every_tile_in_ring_order(tile_tokens: list[int]) -> None:
    tiles = [torch.randn(2, num_tokens, WIDTH) for num_tokens in tile_tokens]
    world_size = len(tiles)
    gathered, traffic = on_every_rank(
        world_size, "fp32", lambda rank, ring: list(ring.all_gather(TAG, tiles[rank], tile_tokens))
    )
    for rank, arrived in enumerate(gathered):
        assert [owner for owner, _ in arrived] == [(rank - hop) % world_size for hop in range(world_size)]
        assert all(torch.equal(tile, tiles[owner]) for owner, tile in arrived)
    check_counted(plan_all_gather(tile_tokens, WIDTH, "fp32", 1), traffic, batch=2)


@pytest.mark.parametrize("tile_tokens", TILES)
def test_reduce_scatter_gives_each_rank_the_sum_of_its_tile(tile_tokens: list[int]) -> None:
    summands = parts(len(tile_tokens), sum(tile_tokens))
    whole = torch.stack(summands).sum(dim=0).split(tile_tokens, dim=1)

    def reduce(rank: int, ring: Ring) -> Tensor:
        own = summands[rank].split(tile_tokens, dim=1)
        return ring.reduce_scatter(TAG, lambda tile: own[tile])

    reduced, traffic = on_every_rank(len(tile_tokens), "fp32", reduce)
    for rank, tile in enumerate(reduced):
        torch.testing.assert_close(tile, whole[rank], rtol=SUMMED, atol=SUMMED)
    check_counted(plan_reduce_scatter(tile_tokens, WIDTH, "fp32", 1), traffic, batch=2)


@pytest.mark.parametrize("wire", list(ERRORS))
@pytest.mark.parametrize(("world_size", "num_tokens"), [(1, 3), (2, 5), (3, 9), (4, 2), (4, 11)])
def test_all_reduce_gives_every_rank_the_same_sum(wire: Wire, world_size: int, num_tokens: int) -> None:
    summands = parts(world_size, num_tokens)
    sums, traffic = on_every_rank(world_size, wire, lambda rank, ring: ring.all_reduce(TAG, summands[rank]))
    assert all(torch.equal(total, sums[0]) for total in sums)
    assert float((sums[0] - torch.stack(summands).sum(dim=0)).abs().max()) < ERRORS[wire] * 2
    check_counted(plan_all_reduce(num_tokens, world_size, WIDTH, wire, count=1), traffic, batch=2)


def test_all_reduce_sends_two_passes_of_the_tensor() -> None:
    plan = plan_all_reduce(1024, 4, 768, "fp32", count=1)
    by_rank = [sum(m.payload_bytes for m in plan if m.source == rank) for rank in range(4)]
    assert by_rank == [2 * 3 * 256 * 768 * 4] * 4
