"""The life of one rank that generates: prefill and decode every prompt with every strategy in turn, and report.

    rank 0                                          every other rank
    for each strategy: warm up                      for each strategy: warm up
      for each prompt:                                for each prompt:
        ◄───────────────── ready ───────────────────    mark
        mark; clock starts                              .
        ── start ──► (and the prompt, if `terminal`) ─► .
        prefill ◄────── Strategy.forward ────────────►  prefill
        first token; clock stops                        .
        ◄───────────────── ready ───────────────────    mark
        mark; clock starts                              .
        token after token ◄────── Decoder ───────────►  .
        clock stops                                     .
      ◄───────────────── ready ───────────────────    mark
      mark
      ──────────────────── end ───────────────────►   .
      ◄──────────────── counters ─────────────────    .
      report

Between the marks lie, apart from the strategies' messages and the tokens, one `start` a peer and prompt and one `ready`
a peer and mark: the expected bytes count them in. The pause for a mark is in no time that is reported.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict

from astra import overhead, placement
from astra.checkpoint import checkpoint_folder
from astra.collectives import Collectives
from astra.config import BenchConfig
from astra.control.opening import OpenControl, open_control
from astra.counts import LinkTotals
from astra.environment import Environment
from astra.errors import ConfigError
from astra.generation_faults import generation_faults
from astra.generation_measure import Continuation, GenerationResult, Phase, continuation_row, generation_row
from astra.generator import Generator, plan_decode
from astra.jobs import Job
from astra.joining import Connect, Loaded, World, connect_zeromq, connected, controlled, load
from astra.measure import label
from astra.rank import Rank, quiet_collector
from astra.reporting import Links, Reporter
from astra.sampling import Sampler
from astra.strategies import Request
from astra.tokenizer import Tokenizer, load_tokenizer
from astra.traffic import PlannedMessage, bytes_of
from astra.transport import Tag

__all__ = ["Watch", "run_generation"]

Watch = Callable[[str], None]
"""Takes text as it is made, piece by piece, on rank 0."""

PROGRESS_EVERY_S = 0.2
"""Shortest time between two reports of progress within a text: decoding waits for the agent to take them."""

PHASES = PREFILL, DECODE = "prefill", "decode"
"""What links are counted for; also in the names of marks."""

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer puts at the end of a text that breaks off within a character."""


def run_generation(
    config: BenchConfig,
    environment: Environment,
    reporter: Reporter,
    connect: Connect = connect_zeromq,
    open_control: OpenControl = open_control,
    watch: Watch | None = None,
) -> list[GenerationResult]:
    """Be one rank that generates, from start to end; return the results on rank 0, and an empty list elsewhere.

    Where the reporter asks for it (see `Reporter.again`), all is generated again with what has been loaded.

    Raises:
        ConfigError: The config does not fit this world, or codebooks, checkpoint or texts cannot be read.
        AstraError: A peer did not answer or a message could not be read; names rank, strategy and text.
    """
    _check_checkpoint(config)
    loaded: Loaded | None = None
    while True:
        with controlled(config, environment, open_control) as control:
            loaded = loaded or load(config, environment)
            with connected(loaded, config, environment, connect, control=control) as world:
                rank = _Rank(config, world, reporter, watch)
                results = [result for job in world.jobs if (result := rank.serve(job)) is not None]
                rank.write_trace(environment.out)
        if not reporter.again():
            return results


