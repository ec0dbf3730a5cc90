"""A benchmark's rank from start to end, through all epochs of its membership.

    load ──► first_epoch ──► join ──► serve strategy after strategy ──► done
                              ▲              │ RecallError: somebody is lost, or is back
                              └─ next_epoch ◄┘ with the position at which rank 0 is

What is served, and how, is `bench_rank`; who takes part, `control`.
"""

import logging

from astra.bench_rank import BenchRank
from astra.config import BenchConfig
from astra.control import Control, Position
from astra.control.opening import OpenControl, open_control
from astra.environment import Environment
from astra.errors import RecallError, TransportError
from astra.joining import Connect, Loaded, connect_zeromq, controlled, join, load
from astra.measure import StrategyResult
from astra.reporting import Reporter

__all__ = ["run_rank"]

_LOGGER = logging.getLogger(__name__)


def run_rank(
    config: BenchConfig,
    environment: Environment,
    reporter: Reporter,
    connect: Connect = connect_zeromq,
    open_control: OpenControl = open_control,
) -> list[StrategyResult]:
    """Be one rank of a benchmark from start to end; return the results on rank 0, and an empty list elsewhere.

    Where the reporter asks for it (see `Reporter.again`), all is served again with what has been loaded.

    Raises:
        ConfigError: The config does not fit this world, or codebooks, checkpoint or inputs cannot be read.
        AstraError: A peer did not answer or was lost, or a message could not be read; names rank, strategy and request.
    """
    loaded: Loaded | None = None
    while True:
        with controlled(config, environment, open_control) as control:
            loaded = loaded or load(config, environment)
            results = _serve(loaded, config, environment, reporter, connect, control=control)
        if not reporter.again():
            return results


def _serve(
    loaded: Loaded,
    config: BenchConfig,
    environment: Environment,
    reporter: Reporter,
    connect: Connect,
    *,
    control: Control,
) -> list[StrategyResult]:
    """Serve the whole benchmark once, with connections of its own, through all epochs of its membership."""
    rank: BenchRank | None = None
    epoch = control.first_epoch()
    while epoch is not None:
        position, is_joined = Position(epoch.job, epoch.request, epoch.message), False
        try:
            with join(loaded, config, environment, connect, epoch=epoch) as world:
                is_joined = True
                control.begin(epoch, world.collectives.watch)
                rank = rank or BenchRank(config, world, reporter, control)
                rank.take_part(world, epoch)
                results = rank.serve_all()
                rank.write_trace(environment.out)
            return results
        except RecallError as recall:
            _LOGGER.warning("rank %d: %s", environment.rank, recall)
        except TransportError as error:
            if is_joined or not epoch.number:
                raise
            _LOGGER.warning("rank %d could not connect: %s", environment.rank, error)
            control.meeting_failed(error)
        epoch = control.next_epoch(rank.position if rank is not None else position)
    _LOGGER.warning("rank %d: the run has ended without it", environment.rank)
    return []
