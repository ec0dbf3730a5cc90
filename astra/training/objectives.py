"""What a training lowers and what it is judged by, for each kind of task.

    legend: B batch, T tokens, D width, C outputs

        task            rows that `head` reads       loss                     score
        classification  the answer's row [B, D]      cross-entropy            the set's first metric, higher is better
        regression      the answer's row             mean squared error       Pearson
        language        every row [B, T, D]          cross-entropy per token  perplexity, lower is better

Knows nothing of models and devices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from astra.data import Examples
from astra.data.labelled import NOT_COUNTED
from astra.errors import ConfigError
from astra.evaluation.metrics import PERPLEXITY, perplexity, score

__all__ = ["Judgement", "loss_of", "metric_of", "reads_every_row"]

ROWS_AT_ONCE = 2048
"""Rows of logits that are alive at once: 400 MB of GPT-2's vocabulary."""


@dataclass(frozen=True)
class Judgement:
    """A metric's value, and which way is better."""

    metric: str
    value: float

    def beats(self, other: "Judgement | None") -> bool:
        """Say whether this is better than `other`; anything is better than nothing."""
        if other is None:
            return True
        return self.value < other.value if self.metric == PERPLEXITY else self.value > other.value


def reads_every_row(examples: Examples) -> bool:
    """Say whether the head reads all rows and not only the answer's."""
    return examples.task == "language"


def loss_of(
    examples: Examples, head: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, smoothing: float
) -> Tensor:
    """Return the mean loss of a batch; `x` are the rows that the task reads, before the head."""
    if examples.task == "regression":
        return F.mse_loss(head(x).squeeze(-1).float(), labels.float())
    if examples.task == "classification":
        return F.cross_entropy(head(x).float(), labels, label_smoothing=smoothing)
    if examples.task != "language":
        raise ConfigError([f"data: name must be a set to train on, got one of task {examples.task!r}; choose another"])
    total, count = _token_loss(head, x, labels)
    return total / max(count, 1)


def metric_of(
    examples: Examples, head: Callable[[Tensor], Tensor], batches: Sequence[tuple[Tensor, Tensor]]
) -> Judgement:
    """Judge rows and labels of a whole set by its first metric."""
    metric = examples.metrics[0]
    if examples.task == "language":
        parts = [_token_loss(head, x, labels) for x, labels in batches]
        return Judgement(metric, perplexity(sum(float(total) for total, _ in parts), sum(count for _, count in parts)))
    outputs = np.concatenate([head(x).float().numpy(force=True) for x, _ in batches])
    labels = np.concatenate([given.numpy(force=True) for _, given in batches])
    predictions = outputs[:, 0] if examples.task == "regression" else outputs.argmax(axis=1)
    return Judgement(metric, score(metric, predictions, labels))


def _token_loss(head: Callable[[Tensor], Tensor], x_BTD: Tensor, labels_BT: Tensor) -> tuple[Tensor, int]:
    """Return the summed loss of the tokens that count, and how many there are; a part of the rows at a time."""
    x_RD, labels_R = x_BTD.flatten(0, -2), labels_BT.flatten()
    total = x_RD.new_zeros((), dtype=torch.float32)
    for rows, given in zip(torch.split(x_RD, ROWS_AT_ONCE), torch.split(labels_R, ROWS_AT_ONCE), strict=True):
        total = total + F.cross_entropy(head(rows).float(), given, ignore_index=NOT_COUNTED, reduction="sum")
    return total, int((labels_R != NOT_COUNTED).sum())