class _Rank(Rank):
    """One rank that generates."""

    def __init__(self, config: BenchConfig, world: World, reporter: Reporter, watch: Watch | None):
        super().__init__(config, world, reporter)
        assert config.generation is not None, "the check of the config asks for it"
        self._wanted = config.generation
        self._stream = _Stream(load_tokenizer(config.model), watch) if watch and self._rank == 0 else None
        self._reference: list[Continuation] | None = None
        patience_s = config.timeout_s * (config.generation.max_new_tokens + 1)
        self._patient = Collectives(world.collectives.transport, patience_s)  # to idle while others decode
        self._reported_s = 0.0

    def serve(self, job: Job) -> GenerationResult | None:
        """Warm up, then continue the measured texts with one strategy; return the result on rank 0."""
        name, warmup, requests = label(job.strategy), self._config.warmup, self._config.requests
        texts: list[Continuation] = []
        if job.strategy.name == "single" and self._reference is None:
            self._reference = texts
        with self._named(f"{name}, getting ready"):
            sampler = Sampler(self._wanted.temperature, self._wanted.top_k, self._wanted.seed)
            generator = Generator(self._context(job), job.strategy, sampler, self._wanted.max_new_tokens)
        for number in range(warmup):
            with self._named(f"{name}, warm-up text {number + 1} of {warmup}"):
                self._continue(job, generator, number, None)
        with self._named(f"{name}, begin mark"):
            tally = _Tally(self._mark_together(f"{name}:begin"))
        with quiet_collector():
            for number in range(requests):
                with self._named(f"{name}, text {number + 1} of {requests}"):
                    text = self._continue(job, generator, number, tally)
                if text is not None:
                    texts.append(text)
                    row = continuation_row(job.strategy, self._config.input.placement, text, self._reference)
                    self._reporter.row("requests", row)
        with self._named(f"{name}, counters"):
            # Ranks that idle are through long before rank 0: what they send must wait until it has marked.
            self._patient.broadcast(Tag(self._next_request, 0, "end"), b"" if self._rank == 0 else None)
            payloads = self._collectives.gather(Tag(self._next_request, 0, "counters"), tally.to_json())
        return (
            None if payloads is None else self._report(job, texts, [tally, *map(_Tally.from_json, payloads.values())])
        )

    def _continue(self, job: Job, generator: Generator, number: int, tally: "_Tally | None") -> Continuation | None:
        """Continue one text with all ranks; return it on rank 0. Texts to warm up have no tally and no marks."""
        name, new_tokens = label(job.strategy), self._wanted.max_new_tokens
        tokens: list[int] = []
        index = self._next_request
        self._next_request += 1
        first, first_token_s = self._prefill(job, generator, index, number)
        if first is not None:
            tokens.append(first)
            self._show(name, number, tokens, measured=tally is not None)
        if tally is not None:
            tally.end(PREFILL, self._mark_together(f"{name}:{PREFILL} {number}"))
        self._next_request += new_tokens
        begin_s = end_s = time.perf_counter()
        for token in generator.further_tokens(index + 1, number, first):
            if token is not None:
                end_s = time.perf_counter()
                tokens.append(token)
                self._show(name, number, tokens, measured=tally is not None)
        if tally is not None:
            tally.end(DECODE, self._mark_together(f"{name}:{DECODE} {number}"))
        return Continuation(number, first_token_s, end_s - begin_s, tuple(tokens)) if self._rank == 0 else None

    def _prefill(self, job: Job, generator: Generator, index: int, number: int) -> tuple[int | None, float]:
        """Make the first token; return it on rank 0, and how long it took."""
        self._timeline.begin_request(index)
        word = Tag(index, 0, "start")
        if self._rank != 0:
            self._patient.broadcast(word, None)
        start_s = time.perf_counter()
        with self._timeline.span("input"):
            if self._rank == 0:
                self._patient.broadcast(word, b"")
            inputs = self._inputs(job, index, number)
        first = generator.first_token(Request(index, inputs, job.bands[self._rank].start), number)
        return first, time.perf_counter() - start_s

    def _report(self, job: Job, texts: list[Continuation], tallies: list["_Tally"]) -> GenerationResult:
        """Write the strategy's row on rank 0."""
        assert self._whole_inputs is not None, "rank 0 has the texts"
        terminal = self._config.input.placement == "terminal"
        placed = placement.plan(job.bands, self._codec, self._whole_inputs[:1]) if terminal else []
        decode = plan_decode(self._model.shape, job.strategy, len(job.ranges), self._wanted.max_new_tokens)
        peers = range(1, len(job.ranges))
        start, ready = ([PlannedMessage(0, peer, 0) for peer in peers], [PlannedMessage(peer, 0, 0) for peer in peers])
        result = GenerationResult(
            strategy=job.strategy,
            placement=self._config.input.placement,
            texts=texts,
            prefill=self._phase([*job.messages, *placed], start + ready, [tally.totals[PREFILL] for tally in tallies]),
            decode=self._phase(decode, ready, [tally.totals[DECODE] for tally in tallies]),
        )
        self._reporter.row("summary", generation_row(result, self._reference))
        return result

    def _phase(
        self, messages: list[PlannedMessage], words: list[PlannedMessage], parts: list[LinkTotals | None]
    ) -> Phase:
        """Put together what one text sends in a phase and what all texts were counted to send."""
        counted = [part for part in parts if part is not None]
        return Phase(
            predicted_bytes=bytes_of(messages),
            expected_bytes=overhead.bytes_on_links([*messages, *words], curve=self._curve),
            counted=LinkTotals.sum(counted) if counted else None,
        )

    def _show(self, name: str, number: int, tokens: list[int], *, measured: bool) -> None:
        """Pass a new token on to who watches the texts; where nobody does, say now and then how far they are."""
        if self._stream is not None:
            if measured:
                self._stream.show(f"{name}, text {number + 1}", tokens)
            return
        new_tokens, now_s = self._wanted.max_new_tokens, time.monotonic()
        if len(tokens) == new_tokens or now_s - self._reported_s > PROGRESS_EVERY_S:
            self._reported_s = now_s
            done = (number + (self._config.warmup if measured else 0)) * new_tokens + len(tokens)
            total = (self._config.warmup + self._config.requests) * new_tokens
            self._reporter.progress(f"{name} tokens", done, total)


