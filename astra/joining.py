"""How a rank gets ready and joins the others: loads what it needs whoever they are, then connects for one epoch.

    config + environment ──load──► Loaded (model, inputs) ──join(epoch)──► World (jobs, collectives)
                                                        ▲
                                                        └── another epoch: other members, the same model

What a rank does then is `rank`'s business; who takes part is the control plane's (`control`).
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from astra.collectives import Collectives
from astra.config import BenchConfig
from astra.control import Control, Epoch, Limits
from astra.control.opening import OpenControl
from astra.data import load_inputs
from astra.environment import Environment
from astra.errors import ConfigError
from astra.evaluation.labelled_set import LabelledSet
from astra.greeting import Greeting, exchange
from astra.jobs import NOTHING_CHOSEN, Choice, Job, plan_jobs
from astra.memory import keep_freed_memory
from astra.models import ModelAdapter, load_model
from astra.placement import Array
from astra.strategy_config import uses_datagrams
from astra.survey import NOTHING_PREDICTED, Predicted, Survey
from astra.transport import Transport
from astra.transport.datagram import DatagramPort, open_port
from astra.transport.keys import Keys
from astra.transport.listening import SentCodes
from astra.transport.rendezvous import Place, own_address
from astra.transport.zeromq import connect as connect_zeromq

__all__ = [
    "Connect",
    "Loaded",
    "World",
    "connect_zeromq",
    "connected",
    "controlled",
    "join",
    "load",
    "with_keys",
]

Connect = Callable[[int, int, str, int, float], Transport]
"""Takes rank, world size, master address, master port and a timeout in seconds."""

MAX_INPUTS = 128
"""Most inputs held in memory; later requests ask about them again. 100 MB for images of 512 x 512 pixels."""

MEETING_S = 10.0
"""Longest time to connect anew: all are ready for it."""


@dataclass(frozen=True)
class Loaded:
    """What a rank has by itself."""

    model: ModelAdapter
    inputs: Array | None
    """Pixels [N, 3, H, W] or token ids [N, T]; None on a rank that is sent what it needs."""
    labelled: LabelledSet | None
    """What strategies answer besides, if the config names any."""
    survey: Survey
    """What is known of devices and links, where the config has ranks measure them."""


@dataclass(frozen=True)
class World:
    """What a rank has once it is connected to all others."""

    model: ModelAdapter
    jobs: list[Job]
    inputs: Array | None
    """Those of `Loaded`."""
    collectives: Collectives
    codes: SentCodes
    """What the collectives send through, in the order in which they do."""
    labelled: LabelledSet | None = None
    """That of `Loaded`."""
    curve: bool = False
    """Whether what is sent is encrypted."""
    predicted: Predicted = NOTHING_PREDICTED
    """What is expected of the jobs, on rank 0 of a benchmark that predicts."""


@contextmanager
def connected(
    loaded: Loaded, config: BenchConfig, environment: Environment, connect: Connect, *, control: Control
) -> Iterator[World]:
    """Join all others in the one epoch that there is where nobody goes on without somebody; leave as `join` does.

    Raises:
        ConfigError: The config does not fit this world, or ranks hold different inputs.
        AstraError: Not all ranks showed up.
    """
    epoch = control.first_epoch()
    assert epoch is not None, "nobody is left out where nobody goes on without"
    with join(loaded, config, environment, connect, epoch=epoch) as world:
        control.begin(epoch, world.collectives.watch)
        yield world


def controlled(config: BenchConfig, environment: Environment, open_control: OpenControl) -> Control:
    """Open this rank's end of the control plane."""
    return open_control(environment, Limits.of(config.failures, config.timeout_s))


def load(config: BenchConfig, environment: Environment) -> Loaded:
    """Load what a rank needs whoever the others are.

    Raises:
        ConfigError: Codebooks, checkpoint or inputs cannot be read, or a strategy cannot be spread over all devices.
    """
    if environment.num_threads is not None:
        torch.set_num_threads(environment.num_threads)
    keep_freed_memory()
    model = load_model(config.model)
    labelled = None if config.accuracy is None else LabelledSet(config.accuracy, config, model)
    if config.partition != "cpus":
        _lay_out(config, model, labelled, environment.world_size)  # before anybody is waited for
    has_inputs = environment.rank == 0 or config.input.placement == "replicated"
    count = min(config.requests, MAX_INPUTS)
    inputs = load_inputs(config.input, config.model, count, "request") if has_inputs else None
    _check_vocabulary(inputs, model)
    # The collector holds the interpreter while it walks all that is there, which can take a second: from now on it
    # leaves the model's and the libraries' objects alone, so that neither requests nor reports have to wait for it.
    gc.collect()
    gc.freeze()
    cpus = environment.cpus or float(torch.get_num_threads())
    return Loaded(model, inputs, labelled, Survey(cpus, curve=environment.curve_keys is not None))


