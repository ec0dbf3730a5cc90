"""From measured requests to table rows. Pure.

    Answer per request ──► row of `requests`        StrategyResult ──► rows of `summary` and `ranks`

Agreement and speed-up compare with `single`, which is listed first where it is listed; without it they are None.
Knows nothing of processes, networks and models.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from astra.counts import DatagramCounts, LinkTotals, RankCounts
from astra.strategy_config import Listed

__all__ = [
    "SPAN_NAMES",
    "Answer",
    "StrategyResult",
    "label",
    "rank_rows",
    "request_row",
    "summary_row",
]

Row = dict[str, str | int | float | bool | None]

DIGEST_BYTES = 8

SPAN_NAMES = ("input", "embed", "encode", "send", "wait", "remote", "attention", "rest", "head")
"""What rank 0's time goes to, in the order of a request."""


@dataclass(frozen=True)
class Answer:
    """One measured request, as rank 0 saw it."""

    request: int
    """Number of the request within its strategy; equal numbers have equal images."""
    latency_s: float
    """From the input in memory to the logits in memory."""
    logits: NDArray[np.float32]
    """[C]."""
    spans_s: Mapping[str, float]
    """Rank 0's seconds by span name."""
    datagrams: DatagramCounts | None = None
    """Of all ranks; None where nothing is sent as datagrams."""
    world_size: int | None = None
    """Ranks over which it was split."""
    epoch: int = 0
    """How often membership had changed by then."""
    left_out: tuple[int, ...] = ()
    """Ranks that were lost on the way, whose tokens the answer does without."""
    attempts: int = 1
    """How often it was asked; the latency is from the first time."""


@dataclass(frozen=True)
class StrategyResult:
    """All measured requests of one strategy."""

    strategy: Listed
    placement: str
    answers: Sequence[Answer]
    predicted_bytes: float
    """Payload of a request, all ranks and links together."""
    expected_bytes: float
    """The same with framing, headers and acknowledgements, and the words that ranks exchange about requests."""
    counts: Sequence[RankCounts]
    """Of every rank, in order."""
    burst_rps: float | None = None
    """Requests per second with several under way at once; None for strategies that take one after the other."""
    accuracy: float | None = None
    """Share of the labelled set that is answered right; None without one."""
    predicted_s: float | None = None
    """Latency of a request as it was predicted before; None where it was not."""
    code_bits: str | None = None
    """Bits of each layer's codes, as `8x2,6x10`; None for strategies without codes."""

    @property
    def counted(self) -> LinkTotals | None:
        """All links between the marks; None where nobody counts."""
        parts = [count.links for count in self.counts if count.links is not None]
        return LinkTotals.sum(parts) if parts else None


def label(strategy: Listed) -> str:
    """Name a strategy with its settings: for progress, marks and errors."""
    return f"{strategy.name} {strategy.settings}".strip()


def request_row(strategy: Listed, placement: str, answer: Answer, reference: Sequence[Answer] | None) -> Row:
    """Make the row of `requests` for one answer; `reference` are the answers of `single`."""
    agreement = _agreement(answer, reference)
    spans: Row = {f"{name}_s": answer.spans_s.get(name, 0.0) for name in SPAN_NAMES}
    return {
        **_identity(strategy, placement),
        "request": answer.request,
        "latency_s": answer.latency_s,
        "agreement_cosine": None if agreement is None else agreement[0],
        "top1_same": None if agreement is None else agreement[1],
        **_datagram_cells(answer.datagrams),
        **_digest_cells(strategy, answer),
        "world_size": answer.world_size,
        "epoch": answer.epoch,
        "attempts": answer.attempts,
        "degraded": " ".join(map(str, answer.left_out)) or None,
        **spans,
        "answer_digest": hashlib.blake2b(answer.logits.tobytes(), digest_size=DIGEST_BYTES).hexdigest(),
    }


