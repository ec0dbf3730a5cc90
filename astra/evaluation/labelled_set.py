"""The labelled set of a benchmark on one rank: its examples, its model, and how each strategy is laid out on it.

The model may be another than the benchmark's, and strategies may be set up otherwise for it; see `AccuracyConfig`.
"""

from collections.abc import Callable, Sequence

from astra.collectives import Collectives
from astra.config import AccuracyConfig, BenchConfig, StrategyConfig
from astra.data import load_examples
from astra.errors import ConfigError
from astra.evaluation.answering import Answers, answer_examples, num_batches, unknown_ids
from astra.jobs import Job, lay_out
from astra.models import ModelAdapter, load_model
from astra.strategies import RankContext
from astra.timeline import Timeline

__all__ = ["LabelledSet"]


class LabelledSet:
    """What every strategy of a benchmark answers once its latency is known."""

    def __init__(self, accuracy: AccuracyConfig, config: BenchConfig, model: ModelAdapter):
        """Load examples and model; `model` is that of the benchmark.

        Raises:
            ConfigError: The set or the model cannot be read, or they do not go together.
        """
        self._accuracy = accuracy
        self._config = accuracy.model or config.model
        self._model = model if self._config == config.model else load_model(self._config)
        self._strategies: Sequence[StrategyConfig] = accuracy.strategies or config.candidates
        self.examples = load_examples(accuracy.data, self._config, accuracy.split, limit=accuracy.limit)
        if found := unknown_ids(self.examples, self._model.shape):
            raise ConfigError(found)
        self._jobs: list[Job] = []
        self.num_batches = num_batches(self.examples, accuracy.batch_size)
        """Message indices that one strategy's answers take."""

    def lay_out(self, weights: tuple[float, ...]) -> None:
        """Lay out all strategies.

        Raises:
            ConfigError: One of them cannot split this model over so many ranks, or its codebooks are not there.
        """
        try:
            self._jobs = lay_out(self._strategies, weights, self._config, self._model, self._accuracy.data)
        except ConfigError as error:
            raise ConfigError([f"accuracy: {fault}" for fault in error.faults]) from error

    def answer(
        self, number: int, collectives: Collectives, first_index: int, progress: Callable[[int, int], None]
    ) -> Answers | None:
        """Take part in answering all examples with the strategy of that number; return the answers on rank 0.

        Its spans are not kept: the benchmark's timeline explains latencies.
        """
        job = self._jobs[number]
        context = RankContext(
            model=self._model if job.model == self._config else load_model(job.model),
            collectives=collectives,
            ranges=job.ranges,
            weights=job.weights,
            timeline=Timeline(collectives.rank),
            codebook_folder=job.codebook_folder,
        )
        size = self._accuracy.batch_size
        return answer_examples(context, job, self.examples, size, first_index=first_index, progress=progress)
