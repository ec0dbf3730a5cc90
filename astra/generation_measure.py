"""From continued texts to table rows. Pure.

    Continuation per text ──► row of `requests`        GenerationResult ──► row of `summary`

Agreement and speed-up compare with `single`, which is listed first where it is listed; without it they are None. The
time per token is that of the tokens after the first, which the prefill makes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from astra.config import StrategyConfig
from astra.counts import LinkTotals

__all__ = ["Continuation", "GenerationResult", "Phase", "continuation_row", "generation_row"]

Row = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Continuation:
    """One text's new tokens, as rank 0 saw them come."""

    request: int
    """Number of the text within its strategy; equal numbers have equal prompts."""
    first_token_s: float
    """From the prompt in memory to the first token."""
    decode_s: float
    """From there to the last token."""
    tokens: tuple[int, ...]

    @property
    def latency_s(self) -> float:
        """From the prompt to the last token; the pause in which links are read is left out."""
        return self.first_token_s + self.decode_s

    @property
    def per_token_s(self) -> float | None:
        """Seconds for each token after the first; None if there is no other."""
        return self.decode_s / (len(self.tokens) - 1) if len(self.tokens) > 1 else None


@dataclass(frozen=True)
class Phase:
    """The traffic of one phase of all texts, over all links."""

    predicted_bytes: float
    """Payload of one text."""
    expected_bytes: float
    """The same with framing, headers and acknowledgements, and the words that ranks exchange."""
    counted: LinkTotals | None
    """Of all texts, between the marks; None where nobody counts."""


@dataclass(frozen=True)
class GenerationResult:
    """All measured texts of one strategy."""

    strategy: StrategyConfig
    placement: str
    texts: Sequence[Continuation]
    prefill: Phase
    decode: Phase


def continuation_row(
    strategy: StrategyConfig, placement: str, text: Continuation, reference: Sequence[Continuation] | None
) -> Row:
    """Make the row of `requests` for one text; `reference` are those of `single`."""
    return {
        **_identity(strategy, placement),
        "request": text.request,
        "time_to_first_token_s": text.first_token_s,
        "time_per_token_s": text.per_token_s,
        "latency_s": text.latency_s,
        "tokens": len(text.tokens),
        "agreement_tokens_pct": _agreement_pct(text, reference),
        "token_ids": " ".join(map(str, text.tokens)),
    }


def generation_row(result: GenerationResult, reference: Sequence[Continuation] | None) -> Row:
    """Make the row of `summary`; `reference` are the texts of `single`, which agrees with itself."""
    texts, count = result.texts, len(result.texts)
    agreements = [found for text in texts if (found := _agreement_pct(text, reference)) is not None]
    per_token_s = [text.per_token_s for text in texts if text.per_token_s is not None]
    median_s, further = _median_s(texts), len(texts[0].tokens) - 1
    lost = [phase.counted.lost for phase in (result.prefill, result.decode) if phase.counted is not None]
    return {
        **_identity(result.strategy, result.placement),
        "requests": count,
        "tokens": len(texts[0].tokens),
        "time_to_first_token_s": float(np.median([text.first_token_s for text in texts])),
        "time_per_token_s": float(np.median(per_token_s)) if per_token_s else None,
        "latency_p50_s": median_s,
        "speedup_vs_single": None if reference is None else _median_s(reference) / median_s,
        **_bytes("bytes_per_prefill", result.prefill, count, 1),
        **_bytes("bytes_per_token", result.decode, count, further),
        "packets_lost_per_request": sum(lost) / count if lost else None,
        "agreement_tokens_pct": float(np.mean(agreements)) if agreements else None,
    }


def _bytes(name: str, phase: Phase, texts: int, parts: int) -> Row:
    """Make the columns of a phase that has `parts` parts in every text."""
    if not parts:
        return {f"{name}_predicted": None, f"{name}_expected": None, f"{name}_counted": None}
    return {
        f"{name}_predicted": round(phase.predicted_bytes / parts),
        f"{name}_expected": round(phase.expected_bytes / parts),
        f"{name}_counted": None if phase.counted is None else round(phase.counted.bytes / texts / parts),
    }


def _identity(strategy: StrategyConfig, placement: str) -> Row:
    return {"strategy": strategy.name, "settings": strategy.settings, "placement": placement}


def _median_s(texts: Sequence[Continuation]) -> float:
    return float(np.median([text.latency_s for text in texts]))


def _agreement_pct(text: Continuation, reference: Sequence[Continuation] | None) -> float | None:
    """Return how many tokens are those that the reference has at the same place after the same prompt."""
    if reference is None:
        return None
    other = next(candidate for candidate in reference if candidate.request == text.request)
    return 100 * float(np.mean([ours == theirs for ours, theirs in zip(text.tokens, other.tokens, strict=True)]))
