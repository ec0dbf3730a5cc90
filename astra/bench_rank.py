"""One rank of a benchmark: serve every strategy in turn, report.

    rank 0                                          every other rank
    for each strategy:                              for each strategy:
      warm up                                         warm up
      ◄───────────────── ready ─────────────────────  mark begin
      mark begin                                      .
      for each request:                               for each request:
        clock starts                                  .
        ── start ──► (and input, if `terminal`) ──►   .
        forward ◄──────── strategy ────────────────►  forward
        clock stops                                   .
        ◄──────────────── done ─────────────────────  .
      ── end ──►  mark end                            mark end
      ◄────────────── counters ─────────────────────  .
      ── start ──►  requests with several under way, `done`: only strategies that can
      the labelled set, if there is one: see `evaluation.answering`
      report

Every word is an empty message over the same transport as the strategy's own, but for `done`, which says what became of
datagrams where there are any; there `start` travels as a datagram too, so that none begins late because it was lost.
Between the marks lie, apart from the strategies' messages, one `start` and one `done` a peer and request, and one `end`
a peer: `overhead` counts them in. `start` is inside latency_s, `done` is not; rank 0 waits for all of them so that
requests do not overlap.

A RecallError out of any of this leaves the rank where it can go on among other members (`take_part`, `serve_all`): at
the request that rank 0 had not answered yet, which is then asked again; answers that were written stay.
"""

import gc
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from astra.config import AstraConfig, BenchConfig, PrismConfig
from astra.control import Control, Epoch, Position
from astra.counts import DatagramCounts, LinkTotals, RankCounts
from astra.errors import RecallError
from astra.flops import counted_flops
from astra.jobs import Job
from astra.joining import World
from astra.measure import Answer, StrategyResult, label, rank_rows, request_row, summary_row
from astra.rank import Rank, quiet_collector
from astra.reporting import Links, Reporter
from astra.slices import answer_rank
from astra.starting import StartWord
from astra.strategies import STRATEGIES, Request, ServesMany, Strategy
from astra.strategy_config import uses_datagrams
from astra.transport import Tag

__all__ = ["BenchRank"]

BURST_ROUNDS = 2
"""Fewest times that all places for requests under way are filled while throughput is measured."""


@dataclass
class _Turn:
    """How far one strategy has come on this rank."""

    job: int
    next: int = 0
    """Number of its request that is to be answered next, those to warm up first."""
    answers: list[Answer] = field(default_factory=list)
    flops: int | None = None
    attempts: int = 0
    """Of the request that is to be answered next."""
    asked_s: float = 0.0
    """When that was first asked."""