class _Tally:
    """What the links that end at one rank's device carried, phase by phase, over all texts of a strategy."""

    def __init__(self, links: Links | None):
        """Begin at a mark; `links` is None where nobody counts."""
        self._links = links
        nothing = None if links is None else LinkTotals(0, 0, 0)
        self.totals = dict.fromkeys(PHASES, nothing)

    def end(self, phase: str, links: Links | None) -> None:
        """Count what came since the last mark to a phase."""
        so_far = self.totals[phase]
        if so_far is not None and self._links is not None and links is not None:
            self.totals[phase] = LinkTotals.sum([so_far, LinkTotals.between(self._links, links)])
        self._links = links

    def to_json(self) -> bytes:
        """Pack the totals for the way to rank 0."""
        return json.dumps({phase: totals and asdict(totals) for phase, totals in self.totals.items()}).encode()

    @classmethod
    def from_json(cls, packed: bytes | memoryview) -> "_Tally":
        """Unpack what another rank's `to_json` made."""
        tally = cls(None)
        tally.totals = {phase: totals and LinkTotals(**totals) for phase, totals in json.loads(bytes(packed)).items()}
        return tally


class _Stream:
    """Turns growing lists of tokens into pieces of text."""

    def __init__(self, tokenizer: Tokenizer, watch: Watch):
        self._tokenizer = tokenizer
        self._watch = watch
        self._shown = ""

    def show(self, title: str, tokens: list[int]) -> None:
        """Pass on what the last token adds; a character of several tokens comes with the last of them."""
        if len(tokens) == 1:
            self._shown = ""
            self._watch(f"\n{title}: ")
        text = self._tokenizer.decode(tokens)
        if not text.endswith(INCOMPLETE):
            self._watch(text.removeprefix(self._shown))
            self._shown = text


def _check_checkpoint(config: BenchConfig) -> None:
    """Check the length of texts again once a checkpoint from a hub is here; others were checked with the config."""
    if config.generation is None or config.model.checkpoint is None:
        return
    model = config.model.model_copy(update={"checkpoint": str(checkpoint_folder(config.model.checkpoint))})
    if faults := generation_faults("config", config.generation, model):
        raise ConfigError(faults)
