"""The life of one rank: load, connect, serve every strategy in turn, report.

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
datagrams where there are any. Between the marks lie, apart from the
strategies' messages, one `start` and one `done` a peer and request, and one `end` a peer: `overhead` counts them in.
`start` is inside latency_s, `done` is not; rank 0 waits for all of them so that requests do not overlap.
"""

import time
from contextlib import nullcontext

from astra.config import BenchConfig
from astra.environment import Environment
from astra.flops import counted_flops
from astra.jobs import Job
from astra.measure import (
    Answer,
    DatagramCounts,
    LinkTotals,
    RankCounts,
    StrategyResult,
    label,
    rank_rows,
    request_row,
    summary_row,
)
from astra.rank import Connect, Rank, World, connect_zeromq, connected, quiet_collector
from astra.reporting import Links, Reporter
from astra.strategies import STRATEGIES, Request, ServesMany, Strategy
from astra.strategy_config import uses_datagrams
from astra.transport import Tag

__all__ = ["run_rank"]

BURST_ROUNDS = 2
"""Fewest times that all places for requests under way are filled while throughput is measured."""


def run_rank(
    config: BenchConfig, environment: Environment, reporter: Reporter, connect: Connect = connect_zeromq
) -> list[StrategyResult]:
    """Be one rank of a benchmark from start to end; return the results on rank 0, and an empty list elsewhere.

    Raises:
        ConfigError: The config does not fit this world, or codebooks, checkpoint or inputs cannot be read.
        AstraError: A peer did not answer or a message could not be read; names rank, strategy and request.
    """
    with connected(config, environment, connect) as world:
        rank = _Rank(config, world, reporter)
        results = rank.serve_all(world.jobs)
        rank.write_trace(environment.out)
    return results


