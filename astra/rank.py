"""What one rank does whatever it serves: share inputs, mark, write what it did, say where it failed.

    World (from `joining`) ──Rank──► benchmark (`bench_rank`) or generation (`generate`)

Knows nothing of what is measured.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from astra.config import BenchConfig
from astra.data import to_input
from astra.errors import AstraError, ConfigError
from astra.jobs import Job, codec_for
from astra.joining import World
from astra.models import load_model
from astra.placement import distribute
from astra.reporting import Links, Reporter
from astra.strategies import RankContext
from astra.timeline import Timeline
from astra.transport import Tag

__all__ = ["TRACE_FILE", "Rank", "quiet_collector"]

TRACE_FILE = "timeline.json"
"""All ranks' spans as a Chrome trace, written by rank 0."""

SETTLE_S = 0.1
"""Wait around a mark: longer than TCP delays an acknowledgement (40 ms), so that none falls on the wrong side."""


class Rank:
    """One rank that is connected to all others."""

    def __init__(self, config: BenchConfig, world: World, reporter: Reporter):
        self._config = config
        self._model = world.model
        self._whole_inputs = world.inputs
        self._codec = codec_for(config, world.model)
        self._reporter = reporter
        self._curve = world.curve
        self._timeline = Timeline(world.collectives.rank)
        self._next_request = 0
        self.enter(world)

    def enter(self, world: World) -> None:
        """Go on among these members; spans so far are kept, and are from now on those of this rank's new number."""
        self._collectives = world.collectives
        self._rank = world.collectives.rank
        self._timeline = Timeline(self._rank, world.codes.messages).after(self._timeline)

    def write_trace(self, folder: Path) -> None:
        """Bring all ranks' spans to rank 0 and write them there."""
        with self._named("collecting timelines"):
            tag = Tag(self._next_request, 0, "timeline")
            packed = self._collectives.gather(tag, self._timeline.to_bytes(), forgiving=True)
        if packed is not None:
            folder.mkdir(parents=True, exist_ok=True)
            others = [Timeline.from_bytes(spans) for spans in packed.values()]
            self._timeline.write_chrome_trace(folder / TRACE_FILE, others)

    def _context(self, job: Job) -> RankContext:
        """Return what a strategy gets for a job; weights of its own are loaded, and freed with the context."""
        return RankContext(
            model=self._model if job.model == self._config.model else load_model(job.model),
            collectives=self._collectives,
            ranges=job.ranges,
            weights=job.weights,
            timeline=self._timeline,
            codebook_folder=job.codebook_folder,
        )

    def _inputs(self, job: Job, index: int, number: int) -> Tensor:
        """Return this rank's band of the request's input: normalised pixels or token ids, batch 1."""
        whole = None
        if self._whole_inputs is not None:
            which = number % len(self._whole_inputs)
            whole = self._whole_inputs[which : which + 1]
        if self._config.input.placement == "terminal":
            return to_input(distribute(self._collectives, index, whole, job.bands, self._codec))
        assert whole is not None, "with replicated placement every rank has loaded the inputs"
        return to_input(self._codec.cut(whole, job.bands[self._rank]))

    def _mark_together(self, name: str) -> Links | None:
        """Mark on every rank, rank 0 last, while nothing is under way."""
        ready = Tag(self._next_request, 0, "ready")
        if self._rank == 0:
            self._collectives.gather(ready, b"", forgiving=True)
        self._settle()
        self._timeline.mark(name)
        links = self._reporter.mark(name)
        if self._rank != 0:
            self._collectives.gather(ready, b"")
        return links

    def _settle(self) -> None:
        """Wait until everything that was sent has been acknowledged."""
        time.sleep(SETTLE_S)

    @contextmanager
    def _named(self, doing: str) -> Iterator[None]:
        """Say in whatever goes wrong which rank it was and what it was doing."""
        where = f"rank {self._rank}, {doing}"
        try:
            yield
        except ConfigError:
            raise
        except AstraError as error:
            raise type(error)(f"{where}: {error}") from error
        except Exception as error:
            error.add_note(where)
            raise


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Keep the garbage collector from finding much to do while requests are measured."""
    gc.collect()
    yield
