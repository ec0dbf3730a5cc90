"""What a strategy is: one way to spread a forward pass over the ranks. The registry.

    STRATEGIES[name].partition(shape, config, weights)   which content tokens each rank owns
    STRATEGIES[name](RankContext, config)        on every rank, once: weights, tables, buffers
        .forward(Request)                        on every rank, per request: logits on rank 0, None elsewhere
    STRATEGIES[name].plan(shape, config, …)      the traffic of one request, as a pure formula
    STRATEGIES[name].schedule(shape, config, …)  optional: who computes, sends and waits when, to predict latency

Adding a strategy is one file here and one entry in `STRATEGIES`. Every strategy runs all layers for all tokens, also
the last one, of which a classifier reads only the class token: no strategy is flattered by pruning.
"""

from collections.abc import Mapping, Sequence

from astra.config import StrategyConfig
from astra.models import ModelShape
from astra.planning.schedule import Schedule, of_messages
from astra.strategies.astra import AstraStrategy
from astra.strategies.block import BlockStrategy
from astra.strategies.galaxy import GalaxyStrategy
from astra.strategies.pipeline import PipelineStrategy
from astra.strategies.prism import PrismStrategy
from astra.strategies.protocol import RankContext, Request, ServesMany, StatesSchedule, Strategy
from astra.strategies.sequence import SequenceStrategy
from astra.strategies.single import SingleStrategy
from astra.strategies.tensor import TensorStrategy
from astra.traffic import PlannedMessage, bytes_of

__all__ = [
    "STRATEGIES",
    "RankContext",
    "Request",
    "ServesMany",
    "Strategy",
    "predict_bytes",
    "predict_messages",
    "predict_schedule",
]

STRATEGIES: Mapping[str, type[Strategy]] = {
    "single": SingleStrategy,
    "tensor": TensorStrategy,
    "sequence": SequenceStrategy,
    "pipeline": PipelineStrategy,
    "galaxy": GalaxyStrategy,
    "block": BlockStrategy,
    "prism": PrismStrategy,
    "astra": AstraStrategy,
}


def predict_messages(
    shape: ModelShape, config: StrategyConfig, world_size: int, weights: Sequence[float] | None = None
) -> list[PlannedMessage]:
    """Return every message that one request of batch 1 sends under `config`; `weights` None splits evenly. Pure."""
    strategy = STRATEGIES[config.name]
    weights = weights or [1.0] * world_size
    ranges = strategy.partition(shape, config, weights)
    return strategy.plan(shape, config, ranges, weights)


def predict_bytes(
    shape: ModelShape, config: StrategyConfig, world_size: int, weights: Sequence[float] | None = None
) -> int:
    """Return the payload bytes of one request of batch 1, summed over all ranks and links. Pure."""
    return bytes_of(predict_messages(shape, config, world_size, weights))


def predict_schedule(
    shape: ModelShape, config: StrategyConfig, world_size: int, weights: Sequence[float] | None = None
) -> Schedule:
    """Return what all ranks do for one request of batch 1: as the strategy states it, or made of its messages. Pure.

    Raises:
        ValueError: The strategy cannot split the model over these ranks.
    """
    strategy = STRATEGIES[config.name]
    weights = weights or [1.0] * world_size
    ranges = strategy.partition(shape, config, weights)
    if issubclass(strategy, StatesSchedule):
        return strategy.schedule(shape, config, ranges, weights)
    return of_messages(shape, ranges, strategy.plan(shape, config, ranges, weights))
