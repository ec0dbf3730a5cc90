"""What a benchmark comes to on a world of a given size, laid out before anybody connects.

    config + model + world size --plan_jobs--> a Job per strategy: who owns what, who needs which input, what is sent

Finds everything that cannot work, on every rank alike. Sends nothing and runs nothing.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from astra import overhead
from astra.calibration import Calibration
from astra.coded_rows import CODER_OVERHEAD_BYTES
from astra.config import BenchConfig, Entry, InputConfig, ModelConfig, StrategyConfig, candidates_of, model_of
from astra.counts import DatagramCounts
from astra.errors import ConfigError
from astra.fit import needs_of
from astra.measure import label
from astra.models import ModelAdapter
from astra.placement import Array, Codec, PixelCodec, TokenCodec, plan
from astra.strategies import STRATEGIES, predict_messages
from astra.strategy_config import AnyStrategy, AstraConfig, AutoConfig, Chosen, Listed, bits_text, copies_of
from astra.traffic import PlannedMessage, as_expected, bytes_of

__all__ = ["NOTHING_CHOSEN", "Choice", "Job", "Prediction", "codec_for", "lay_out", "plan_jobs"]


@dataclass(frozen=True)
class Choice:
    """What has been chosen where a config leaves it open."""

    among: int | None = None
    """Number of the strategy that `auto` takes among its own; None before that."""
    code_bits: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Bits of the codes of each layer, by the number of the entry whose `code_bits` are `auto`."""

    def of(self, number: int, entry: Entry) -> AnyStrategy | None:
        """Return what runs for an entry; None while that is open."""
        if isinstance(entry, AutoConfig):
            return None if self.among is None else entry.among[self.among]
        if number in self.code_bits:
            return entry.model_copy(update={"code_bits": self.code_bits[number]})
        return entry


NOTHING_CHOSEN = Choice()


@dataclass(frozen=True)
class Prediction:
    """The traffic of one request, on all links together."""

    payload_bytes: float
    """What strategy and input placement send."""
    link_bytes: float
    """What the kernel counts if nothing is lost, the ranks' words to one another included."""


@dataclass(frozen=True)
class Job:
    """One strategy on this world."""

    strategy: StrategyConfig
    model: ModelConfig
    """With the strategy's own weights, if it has any."""
    ranges: tuple[range, ...]
    """Content tokens of every rank."""
    weights: tuple[float, ...]
    """Each rank's share of the work."""
    bands: tuple[range, ...]
    """Rows of the input that every rank needs: of pixels, or token ids."""
    messages: Sequence[PlannedMessage]
    """What the strategy itself sends for one request."""
    codebook_folder: Path | None
    coded_share: float = 1.0
    """What entropy-coded codes are expected to take of the bits of packed ones."""
    entry: Entry | None = None
    """What it was chosen for, if anything was left open; None otherwise."""

    @property
    def called(self) -> int:
        """How many datagrams tell each peer that a request has begun; 0 where rows are sure to arrive."""
        return copies_of(self.strategy)

    @property
    def listed(self) -> Listed:
        """The strategy as tables name it: bits that were chosen are told apart in `ranks`."""
        return Chosen(self.strategy) if isinstance(self.entry, AutoConfig) else self.entry or self.strategy

    @property
    def code_bits(self) -> str | None:
        """Bits of each layer's codes in short; None for a strategy without codes."""
        if not isinstance(self.strategy, AstraConfig):
            return None
        return bits_text(self.strategy.bits_by_layer(self.model.preset.num_layers))

    def bytes_sent(self) -> list[int]:
        """Return the payload that each rank sends for one request, input placement not included."""
        return [
            bytes_of(message for message in self.messages if message.source == rank) for rank in range(len(self.ranges))
        ]

    def predict(self, given: InputConfig, codec: Codec, inputs: Array, *, curve: bool = False) -> Prediction:
        """Predict the traffic of one request, encrypted if `curve`: the mean over the inputs [N, ...]."""
        requests = [
            [*self.messages, *(plan(self.bands, codec, inputs[n : n + 1]) if given.placement == "terminal" else [])]
            for n in range(len(inputs))
        ]
        peers = range(1, len(self.ranges))
        report_bytes = DatagramCounts.SIZE if self.called else 0
        words = [PlannedMessage(0, peer, 0) for peer in peers]
        words += [PlannedMessage(0, peer, 0, self.called, is_datagram=True) for peer in peers]
        words += [PlannedMessage(peer, 0, report_bytes) for peer in peers]
        farewell = overhead.bytes_on_links((PlannedMessage(0, peer, 0) for peer in peers), curve=curve)
        on_links = [overhead.bytes_on_links(sent + words, curve=curve) for sent in requests]
        return Prediction(
            payload_bytes=statistics.fmean(bytes_of(sent) for sent in requests),
            link_bytes=(sum(on_links) + farewell) / len(requests),
        )


def codec_for(config: BenchConfig, model: ModelAdapter) -> Codec:
    """Return how inputs of this model travel."""
    if model.shape.vocabulary:
        return TokenCodec(model.shape.vocabulary)
    return PixelCodec(config.model.side, config.input.encoding)


def plan_jobs(
    config: BenchConfig,
    model: ModelAdapter,
    world_size: int,
    cpus: Sequence[float] | None = None,
    *,
    choice: Choice = NOTHING_CHOSEN,
) -> list[Job]:
    """Lay out every strategy; `cpus` are the CPU shares of all ranks, where they are known already.

    While nothing is chosen, nothing is laid out for `auto`, and codes have all their bits.

    Raises:
        ConfigError: A strategy cannot split the model over these ranks, or codebooks have not been fitted.
    """
    weights = config.weights(world_size, cpus)
    return lay_out(config.strategies, weights, config.model, model, config.input, choice=choice)


def lay_out(
    entries: Sequence[Entry],
    weights: tuple[float, ...],
    config: ModelConfig,
    model: ModelAdapter,
    given: Calibration,
    *,
    choice: Choice = NOTHING_CHOSEN,
) -> list[Job]:
    """Lay out strategies on one rank for each weight; `model` is that of `config`, and `given` calibrates codebooks.

    Raises:
        ConfigError: As `plan_jobs`.
    """
    jobs, faults = [], list[str]()
    for number, entry in enumerate(entries):
        strategy = choice.of(number, entry)
        if strategy is None:
            faults += [fault for need in needs_of(candidates_of(entry), config, given) for fault in need.faults()]
            continue
        try:
            ranges = STRATEGIES[strategy.name].partition(model.shape, strategy, weights)
            messages = predict_messages(model.shape, strategy, len(weights), weights)
        except ValueError as error:
            faults.append(f"{label(strategy)}: {error}")
            continue
        folder, share = None, 1.0
        for need in needs_of([strategy], config, given):
            folder = need.folder
            found = need.faults()  # now, and not when other strategies have run for minutes
            faults += found
            share = 1.0 if found else need.coded_share()
        bands = tuple(model.input_rows(tokens) for tokens in ranges)
        messages = as_expected(messages, share, CODER_OVERHEAD_BYTES)
        own_model, chosen_for = model_of(config, strategy), None if strategy is entry else entry
        jobs.append(Job(strategy, own_model, ranges, weights, bands, messages, folder, share, chosen_for))
    if faults:
        raise ConfigError(faults)
    return jobs
