"""The published metrics, from predictions and labels. Pure.

    name         predictions                    labels                  value
    accuracy     classes [N]                    classes [N]             share of equal ones
    f1           classes [N], 1 is positive     classes [N]             2·tp / (2·tp + fp + fn)
    matthews     classes [N]                    classes [N]             correlation of the two, any number of classes
    pearson      scores [N]                     scores [N]              correlation
    spearman     scores [N]                     scores [N]              correlation of ranks
    perplexity   sum of negative log-likelihoods and number of tokens   exp of the mean

Correlations of something constant are 0, as where no positive is found or predicted F1 is.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PERPLEXITY",
    "SCORES",
    "accuracy",
    "choose",
    "f1",
    "matthews",
    "pearson",
    "perplexity",
    "score",
    "spearman",
]

PERPLEXITY = "perplexity"
"""The one metric that comes from likelihoods."""
MAX_MEAN_NLL = 700.0
"""Near where exp leaves what a float can hold; a model that has diverged has this perplexity."""

Values = NDArray[Any]


def accuracy(predictions_N: Values, labels_N: Values) -> float:
    """Return the share of predictions that equal their label."""
    return float(np.mean(predictions_N == labels_N))


def f1(predictions_N: Values, labels_N: Values) -> float:
    """Return F1 of class 1."""
    both = int(np.sum((predictions_N == 1) & (labels_N == 1)))
    either = int(np.sum(predictions_N == 1)) + int(np.sum(labels_N == 1))
    return 2 * both / either if either else 0.0


def matthews(predictions_N: Values, labels_N: Values) -> float:
    """Return Matthews' correlation coefficient, in Gorodkin's form for any number of classes."""
    classes = np.union1d(predictions_N, labels_N)
    predicted_NC = (predictions_N[:, None] == classes).astype(np.float64)
    true_NC = (labels_N[:, None] == classes).astype(np.float64)
    return _correlation(predicted_NC, true_NC)


def pearson(predictions_N: Values, labels_N: Values) -> float:
    """Return Pearson's correlation."""
    return _correlation(predictions_N.astype(np.float64)[:, None], labels_N.astype(np.float64)[:, None])


def spearman(predictions_N: Values, labels_N: Values) -> float:
    """Return Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs."""
    return pearson(_ranks(predictions_N), _ranks(labels_N))


def perplexity(nll_sum: float, num_tokens: int) -> float:
    """Return exp of the mean negative log-likelihood (natural logarithm) of `num_tokens` tokens, at least one."""
    return math.exp(min(nll_sum / num_tokens, MAX_MEAN_NLL))


def choose(costs_N: Values, num_choices: int) -> NDArray[np.int64]:
    """Return which of each `num_choices` texts in a row is likeliest, from their negative log-likelihoods."""
    choices_N: NDArray[np.int64] = costs_N.reshape(-1, num_choices).argmin(axis=1)
    return choices_N


SCORES: Mapping[str, Callable[[Values, Values], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""All metrics of predictions and labels by name."""


def score(name: str, predictions_N: Values, labels_N: Values) -> float:
    """Return the metric `name`, one of `SCORES`."""
    return SCORES[name](predictions_N, labels_N)


def _correlation(a_NC: NDArray[np.float64], b_NC: NDArray[np.float64]) -> float:
    """Return the correlation of two sets of columns: summed covariance over the root of the summed variances."""
    a_NC, b_NC = a_NC - a_NC.mean(axis=0), b_NC - b_NC.mean(axis=0)
    spread = math.sqrt(float(np.sum(a_NC * a_NC)) * float(np.sum(b_NC * b_NC)))
    return float(np.sum(a_NC * b_NC)) / spread if spread else 0.0


def _ranks(values_N: Values) -> NDArray[np.float64]:
    """Number the values by size, from 0."""
    _, which_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middles: NDArray[np.float64] = (ends - counts + ends - 1) / 2
    return middles[which_N]