class _Rank(Rank):
    """One rank of a benchmark."""

    def __init__(self, config: BenchConfig, world: World, reporter: Reporter):
        super().__init__(config, world, reporter)
        self._reference: list[Answer] | None = None
        self._labelled = world.labelled
        self._codes = world.codes
        self._single_accuracy: float | None = None

    def serve_all(self, jobs: list[Job]) -> list[StrategyResult]:
        """Serve one strategy after the other."""
        results = []
        for number, job in enumerate(jobs):
            answers, counts, burst_rps = self._serve_requests(job)
            accuracy = self._answer_labelled(number, job)
            if self._rank == 0:
                results.append(self._report(job, answers, counts, burst_rps, accuracy))
        return results

    def _serve_requests(self, job: Job) -> tuple[list[Answer], list[RankCounts], float | None]:
        """Serve all requests of one strategy, whose weights and tables are then freed."""
        with self._named(f"{label(job.strategy)}, getting ready"):
            strategy = STRATEGIES[job.strategy.name](self._context(job), job.strategy)
        answers, counts = self._serve_strategy(job, strategy)
        return answers, counts, self._serve_burst(job, strategy)

    def _answer_labelled(self, number: int, job: Job) -> float | None:
        """Answer the labelled set, if there is one, with the strategy of that number; return its accuracy on rank 0."""
        if self._labelled is None:
            return None
        first, name = self._next_request, f"{label(job.strategy)} accuracy"
        self._next_request += self._labelled.num_batches
        with self._named(name):
            answers = self._labelled.answer(
                number, self._collectives, first, lambda done, total: self._reporter.progress(name, done, total)
            )
        if answers is None:
            return None
        accuracy = answers.value("accuracy")
        if number == 0 and job.strategy.name == "single":
            self._single_accuracy = accuracy
        return accuracy

    def _serve_strategy(self, job: Job, strategy: Strategy) -> tuple[list[Answer], list[RankCounts]]:
        """Warm up, then serve the measured requests between two marks; the answers and counts are on rank 0 only.

        Operations are counted during the first warm-up request, since counting takes time.
        """
        name, warmup, requests = label(job.strategy), self._config.warmup, self._config.requests
        self._codes.take_digest()  # of what came before
        answers: list[Answer] = []
        flops: int | None = None
        if job.strategy.name == "single" and self._reference is None:
            self._reference = answers
        for number in range(warmup):
            with self._named(f"{name}, warm-up request {number + 1} of {warmup}"):
                with counted_flops() if number == 0 else nullcontext() as count:
                    self._serve(job, strategy, number)
                flops = flops if count is None else count.total
                self._progress(name, number + 1)
        with self._named(f"{name}, begin mark"):
            begin = self._mark_together(f"{name}:begin")
        with quiet_collector():
            for number in range(requests):
                with self._named(f"{name}, request {number + 1} of {requests}"):
                    answer = self._serve(job, strategy, number)
                    if answer is not None:
                        answers.append(answer)
                        placed = self._config.input.placement
                        self._reporter.row("requests", request_row(job.strategy, placed, answer, self._reference))
                    self._progress(name, warmup + number + 1)
        with self._named(f"{name}, end mark"):
            counts = self._count_until_end(name, begin, flops)
        return answers, counts

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
        with self._named(f"{label(job.strategy)}, {count} requests with {strategy.in_flight} under way"):
            self._collectives.broadcast(Tag(first, 0, "start"), b"" if self._rank == 0 else None)
            start_s = time.perf_counter()
            for _ in strategy.forward_many(requests):
                pass
            duration_s = time.perf_counter() - start_s
            self._collectives.gather(Tag(first + count - 1, 0, "done"), b"")
        return count / duration_s

    def _serve(self, job: Job, strategy: Strategy, number: int) -> Answer | None:
        """Serve one request with all ranks; rank 0 returns when every peer is done with it.

        `number` chooses the input; the index that tags messages counts all requests of the run.
        """
        index = self._next_request
        self._next_request += 1
        self._timeline.begin_request(index)
        counted = self._datagrams()
        word = Tag(index, 0, "start")
        if self._rank != 0:
            self._collectives.broadcast(word, None)
        start_s = time.perf_counter()
        with self._timeline.span("input"):
            if self._rank == 0:
                self._collectives.broadcast(word, b"")
            inputs = self._inputs(job, index, number)
        logits_BC = strategy.forward(Request(index, inputs, job.bands[self._rank].start))
        latency_s = time.perf_counter() - start_s
        datagrams = self._gather_done(Tag(index, 0, "done"), job, self._datagrams().minus(counted))
        if logits_BC is None:
            return None
        return Answer(number, latency_s, logits_BC[0].numpy(), self._timeline.totals(index), datagrams)

    def _gather_done(self, tag: Tag, job: Job, own: DatagramCounts) -> DatagramCounts | None:
        """Wait on rank 0 until all ranks are done; return there what became of datagrams, if the strategy has any."""
        if not uses_datagrams(job.strategy):
            self._collectives.gather(tag, b"")
            return None
        payloads = self._collectives.gather(tag, own.to_bytes())
        if payloads is None:
            return None
        return DatagramCounts.sum([own, *(DatagramCounts.from_bytes(packed) for packed in payloads.values())])

    def _datagrams(self) -> DatagramCounts:
        """Return what this rank has counted so far."""
        port, rows = self._collectives.datagrams, self._collectives.rows
        if port is None:
            return DatagramCounts(0, 0, 0, 0, 0)
        traffic = port.traffic
        return DatagramCounts(rows.expected, rows.missing, traffic.sent, traffic.received, traffic.late)

    def _count_until_end(self, name: str, begin: Links | None, flops: int | None) -> list[RankCounts]:
        """Mark on every rank and bring to rank 0 what each one counted since `begin`; nothing elsewhere."""
        last = self._next_request - 1
        self._collectives.broadcast(Tag(last, 0, "end"), b"" if self._rank == 0 else None)
        self._settle()
        end = self._reporter.mark(f"{name}:end")
        if self._rank != 0:
            self._settle()  # rank 0 has marked by then, so that its counters do not hold this message
        links = None if begin is None or end is None else LinkTotals.between(begin, end)
        own = RankCounts(links, flops, self._codes.take_digest())
        payloads = self._collectives.gather(Tag(last, 0, "counters"), own.to_json())
        return [] if payloads is None else [own, *(RankCounts.from_json(part) for part in payloads.values())]

    def _report(
        self,
        job: Job,
        answers: list[Answer],
        counts: list[RankCounts],
        burst_rps: float | None,
        accuracy: float | None,
    ) -> StrategyResult:
        """Write the strategy's row, and one for each rank, on rank 0."""
        assert self._whole_inputs is not None, "rank 0 has the inputs"
        given = self._config.input
        predicted = job.predict(given, self._codec, self._whole_inputs)
        result = StrategyResult(
            strategy=job.strategy,
            placement=given.placement,
            answers=answers,
            predicted_bytes=predicted.payload_bytes,
            expected_bytes=predicted.link_bytes,
            counts=counts,
            burst_rps=burst_rps,
            accuracy=accuracy,
        )
        self._reporter.row("summary", summary_row(result, self._reference, self._single_accuracy))
        for row in rank_rows(result, job.bytes_sent()):
            self._reporter.row("ranks", row)
        return result

    def _progress(self, name: str, done: int) -> None:
        if self._rank == 0:
            self._reporter.progress(name, done, self._config.warmup + self._config.requests)