def summary_row(
    result: StrategyResult, reference: Sequence[Answer] | None, single_accuracy: float | None = None
) -> Row:
    """Make the row of `summary`; `reference` are the answers of `single`, which agrees with itself."""
    count, counted = len(result.answers), result.counted
    median_s = _latency_s(result.answers, 50)
    agreements = [found for answer in result.answers if (found := _agreement(answer, reference)) is not None]
    total_s = sum(answer.latency_s for answer in result.answers)
    flops = [counts.flops for counts in result.counts if counts.flops is not None]
    return {
        **_identity(result.strategy, result.placement),
        "requests": count,
        "latency_p50_s": median_s,
        "latency_p95_s": _latency_s(result.answers, 95),
        "latency_p99_s": _latency_s(result.answers, 99),
        "latency_predicted_s": result.predicted_s,
        "speedup_vs_single": None if reference is None else _latency_s(reference, 50) / median_s,
        **_accuracy_cells(result.accuracy, single_accuracy),
        "throughput_rps": count / total_s if result.burst_rps is None else result.burst_rps,
        "flops_per_request_max_rank": max(flops) if flops else None,
        "bytes_per_request_predicted": round(result.predicted_bytes),
        "bytes_per_request_expected": round(result.expected_bytes),
        "bytes_per_request_counted": None if counted is None else round(counted.bytes / count),
        "packets_lost_per_request": None if counted is None else counted.lost / count,
        "agreement_cosine": float(np.mean([cosine for cosine, _ in agreements])) if agreements else None,
        "agreement_top1_pct": 100 * float(np.mean([same for _, same in agreements])) if agreements else None,
        "missing_tokens_pct": _missing_pct(result.answers),
        "requests_degraded": sum(bool(answer.left_out) for answer in result.answers),
        "requests_repeated": sum(answer.attempts > 1 for answer in result.answers),
    }


def rank_rows(result: StrategyResult, sent_bytes: Sequence[int]) -> list[Row]:
    """Make the rows of `ranks`: what one request costs each rank; `sent_bytes` is the payload that each one sends."""
    return [
        {
            **_identity(result.strategy, result.placement),
            "rank": rank,
            "flops_per_request": counts.flops,
            "bytes_sent_per_request_predicted": sent_bytes[rank],
            "code_bits": result.code_bits,
            "codes_digest": counts.codes_digest,
            "frames_stale": counts.stale,
            "frames_malformed": counts.malformed,
        }
        for rank, counts in enumerate(result.counts)
    ]


def _accuracy_cells(accuracy: float | None, single: float | None) -> Row:
    """Return how many of the labelled examples are answered right, and how many more than by `single`, in points."""
    return {
        "accuracy_pct": None if accuracy is None else 100 * accuracy,
        "accuracy_change_points": None if accuracy is None or single is None else 100 * (accuracy - single),
    }


def _datagram_cells(counts: DatagramCounts | None) -> Row:
    """Return what a request's row says of datagrams; a lost one is neither received nor late."""
    return {
        "missing_tokens_pct": None if counts is None else counts.missing_pct,
        "datagrams_sent": None if counts is None else counts.sent,
        "datagrams_received": None if counts is None else counts.received,
        "datagrams_late": None if counts is None else counts.late,
    }


def _digest_cells(strategy: Listed, answer: Answer) -> Row:
    """Return digests of the datagrams of all ranks, and of which of their rows were missing where.

    Requests with equal `missing_digest` are the same request and lacked the same, so all else must be equal too.
    """
    counts = answer.datagrams
    if counts is None:
        return {"codes_digest": None, "missing_digest": None}
    which = f"{label(strategy)}/{answer.request}/{counts.missing_sum}".encode()
    return {
        "codes_digest": f"{counts.sent_sum:016x}",
        "missing_digest": hashlib.blake2b(which, digest_size=DIGEST_BYTES).hexdigest(),
    }


def _missing_pct(answers: Sequence[Answer]) -> float | None:
    """Return the share of rows that were missing over all requests; None where nothing is sent as datagrams."""
    parts = [answer.datagrams for answer in answers if answer.datagrams is not None]
    return DatagramCounts.sum(parts).missing_pct if parts else None


def _identity(strategy: Listed, placement: str) -> Row:
    return {"strategy": strategy.name, "settings": strategy.settings, "placement": placement}


def _agreement(answer: Answer, reference: Sequence[Answer] | None) -> tuple[float, bool] | None:
    """Compare with the reference's answer about the same image: cosine of the logits, and whether top-1 is equal."""
    if reference is None:
        return None
    other = next(candidate for candidate in reference if candidate.request == answer.request)
    a_C, b_C = answer.logits.astype(np.float64), other.logits.astype(np.float64)
    cosine = float(a_C @ b_C / (np.linalg.norm(a_C) * np.linalg.norm(b_C)))
    return cosine, bool(a_C.argmax() == b_C.argmax())


def _latency_s(answers: Sequence[Answer], percent: float) -> float:
    return float(np.percentile([answer.latency_s for answer in answers], percent))