@contextmanager
def join(
    loaded: Loaded, config: BenchConfig, environment: Environment, connect: Connect, *, epoch: Epoch
) -> Iterator[World]:
    """Connect to an epoch's other members, and leave them in peace, or at once if something failed.

    Raises:
        ConfigError: The config does not fit these members, or they hold different inputs.
        AstraError: Not all members showed up.
    """
    place = Place(
        epoch.place_of(environment.rank),
        len(epoch.members),
        environment.master_addr,
        epoch.port or environment.master_port,
    )
    config = _for_members(config, epoch)
    limit_s = min(config.timeout_s, MEETING_S) if epoch.number else config.timeout_s
    transport = SentCodes(with_keys(connect, environment, epoch.members)(*place, limit_s))
    port: DatagramPort | None = None
    complete = False
    try:
        if any(uses_datagrams(strategy) for strategy in config.candidates):
            port = open_port(transport, own_address(place), config.timeout_s)
            port.epoch = epoch.number
        collectives = Collectives(transport, config.timeout_s, port)
        jobs, predicted = _meet(loaded, config, environment, collectives, epoch)
        curve = environment.curve_keys is not None
        yield World(loaded.model, jobs, loaded.inputs, collectives, transport, loaded.labelled, curve, predicted)
        complete = True
    finally:
        if port is not None:
            port.close()
        transport.close(abort=not complete)


def with_keys(connect: Callable[..., Transport], environment: Environment, members: Sequence[int]) -> Connect:
    """Let `connect` use this rank's keys, if it has any, among these ranks. Raises ConfigError."""
    if environment.curve_keys is None:
        return connect
    keys = Keys.read(environment.curve_keys, environment.rank, environment.world_size)
    return partial(connect, keys=keys.among(members))


def _meet(
    loaded: Loaded, config: BenchConfig, environment: Environment, collectives: Collectives, epoch: Epoch
) -> tuple[list[Job], Predicted]:
    """Compare notes with the other members where that is needed, and lay out the work; rank 0 predicts it."""
    by_cpus, labelled = config.partition == "cpus", loaded.labelled
    cpus = None
    if by_cpus or config.model.is_text or labelled is not None:
        examples = None if labelled is None else labelled.examples.inputs
        greetings = exchange(collectives, Greeting.of(environment.cpus, loaded.inputs, examples))
        cpus = [greeting.cpus for greeting in greetings] if by_cpus else None
    if not config.measures_first:
        return _lay_out(config, loaded.model, labelled, collectives.world_size, cpus), NOTHING_PREDICTED
    survey, weights = loaded.survey, config.weights(collectives.world_size, cpus)
    if not epoch.number:
        survey.take(loaded.model, collectives, epoch.members)
    among = None
    if config.auto is not None:
        prospects = survey.predict(config, config.auto.among, loaded.model, weights, epoch.members)
        among = survey.choose(collectives, prospects)
    bits = survey.choose_bits(config, loaded.model, weights, epoch.members, collectives) if config.chooses_bits else {}
    choice = Choice(among, bits)
    jobs = _lay_out(config, loaded.model, labelled, collectives.world_size, cpus, choice=choice)
    return jobs, survey.predict(config, [job.strategy for job in jobs], loaded.model, weights, epoch.members)


def _for_members(config: BenchConfig, epoch: Epoch) -> BenchConfig:
    """Return the config with the weights of an epoch's members only."""
    if isinstance(config.partition, str) or len(config.partition) == len(epoch.members):
        return config
    weights = tuple(config.partition[rank] for rank in epoch.members)
    return config.model_copy(update={"partition": weights})


def _lay_out(
    config: BenchConfig,
    model: ModelAdapter,
    labelled: LabelledSet | None,
    world_size: int,
    cpus: Sequence[float] | None = None,
    *,
    choice: Choice = NOTHING_CHOSEN,
) -> list[Job]:
    """Lay out the requests and the labelled set; raise ConfigError with what is wrong in either of them."""
    jobs, faults = [], list[str]()
    try:
        jobs = plan_jobs(config, model, world_size, cpus, choice=choice)
    except ConfigError as error:
        faults += error.faults
    try:
        if labelled is not None:
            labelled.lay_out(config.weights(world_size, cpus))
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults)
    return jobs


def _check_vocabulary(inputs: Array | None, model: ModelAdapter) -> None:
    """Refuse token ids that the model has no embedding for."""
    highest = int(inputs.max()) if inputs is not None and model.shape.vocabulary else 0
    if highest and highest >= model.shape.vocabulary:
        raise ConfigError(
            [
                f"config: token ids must be below the model's vocabulary, {model.shape.vocabulary}, got {highest}; "
                "use the tokenizer that belongs to the checkpoint"
            ]
        )
