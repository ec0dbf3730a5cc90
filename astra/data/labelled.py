"""What every labelled set becomes: arrays of inputs and of labels, with the published metrics of the set."""

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

__all__ = ["NOT_COUNTED", "Examples", "Split", "Task"]

Split = Literal["train", "validation", "test"]
Task = Literal["classification", "regression", "language", "cloze"]

NOT_COUNTED = -100
"""Label of a token whose prediction does not count."""


@dataclass(frozen=True)
class Examples:
    """Labelled inputs, in the order of their files."""

    inputs: NDArray[Any]
    """uint8 [N, 3, H, W] at the model's image size; or int64 [N, T] token ids, padded with the tokenizer's pad id. For
    cloze [N, C, T]: a text for each of C candidates."""
    labels: NDArray[Any]
    """int64 [N] classes; float32 [N] scores; int64 [N, T] next tokens, of which -100 is not counted. For cloze [N, C,
    T]: a candidate's score is the sum of the log-probabilities of the labels that count."""
    task: Task
    num_labels: int | None
    """Classes; 1 for scores; None for language models."""
    metrics: tuple[str, ...]
    """The published ones, of accuracy, f1, matthews, pearson, spearman, perplexity; the first is the main one."""
    answers: NDArray[Any] | None = None
    """int64 [N] for cloze alone: the candidate that is right, and should have the highest score."""
