"""`astra evaluate`: every strategy answers the labelled set, on every number of devices and for every seed.

    one process     a thread for each device, joined by `transport.inproc`      evaluate_here
    a testbed       this process is one device of several, joined by ZeroMQ     evaluate_as_rank

Both run the same strategies on the same batches, so that they come to the same numbers.

    cells_of(config, world_size) ──► Cell: strategy, weights, seed ──answer──► Outcome ──► results.py
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from astra.collectives import Collectives
from astra.config import ModelConfig, StrategyConfig
from astra.data import Examples, load_examples
from astra.environment import Environment
from astra.errors import ConfigError
from astra.evaluation.answering import Answers, answer_examples, num_batches, unknown_ids
from astra.evaluation.config import EvaluationConfig, datagram_faults
from astra.evaluation.results import Outcome
from astra.fit import Need, fit_missing, needs_of
from astra.greeting import Greeting, exchange
from astra.jobs import Job, lay_out
from astra.joining import Connect, connect_zeromq, with_keys
from astra.measure import label
from astra.models import ModelAdapter, load_model
from astra.strategies import RankContext
from astra.strategy_config import SingleConfig, uses_datagrams
from astra.timeline import Timeline
from astra.transport import inproc
from astra.transport.datagram import open_port
from astra.transport.rendezvous import Place, own_address

__all__ = ["Cell", "Progress", "cells_of", "evaluate_as_rank", "evaluate_here", "evaluation_needs"]

Progress = Callable[[str, int, int], None]
"""Called with what is evaluated, how many examples are answered, and of how many."""


@dataclass(frozen=True)
class Cell:
    """One strategy on some devices, with one seed."""

    index: int
    """Which of the config's strategies it is."""
    strategy: StrategyConfig
    model: ModelConfig
    """Without the strategy's own weights."""
    weights: tuple[float, ...]
    """The share of each rank."""
    seed: int

    @property
    def num_devices(self) -> int:
        """How many devices work: of `single` one."""
        return 1 if isinstance(self.strategy, SingleConfig) else len(self.weights)

    @property
    def title(self) -> str:
        """Name it for progress and errors."""
        devices = f"{self.num_devices} device{'s' if self.num_devices > 1 else ''}"
        return f"{label(self.strategy)}, {devices}, seed {self.seed}"


def cells_of(config: EvaluationConfig, world_size: int | None = None) -> list[Cell]:
    """List what is to be run; `world_size` replaces the config's devices. What no seed changes is run for the first."""
    cells = []
    for seed in config.seeds:
        seeded = config.for_seed(seed)
        for index, strategy in enumerate(seeded.strategies):
            if seed != config.seeds[0] and not config.varies(config.strategies[index]):
                continue
            is_single = isinstance(strategy, SingleConfig)
            sizes = (world_size,) if world_size else (1,) if is_single else config.devices
            cells += [Cell(index, strategy, seeded.model, _weights(config, size, seed), seed) for size in sizes]
    return cells


def evaluation_needs(config: EvaluationConfig) -> list[Need]:
    """Return what codebooks the evaluation needs."""
    return [need for cell in cells_of(config) for need in needs_of([cell.strategy], cell.model, config.data)]


def evaluate_here(config: EvaluationConfig, progress: Progress) -> list[Outcome]:
    """Evaluate in this process, with a thread for each device; missing codebooks are fitted first.

    Raises:
        ConfigError: Model, data or codebooks cannot be read, or a strategy cannot be spread over so many devices.
    """
    if found := datagram_faults(config):
        raise ConfigError(found)
    fit_missing(evaluation_needs(config), progress)
    cells = cells_of(config)
    subject = _Subject(config, cells)
    outcomes = []
    for cell, job in zip(cells, subject.jobs, strict=True):
        (answers,) = _in_threads(subject, cell, job, config, progress)
        outcomes.append(subject.outcome(cell, job, answers))
    return outcomes


def _in_threads(
    subject: "_Subject", cell: Cell, job: Job, config: EvaluationConfig, progress: Progress
) -> list[Answers]:
    """Run one cell with a thread for each device; return what those that have answers, rank 0, have."""
    transports = inproc.connect(len(cell.weights))
    worlds = [Collectives(transport, config.timeout_s) for transport in transports]
    answer = partial(subject.answer, cell=cell, job=job, model=subject.model_for(job), index=0, progress=progress)
    try:
        with _shared_threads(len(transports)), ThreadPoolExecutor(len(transports)) as pool:
            return [answers for answers in pool.map(answer, worlds) if answers is not None]
    finally:
        for transport in transports:
            transport.close()


