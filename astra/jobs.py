"""What a benchmark comes to on a world of a given size, laid out before anybody connects.

    config + model + world size --plan_jobs--> a Job per strategy: who owns what, who needs which pixels, what is sent

Finds everything that cannot work, on every rank alike. Sends nothing and runs nothing.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astra import overhead, placement
from astra.config import AstraConfig, BenchConfig, InputConfig, StrategyConfig
from astra.errors import ConfigError
from astra.fit import cache_folder
from astra.measure import label
from astra.models import ModelAdapter
from astra.strategies import STRATEGIES, predict_messages
from astra.traffic import PlannedMessage, bytes_of

__all__ = ["Job", "Prediction", "plan_jobs"]


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
    ranges: tuple[range, ...]
    """Content tokens of every rank."""
    weights: tuple[float, ...]
    """Each rank's share of the work."""
    bands: tuple[range, ...]
    """Pixel rows that every rank needs."""
    messages: Sequence[PlannedMessage]
    """What the strategy itself sends for one request."""
    codebook_folder: Path | None

    def bytes_sent(self) -> list[int]:
        """Return the payload that each rank sends for one request, input placement not included."""
        return [
            bytes_of(message for message in self.messages if message.source == rank) for rank in range(len(self.ranges))
        ]

    def predict(self, images: InputConfig, pixels_NCYX: NDArray[np.uint8]) -> Prediction:
        """Predict the traffic of one request: the mean over the images."""
        requests = self._per_request(images, pixels_NCYX)
        peers = range(1, len(self.ranges))
        words = [PlannedMessage(0, peer, 0) for peer in peers] + [PlannedMessage(peer, 0, 0) for peer in peers]
        farewell = overhead.bytes_on_links(PlannedMessage(0, peer, 0) for peer in peers)
        on_links = [overhead.bytes_on_links(sent + words) for sent in requests]
        return Prediction(
            payload_bytes=statistics.fmean(bytes_of(sent) for sent in requests),
            link_bytes=(sum(on_links) + farewell) / len(requests),
        )

    def _per_request(self, images: InputConfig, pixels_NCYX: NDArray[np.uint8]) -> list[list[PlannedMessage]]:
        image_size = pixels_NCYX.shape[-1]
        requests = []
        for image in range(len(pixels_NCYX)):
            sent = list(self.messages)
            if images.placement == "terminal":
                placed = placement.plan(self.bands, image_size, images.encoding)
                sent += self._measure(pixels_NCYX[image : image + 1], images) if placed is None else placed
            requests.append(sent)
        return requests

    def _measure(self, pixels_1CYX: NDArray[np.uint8], images: InputConfig) -> list[PlannedMessage]:
        """Encode the bands of one image to learn their size, which no formula gives."""
        return [
            PlannedMessage(
                0, rank, len(placement.encode_band(pixels_1CYX[:, :, rows.start : rows.stop], images.encoding))
            )
            for rank, rows in enumerate(self.bands)
            if rank and rows
        ]


def plan_jobs(config: BenchConfig, model: ModelAdapter, world_size: int) -> list[Job]:
    """Lay out every strategy.

    Raises:
        ConfigError: A strategy cannot split the model over these ranks, or codebooks have not been fitted.
    """
    weights = config.weights(world_size)
    jobs, faults = [], list[str]()
    for strategy in config.strategies:
        try:
            ranges = STRATEGIES[strategy.name].partition(model.shape, weights)
            messages = predict_messages(model.shape, strategy, world_size, weights)
        except ValueError as error:
            faults.append(f"{label(strategy)}: {error}")
            continue
        folder = None
        if isinstance(strategy, AstraConfig):
            folder = cache_folder(config.model, strategy, config.input)
            if not folder.is_dir():
                faults.append(
                    f"{label(strategy)}: codebooks must be fitted before, got no folder {folder}; "
                    "run `astra fit` with this config"
                )
        bands = tuple(model.input_rows(tokens) for tokens in ranges)
        jobs.append(Job(strategy, ranges, weights, bands, messages, folder))
    if faults:
        raise ConfigError(faults)
    return jobs
