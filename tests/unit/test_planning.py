"""Predicted latencies: schedules against messages and operations, clocks against sums made by hand."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import strategy_worlds
from strategy_worlds import CONFIGS, FAMILIES, SPLITS, band_of, inputs_for, lively

from astra.collectives import Collectives
from astra.config import (
    AstraConfig,
    BlockConfig,
    GalaxyConfig,
    ModelConfig,
    PipelineConfig,
    PrismConfig,
    SequenceConfig,
    SingleConfig,
    TensorConfig,
)
from astra.flops import counted_flops
from astra.models import ModelShape, planned_shape
from astra.planning.forecast import Forecast, forecast
from astra.planning.links import TIMEOUT_S, Links, LinkSpeed, start_s
from astra.planning.schedule import Broadcast, Compute, Repeat, Schedule, Send, Step, Wait, messages_of, of_messages
from astra.planning.simulate import clocks_after
from astra.planning.speed import REFERENCE, Device, Speed
from astra.planning.work import KINDS, Work
from astra.strategies import STRATEGIES, RankContext, Request, predict_messages, predict_schedule
from astra.strategy_config import AnyStrategy
from astra.timeline import Timeline
from astra.traffic import PlannedMessage
from astra.transport.inproc import connect
from astra.transport_config import DatagramConfig

STRATEGIES_TO_PLAN: list[AnyStrategy] = [
    SingleConfig(),
    TensorConfig(wire="int8"),
    SequenceConfig(),
    PipelineConfig(),
    GalaxyConfig(wire="fp16"),
    BlockConfig(exchange="all_gather"),
    BlockConfig(exchange="sequence", num_coupled=2),
    PrismConfig(num_segments=2),
    PrismConfig(num_segments=2, transport=DatagramConfig(copies=2)),
    AstraConfig(num_groups=1),
    AstraConfig(num_groups=4, site="kv", transport=DatagramConfig(parity=True)),
    AstraConfig(num_groups=4, code_bits=(10, 6, 6, 8)),
    AstraConfig(num_groups=4, code_bits=(10, 6, 6, 8), transport=DatagramConfig()),
]
TIGHT = 1e-9
"""Sums of the same numbers in another order."""
OPERATIONS = 1e-3
"""Heads of one row are counted without what comes before their last product."""
BASE = ModelConfig(size="base", image_size=512)
LLAMA = ModelConfig.model_validate({"family": "llama", "size": "llama-3-8b", "num_tokens": 2048})
LIMIT_S = 5.0
"""CPU time in which 1,000 devices are planned with."""


def named(strategy: AnyStrategy) -> str:
    return f"{strategy.name} {strategy.settings}".strip()


def tally(messages: Sequence[PlannedMessage]) -> Counter[tuple[int, int, int, bool]]:
    counts: Counter[tuple[int, int, int, bool]] = Counter()
    for message in messages:
        counts[message.source, message.destination, message.payload_bytes, message.is_datagram] += message.count
    return counts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES_TO_PLAN, ids=named)
def test_schedule_sends_what_the_plan_says(family: str, strategy: AnyStrategy) -> None:
    shape = planned_shape(CONFIGS[family])
    for weights in SPLITS:
        try:
            planned = predict_messages(shape, strategy, len(weights), weights)
        except ValueError:
            continue
        schedule = predict_schedule(shape, strategy, len(weights), weights)
        assert tally(list(messages_of(schedule.steps))) == tally(planned), weights
        assert len(schedule.values_held) == len(weights)


def operations(steps: Sequence[Step], rank: int) -> float:
    total = 0.0
    for step in steps:
        if isinstance(step, Repeat):
            total += step.times * operations(step.steps, rank)
        elif isinstance(step, Compute):
            counts = step.work[rank].counts
            total += sum(counts.get(kind, 0.0) for kind in ("dense", "attention"))
    return total


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "strategy",
    [
        SingleConfig(),
        TensorConfig(),
        SequenceConfig(wire="int4"),
        PipelineConfig(),
        GalaxyConfig(),
        BlockConfig(num_blocks=2, exchange="all_gather"),
        BlockConfig(num_blocks=2, exchange="sequence"),
        PrismConfig(num_segments=2),
    ],
    ids=named,
)
def test_schedule_computes_what_is_counted(family: str, strategy: AnyStrategy) -> None:
    model, weights = lively(family), (1.0, 1.0)
    kind = STRATEGIES[strategy.name]
    ranges = kind.partition(model.shape, strategy, weights)
    schedule = predict_schedule(model.shape, strategy, 2)
    transports, inputs = connect(2), inputs_for(model)

    def run(rank: int) -> int:
        context = RankContext(
            model, Collectives(transports[rank], strategy_worlds.TIMEOUT_S), ranges, weights, Timeline(rank)
        )
        running = kind(context, strategy)
        with counted_flops() as count:
            running.forward(Request(0, *band_of(model, inputs, ranges[rank])))
        return count.total

    with ThreadPoolExecutor(2) as pool:
        counted = list(pool.map(run, range(2)))
    for rank in range(2):
        assert operations(schedule.steps, rank) == pytest.approx(counted[rank], rel=OPERATIONS), rank


def only(**seconds: float) -> Speed:
    """Return a speed at which nothing takes time but what is given."""
    named = {kind.replace("_", " "): value for kind, value in seconds.items()}
    return Speed(seconds_per={kind: named.get(kind, 1e-30 if kind == "dense" else 0.0) for kind in KINDS})


def dense(*operations: float) -> Compute:
    return Compute(tuple(Work({"dense": each}) for each in operations))


def test_clock_of_one_message_is_the_sum_of_its_parts() -> None:
    links = Links(LinkSpeed(rate_bps=8e6, delay_s=0.02))
    message = PlannedMessage(1, 0, 954)
    on_link_s = (954 + 46 + 66) * 1e-6  # framing, headers; a byte takes a microsecond
    devices = [Device(only(dense=1e-3))] * 2
    clock = clocks_after((dense(10, 30), Send((message,)), dense(5, 0), Wait(), dense(2, 0)), devices, links)
    assert clock[0] == pytest.approx(0.030 + on_link_s + 0.02 + 0.002, rel=TIGHT)
    assert clock[1] == pytest.approx(0.030, rel=TIGHT)


@pytest.mark.parametrize(("byte_s", "there_s"), [(0.5e-6, 1066e-6), (2e-6, 954 * 2e-6)])
@pytest.mark.parametrize("links", [Links(LinkSpeed(8e6)), Links(LinkSpeed(1e6), ((1, 0, LinkSpeed(8e6)),))])
@pytest.mark.parametrize("step", [Send((PlannedMessage(1, 0, 954),)), Broadcast((0, 954))])
def test_a_link_is_busy_while_bytes_are_handed_over(byte_s: float, there_s: float, links: Links, step: Step) -> None:
    devices = [Device(only(bytes=byte_s))] * 2
    clock = clocks_after((step, Wait()), devices, links)
    assert clock[1] == pytest.approx(954 * byte_s, rel=TIGHT)
    assert clock[0] == pytest.approx(there_s + 954 * byte_s, rel=TIGHT)  # which receiving costs again


def test_work_behind_a_send_hides_the_message() -> None:
    links, devices = Links(LinkSpeed(rate_bps=8e6)), [Device(only(dense=1e-3))] * 2
    begun = (Send((PlannedMessage(1, 0, 954),)), dense(40, 0), Wait())
    assert clocks_after(begun, devices, links)[0] == pytest.approx(0.040, rel=TIGHT)


def test_a_link_carries_one_message_after_the_other() -> None:
    links, devices = Links(LinkSpeed(rate_bps=8e6)), [Device(only())] * 2
    twice = Repeat(2, (Send((PlannedMessage(0, 1, 954),)),))
    assert clocks_after((twice, Wait()), devices, links)[1] == pytest.approx(2 * 1066e-6, rel=TIGHT)


def test_a_quota_is_spent_at_once_after_a_pause() -> None:
    device, links = Device(only(dense=1e-3), cpus=0.4), Links(LinkSpeed())
    burst_s = clocks_after((dense(40),), [device], links)[0]
    assert burst_s == pytest.approx(0.094, rel=TIGHT)  # ten quotas of 4 ms, one a period of 10 ms
    assert clocks_after((dense(3),), [device], links)[0] == pytest.approx(0.003, rel=TIGHT)
    long_s = clocks_after((dense(4000),), [device], links)[0]
    assert long_s == pytest.approx(10.0, rel=1e-3)


def test_several_cores_share_the_work() -> None:
    device, links = Device(only(dense=1e-3), cpus=2.0), Links(LinkSpeed())
    assert clocks_after((dense(40),), [device], links)[0] == pytest.approx(0.020, rel=TIGHT)


def test_tcp_starts_slowly_on_a_long_way() -> None:
    assert start_s(14_000, 1e9, 0.05) == 0.0
    window_s = 14_480 * 8 / 1e9
    assert start_s(40_000, 1e9, 0.05) == pytest.approx(0.1 - window_s, rel=TIGHT)
    assert start_s(10_000_000, 10e6, 0.0) == 0.0


def predicted(strategy: AnyStrategy, links: Links, *, world_size: int = 4, model: ModelConfig = BASE) -> Forecast:
    shape = planned_shape(model)
    devices = [Device(REFERENCE, 0.4)] * world_size
    return forecast(predict_schedule(shape, strategy, world_size), devices, links)


@pytest.mark.parametrize("strategy", STRATEGIES_TO_PLAN, ids=named)
def test_a_faster_link_is_never_slower(strategy: AnyStrategy) -> None:
    latencies = [predicted(strategy, Links(LinkSpeed(rate * 1e6))).latency_s for rate in (2, 10, 50, 500, math.inf)]
    assert latencies == sorted(latencies, reverse=True)


@pytest.mark.parametrize("strategy", STRATEGIES_TO_PLAN, ids=named)
def test_instant_links_leave_computing_alone(strategy: AnyStrategy) -> None:
    found = predicted(strategy, Links(LinkSpeed()))
    parts = (found.compute_s, found.encode_s, found.network_s, found.round_trips_s)
    assert sum(parts) == pytest.approx(found.latency_s, rel=TIGHT)
    shape, devices = planned_shape(BASE), [Device(REFERENCE.without(frozenset(("messages", "bytes"))))] * 4
    free = forecast(predict_schedule(shape, strategy, 4), devices, Links(LinkSpeed()))
    assert free.network_s == free.round_trips_s == 0.0


@pytest.mark.parametrize("strategy", [SequenceConfig(), TensorConfig(), PipelineConfig(), GalaxyConfig()], ids=named)
def test_one_device_takes_as_long_as_single(strategy: AnyStrategy) -> None:
    single = predicted(SingleConfig(), Links(LinkSpeed(1e6)), world_size=1).latency_s
    alone = predicted(strategy, Links(LinkSpeed(1e6)), world_size=1).latency_s
    assert alone == pytest.approx(single, rel=0.02)  # norms that only some strategies do by themselves


@pytest.mark.parametrize("strategy", STRATEGIES_TO_PLAN, ids=named)
@pytest.mark.parametrize("family", ["vit", "gpt2"])
def test_links_that_differ_in_nothing_count_as_alike(strategy: AnyStrategy, family: str) -> None:
    model = (
        BASE if family == "vit" else ModelConfig.model_validate({"family": "gpt2", "size": "small", "num_tokens": 512})
    )
    speed = LinkSpeed(10e6, 0.003, 0.01)
    alike, apart = Links(speed), Links(speed, ((0, 1, speed),))
    one, other = (predicted(strategy, links, model=model).latency_s for links in (alike, apart))
    assert one == pytest.approx(other, rel=1e-3)  # answers of one sender on several links, which one number stands for


def test_a_slow_link_holds_up_all() -> None:
    fast, slow = LinkSpeed(100e6), LinkSpeed(2e6)
    all_fast = predicted(SequenceConfig(), Links(fast)).latency_s
    one_slow = predicted(SequenceConfig(), Links(fast, ((0, 3, slow),))).latency_s
    all_slow = predicted(SequenceConfig(), Links(slow)).latency_s
    assert all_fast < one_slow <= all_slow
    assert one_slow > 0.8 * all_slow  # the slow link is never idle, so that computing hides behind it


def test_an_uplink_is_shared_by_what_leaves_at_once() -> None:
    free, capped = Links(LinkSpeed(10e6)), Links(LinkSpeed(10e6), uplink_bps=10e6)
    thrice = predicted(SequenceConfig(), capped).network_s / predicted(SequenceConfig(), free).network_s
    assert thrice == pytest.approx(3.0, rel=0.2)  # three peers; a part hides behind computing


def test_rounds_that_are_left_out_change_nothing() -> None:
    links, devices = Links(LinkSpeed(8e6)), [Device(only(dense=1e-3), cpus=0.4)] * 3
    layer: tuple[Step, ...] = (Broadcast((954, 954, 500)), dense(3, 2, 1), Wait(), dense(1, 2, 3))
    short = clocks_after((Repeat(30, layer),), devices, links)
    long = clocks_after(layer * 30, devices, links)
    assert short == pytest.approx(long, rel=TIGHT)


def test_causal_ranks_run_ahead_of_later_ones() -> None:
    links, devices = Links(LinkSpeed(8e6)), [Device(only(dense=1e-3))] * 3
    clock = clocks_after((Repeat(4, (Broadcast((10_000,) * 3, causal=True), dense(1, 1, 1), Wait())),), devices, links)
    assert clock[0] == pytest.approx(0.004, rel=TIGHT)
    assert clock[2] > 4 * 10_000e-6


def test_a_strategy_without_a_schedule_is_predicted_from_its_messages() -> None:
    shape = planned_shape(BASE)
    ranges = STRATEGIES["sequence"].partition(shape, SequenceConfig(wire="int8"), [1.0] * 4)
    messages = predict_messages(shape, SequenceConfig(wire="int8"), 4)
    guessed = of_messages(shape, ranges, messages)
    devices, links = [Device(REFERENCE, 0.4)] * 4, Links(LinkSpeed(10e6))
    assert tally(list(messages_of(guessed.steps))) == tally(messages)
    stated = predicted(SequenceConfig(wire="int8"), links).latency_s
    assert forecast(guessed, devices, links).latency_s == pytest.approx(stated, rel=0.5)  # right in kind
    alone = of_messages(shape, [range(1024)], [])
    assert forecast(alone, devices[:1], links).latency_s == pytest.approx(
        predicted(SingleConfig(), links, world_size=1).latency_s, rel=TIGHT
    )


def test_datagrams_of_a_strategy_without_a_schedule_stay_datagrams() -> None:
    shape, strategy = planned_shape(BASE), PrismConfig(num_segments=2, transport=DatagramConfig(copies=2))
    messages = predict_messages(shape, strategy, 4)
    assert any(message.is_datagram for message in messages)
    guessed = of_messages(shape, STRATEGIES["prism"].partition(shape, strategy, [1.0] * 4), messages)
    assert tally(list(messages_of(guessed.steps))) == tally(messages)


def test_a_thousand_devices_take_seconds() -> None:
    begin_s, found = time.process_time(), []
    for strategy in (SingleConfig(), SequenceConfig(wire="int8"), AstraConfig(), PrismConfig(num_segments=1)):
        found.append(predicted(strategy, Links(LinkSpeed(100e6)), world_size=1000, model=LLAMA))
    assert time.process_time() - begin_s < LIMIT_S
    single, *split = found
    assert single.memory_bytes > 4 * 8e9
    assert all(each.latency_s < single.latency_s for each in split)


def test_more_loss_is_never_faster() -> None:
    found = [predicted(AstraConfig(), Links(LinkSpeed(10e6, 0.0, loss))).latency_s for loss in (0.0, 0.01, 0.05)]
    assert found == sorted(found)
    most_s = 12 * TIMEOUT_S * (1 - 0.99**12)  # for any of a layer's twelve messages; own keys and quotas hide some
    assert 0 < found[1] - found[0] <= most_s


def test_speed_files_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    REFERENCE.write(path)
    assert Speed.read(path) == REFERENCE
    half = REFERENCE.scaled(REFERENCE.gflops / 2)
    assert half.seconds_per["attention"] == pytest.approx(2 * REFERENCE.seconds_per["attention"], rel=TIGHT)


def test_work_adds_up() -> None:
    work: Any = Work({"dense": 2.0, "calls": 1.0}) + Work({"dense": 3.0}) * 2
    assert work.counts == {"dense": 8.0, "calls": 1.0}


@pytest.mark.parametrize("strategy", [TensorConfig(), PipelineConfig(), GalaxyConfig()], ids=named)
def test_schedule_holds_a_share_of_the_weights(strategy: AnyStrategy) -> None:
    shape: ModelShape = planned_shape(BASE)
    whole = max(predict_schedule(shape, SingleConfig(), 4).values_held)
    schedule: Schedule = predict_schedule(shape, strategy, 4)
    assert max(schedule.values_held) == pytest.approx(whole / 4, rel=0.05)  # ends of the model lie on one device


@pytest.mark.parametrize("strategy", [TensorConfig(), GalaxyConfig()], ids=named)
def test_every_device_that_embeds_words_holds_all_of_them(strategy: AnyStrategy) -> None:
    shape = planned_shape(LLAMA)
    words, layers = shape.width * shape.vocabulary, shape.num_layers * shape.layer_weights
    first, *others = predict_schedule(shape, strategy, 4).values_held
    assert others == pytest.approx([layers / 4 + words] * 3, rel=TIGHT)
    assert first == pytest.approx(layers / 4 + words + shape.width * shape.num_outputs, rel=TIGHT)


def test_decoupled_layers_hold_blocks_on_the_diagonal() -> None:
    shape = planned_shape(BASE)
    held = predict_schedule(shape, BlockConfig(num_blocks=4, num_coupled=1), 4).values_held
    assert held[1] == pytest.approx(shape.layer_weights * (1 + 11 / 16), rel=TIGHT)