def evaluate_as_rank(
    config: EvaluationConfig, environment: Environment, progress: Progress, connect: Connect = connect_zeromq
) -> list[Outcome]:
    """Be one device of an evaluation; return the outcomes on rank 0, and an empty list elsewhere.

    Raises:
        ConfigError: As `evaluate_here`, or codebooks have not been fitted, or ranks hold different data.
        AstraError: A peer did not answer or a message could not be read.
    """
    if environment.num_threads is not None:
        torch.set_num_threads(environment.num_threads)
    cells = cells_of(config, environment.world_size)
    subject = _Subject(config, cells)
    place = Place(environment.rank, environment.world_size, environment.master_addr, environment.master_port)
    transport = with_keys(connect, environment, range(environment.world_size))(*place, config.timeout_s)
    port, complete = None, False
    try:
        if any(uses_datagrams(cell.strategy) for cell in cells):
            port = open_port(transport, own_address(place), config.timeout_s)
        collectives = Collectives(transport, config.timeout_s, port)
        exchange(collectives, Greeting.of(environment.cpus, None, subject.examples.inputs))
        outcomes, index = [], 1
        for cell, job in zip(cells, subject.jobs, strict=True):
            model = subject.model_for(job)
            answers = subject.answer(collectives, cell=cell, job=job, model=model, index=index, progress=progress)
            index += num_batches(subject.examples, config.batch_size)
            if answers is not None:
                outcomes.append(subject.outcome(cell, job, answers))
        complete = True
    finally:
        if port is not None:
            port.close()
        transport.close(abort=not complete)
    return outcomes


class _Subject:
    """The models, the examples, and how the work is laid out."""

    def __init__(self, config: EvaluationConfig, cells: Sequence[Cell]):
        self._config = config
        self._held: dict[ModelConfig, ModelAdapter] = {}
        self._first = cells[0].model
        self._shape = self._load(self._first).shape
        self.examples: Examples = load_examples(config.data, cells[0].model, config.split, limit=config.limit)
        if found := unknown_ids(self.examples, self._shape):
            raise ConfigError(found)
        self.jobs = self._lay_out(cells)

    def model_for(self, job: Job) -> ModelAdapter:
        """Return the model that a job runs; the one before is freed first."""
        return self._load(job.model)

    def answer(
        self, collectives: Collectives, *, cell: Cell, job: Job, model: ModelAdapter, index: int, progress: Progress
    ) -> Answers | None:
        """Take part in a cell as one rank; return the answers on rank 0."""
        context = RankContext(
            model=model,
            collectives=collectives,
            ranges=job.ranges,
            weights=job.weights,
            timeline=Timeline(collectives.rank),
            codebook_folder=job.codebook_folder,
        )
        size = self._config.batch_size
        return answer_examples(
            context,
            job,
            self.examples,
            size,
            first_index=index,
            progress=lambda done, total: progress(cell.title, done, total),
        )

    def outcome(self, cell: Cell, job: Job, answers: Answers) -> Outcome:
        """Put together what came of a cell."""
        return Outcome(cell.index, cell.num_devices, cell.seed, job.ranges, self._shape, answers, job.coded_share)

    def _load(self, config: ModelConfig) -> ModelAdapter:
        if config not in self._held:
            self._held.clear()
            self._held[config] = load_model(config)
        return self._held[config]

    def _lay_out(self, cells: Sequence[Cell]) -> list[Job]:
        """Lay out all cells, or raise ConfigError with what is wrong in any of them."""
        jobs, found = [], dict[str, None]()
        for cell in cells:
            try:
                model = self._load(self._first)
                jobs += lay_out([cell.strategy], cell.weights, cell.model, model, self._config.data)
            except ConfigError as error:
                found |= dict.fromkeys(f"{cell.title}: {fault}" for fault in error.faults)
        if found:
            raise ConfigError(list(found))
        return jobs


def _weights(config: EvaluationConfig, num_devices: int, seed: int) -> tuple[float, ...]:
    """Return the share of each device."""
    if config.partition == "random":
        drawn = np.random.default_rng([seed, num_devices]).dirichlet(np.ones(num_devices))
        return tuple(drawn.tolist())
    if config.partition == "even" or num_devices != len(config.partition):
        return (1.0,) * num_devices  # `single` needs one device, whatever the partition
    return config.partition


@contextmanager
def _shared_threads(num_devices: int) -> Iterator[None]:
    """Leave each device's thread its share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_devices))
    try:
        yield
    finally:
        torch.set_num_threads(before)