class BenchRank(Rank):
    """One rank of a benchmark, among the members of one epoch after another."""

    def __init__(self, config: BenchConfig, world: World, reporter: Reporter, control: Control):
        super().__init__(config, world, reporter)
        self._control = control
        self._reference: list[Answer] | None = None
        self._single_accuracy: float | None = None
        self._results: list[StrategyResult] = []
        self._turn = _Turn(0)

    @property
    def position(self) -> Position:
        """Where this rank is; what counts is where rank 0 is."""
        return Position(self._turn.job, self._turn.next, self._next_request)

    def take_part(self, world: World, epoch: Epoch) -> None:
        """Go on among the members of an epoch, at its position."""
        self.enter(world)
        self._epoch, self._jobs, self._predicted = epoch, world.jobs, world.predicted
        for row in [] if epoch.number else self._predicted.rows([job.listed for job in self._jobs]):
            self._reporter.row("predictions", row)
        self._labelled, self._codes = world.labelled, world.codes
        if self._turn.job != epoch.job:
            self._turn = _Turn(epoch.job)
        self._turn.next, self._next_request = epoch.request, epoch.message

    def serve_all(self) -> list[StrategyResult]:
        """Serve one strategy after the other, from the epoch's position on."""
        for number in range(self._turn.job, len(self._jobs)):
            if number != self._turn.job:
                self._turn = _Turn(number)
            job = self._jobs[number]
            counts, burst_rps = self._serve_job(job)
            accuracy = self._answer_labelled(number, job)
            if self._rank == 0:
                self._results.append(self._report(job, counts, burst_rps, accuracy))
        self._control.serving(lambda gone: True)  # all is answered: of who is lost now only the trace is missing
        return self._results

    def _serve_job(self, job: Job) -> tuple[list[RankCounts], float | None]:
        """Serve what is left of one strategy's requests; its weights and tables are then freed."""
        with self._named(f"{label(job.listed)}, getting ready"):
            gc.collect()  # the one before refers to itself by way of its exchange, and has tables
            strategy = STRATEGIES[job.strategy.name](self._context(job), job.strategy)
            self._control.serving(lambda gone: self._can_do_without(job, gone))
        counts = self._serve_requests(job, strategy)
        if isinstance(strategy, ServesMany) or self._labelled is not None:
            self._control.serving(None)
        return counts, self._serve_burst(job, strategy)

    def _can_do_without(self, job: Job, gone: frozenset[int]) -> bool:
        """Whether requests of a job can be answered without these ranks, by policy and by what the strategy is."""
        if self._config.failures.on_failure != "degrade" or not isinstance(job.strategy, (AstraConfig, PrismConfig)):
            return False
        return answer_rank(self._model.shape, len(self._epoch.members)) not in gone

    def _answer_labelled(self, number: int, job: Job) -> float | None:
        """Answer the labelled set, if there is one, with the strategy of that number; return its accuracy on rank 0."""
        if self._labelled is None:
            return None
        first, name = self._next_request, f"{label(job.listed)} accuracy"
        self._next_request += self._labelled.num_batches
        with self._named(name):
            answers = self._labelled.answer(
                number, self._collectives, first, lambda done, total: self._reporter.progress(name, done, total)
            )
        if answers is None:
            return None
        accuracy = answers.value("accuracy")
        if number == 0 and job.listed.name == "single":
            self._single_accuracy = accuracy
        return accuracy

    def _serve_requests(self, job: Job, strategy: Strategy) -> list[RankCounts]:
        """Warm up, then serve the measured requests between two marks; the counts are on rank 0 only.

        Operations are counted during the first warm-up request, since counting takes time. Where the members changed
        after the first mark, what links carried is not counted.
        """
        turn, name, warmup, requests = self._turn, label(job.listed), self._config.warmup, self._config.requests
        self._codes.take_digest()  # of what came before
        if job.listed.name == "single" and self._reference is None:
            self._reference = turn.answers
        begin: Links | None = None
        for number in range(turn.next, warmup):
            with self._named(f"{name}, warm-up request {number + 1} of {warmup}"):
                with counted_flops() if number == 0 else nullcontext() as count:
                    self._serve(job, strategy, number)
                turn.flops = turn.flops if count is None else count.total
        if turn.next <= warmup:
            with self._named(f"{name}, begin mark"):
                begin = self._mark_together(f"{name}:begin")
        with quiet_collector():
            for number in range(turn.next - warmup, requests):
                with self._named(f"{name}, request {number + 1} of {requests}"):
                    self._serve(job, strategy, number)
        with self._named(f"{name}, end mark"):
            return self._count_until_end(name, begin)

    def _serve_burst(self, job: Job, strategy: Strategy) -> float | None:
        """Serve requests with several under way at once, if the strategy can; return requests per second on rank 0."""
        if not isinstance(strategy, ServesMany):
            return None
        first, count = self._next_request, max(self._config.requests, BURST_ROUNDS * strategy.in_flight)
        self._next_request += count
        requests = (
            Request(first + number, self._inputs(job, first + number, number), job.bands[self._rank].start)
            for number in range(count)
        )
        with self._named(f"{label(job.listed)}, {count} requests with {strategy.in_flight} under way"):
            self._collectives.broadcast(Tag(first, 0, "start"), b"" if self._rank == 0 else None)
            start_s = time.perf_counter()
            for _ in strategy.forward_many(requests):
                pass
            duration_s = time.perf_counter() - start_s
            self._collectives.gather(Tag(first + count - 1, 0, "done"), b"")
        return count / duration_s

    def _serve(self, job: Job, strategy: Strategy, number: int) -> None:
        """Serve one request with all ranks; rank 0 goes on when every peer is done with it.

        `number` chooses the input; the index that tags messages counts all that was asked in the run.
        """
        self._take_in_who_waits()
        index = self._next_request
        self._next_request += 1
        self._timeline.begin_request(index)
        counted = self._datagrams()
        answer = self._ask(job, strategy, index, number)
        try:
            datagrams = self._gather_done(Tag(index, 0, "done"), job, self._datagrams().minus(counted))
        except RecallError:
            if answer is not None:
                self._keep(job, answer)  # it must not be asked again
            raise
        self._keep(job, None if answer is None else replace(answer, datagrams=datagrams))

    def _ask(self, job: Job, strategy: Strategy, index: int, number: int) -> Answer | None:
        """Go through the model with all ranks; return the answer on rank 0."""
        turn, word = self._turn, StartWord(self._collectives, Tag(index, 0, "start"), job.called)
        if self._rank != 0:
            word.hear()
        turn.attempts += 1
        turn.asked_s = time.perf_counter() if turn.attempts == 1 else turn.asked_s
        with self._timeline.span("input"):
            if self._rank == 0:
                word.say()
            inputs = self._inputs(job, index, number)
        logits_BC = strategy.forward(Request(index, inputs, job.bands[self._rank].start))
        word.settle()
        if logits_BC is None:
            return None
        latency_s, members = time.perf_counter() - turn.asked_s, self._epoch.members
        return Answer(
            number,
            latency_s,
            logits_BC[0].numpy(),
            self._timeline.totals(index),
            world_size=len(members),
            epoch=self._epoch.number,
            left_out=tuple(members[rank] for rank in sorted(self._control.gone)),
            attempts=turn.attempts,
        )

    def _take_in_who_waits(self) -> None:
        """Between two requests, meet again on rank 0's word if somebody is back."""
        if self._rank == 0 and self._config.failures.on_failure != "fail" and self._control.someone_waits:
            raise RecallError("a device is back and takes part from the next request on")

    def _keep(self, job: Job, answer: Answer | None) -> None:
        """Take a request as answered: on rank 0 write its row, once, if it was measured."""
        turn, warmup = self._turn, self._config.warmup
        is_measured = turn.next >= warmup
        turn.next, turn.attempts = turn.next + 1, 0
        if answer is not None and is_measured:
            turn.answers.append(answer)
            placed = self._config.input.placement
            self._reporter.row("requests", request_row(job.listed, placed, answer, self._reference))
        self._progress(label(job.listed), turn.next)

    def _gather_done(self, tag: Tag, job: Job, own: DatagramCounts) -> DatagramCounts | None:
        """Wait on rank 0 until all ranks are done; return there what became of datagrams, if the strategy has any."""
        if not uses_datagrams(job.strategy):
            self._collectives.gather(tag, b"", forgiving=True)
            return None
        payloads = self._collectives.gather(tag, own.to_bytes(), forgiving=True)
        if payloads is None:
            return None
        return DatagramCounts.sum([own, *(DatagramCounts.from_bytes(packed) for packed in payloads.values())])

    def _datagrams(self) -> DatagramCounts:
        """Return what this rank has counted so far."""
        port, rows = self._collectives.datagrams, self._collectives.rows
        if port is None:
            return DatagramCounts(0, 0, 0, 0, 0)
        sent, received, late = port.traffic.sent, port.traffic.received, port.traffic.late
        return DatagramCounts(rows.expected, rows.missing, sent, received, late, rows.sent_sum, rows.missing_sum)

    def _count_until_end(self, name: str, begin: Links | None) -> list[RankCounts]:
        """Mark on every rank and bring to rank 0 what each one counted since `begin`; nothing elsewhere."""
        last = self._next_request - 1
        self._collectives.broadcast(Tag(last, 0, "end"), b"" if self._rank == 0 else None)
        self._settle()
        end = self._reporter.mark(f"{name}:end")
        if self._rank != 0:
            self._settle()  # rank 0 has marked by then, so that its counters do not hold this message
        links = None if begin is None or end is None else LinkTotals.between(begin, end)
        traffic, port = self._collectives.transport.traffic, self._collectives.datagrams
        malformed = traffic.malformed + (0 if port is None else port.traffic.malformed + port.traffic.foreign)
        own = RankCounts(links, self._turn.flops, self._codes.take_digest(), traffic.stale, malformed)
        payloads = self._collectives.gather(Tag(last, 0, "counters"), own.to_json(), forgiving=True)
        if payloads is None:
            return []
        told = {peer: RankCounts.from_json(part) for peer, part in payloads.items()}
        counts = [own, *(told.get(peer, RankCounts(None, None)) for peer in self._collectives.peers)]
        return counts if len(told) == len(self._collectives.peers) else [replace(each, links=None) for each in counts]

    def _report(
        self,
        job: Job,
        counts: list[RankCounts],
        burst_rps: float | None,
        accuracy: float | None,
    ) -> StrategyResult:
        """Write the strategy's row, and one for each rank, on rank 0."""
        assert self._whole_inputs is not None, "rank 0 has the inputs"
        given = self._config.input
        predicted = job.predict(given, self._codec, self._whole_inputs, curve=self._curve)
        result = StrategyResult(
            strategy=job.listed,
            placement=given.placement,
            answers=self._turn.answers,
            predicted_bytes=predicted.payload_bytes,
            expected_bytes=predicted.link_bytes,
            counts=counts,
            burst_rps=burst_rps,
            accuracy=accuracy,
            predicted_s=self._predicted.latency_s(self._turn.job),
            code_bits=job.code_bits,
        )
        self._reporter.row("summary", summary_row(result, self._reference, self._single_accuracy))
        for row in rank_rows(result, job.bytes_sent()):
            self._reporter.row("ranks", row)
        return result

    def _progress(self, name: str, done: int) -> None:
        if self._rank == 0:
            self._reporter.progress(name, done, self._config.warmup + self._config.requests)
