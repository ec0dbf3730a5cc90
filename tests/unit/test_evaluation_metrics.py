"""Metrics against scikit-learn and SciPy, and paired comparison against SciPy's binomial test."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as published

from astra.evaluation import metrics
from astra.evaluation.paired import Flips, flips_of, mcnemar_p

ROUNDING = 1e-12  # float64, a few hundred terms in another order


@pytest.fixture(params=[0, 1, 2])
def generator(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(request.param)


@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(metrics.accuracy, published.accuracy_score), (metrics.matthews, published.matthews_corrcoef)],
)
def test_class_metrics_equal_scikit_learn(
    generator: np.random.Generator,
    num_classes: int,
    ours: Callable[[Any, Any], float],
    theirs: Callable[[Any, Any], float],
) -> None:
    labels, guesses = generator.integers(0, num_classes, (2, 200))
    predictions = np.where(generator.random(200) < 0.6, labels, guesses)
    assert ours(predictions, labels) == pytest.approx(theirs(labels, predictions), abs=ROUNDING)


def test_f1_equals_scikit_learn(generator: np.random.Generator) -> None:
    labels, predictions = generator.integers(0, 2, (2, 200))
    assert metrics.f1(predictions, labels) == pytest.approx(published.f1_score(labels, predictions), abs=ROUNDING)


def test_correlations_equal_scipy(generator: np.random.Generator) -> None:
    labels = generator.integers(0, 26, 300) / 5  # as STS-B's scores: many are equal
    predictions = (labels + generator.standard_normal(300)).astype(np.float32).round(1)
    assert metrics.pearson(predictions, labels) == pytest.approx(
        stats.pearsonr(predictions.astype(np.float64), labels).statistic, abs=ROUNDING
    )
    assert metrics.spearman(predictions, labels) == pytest.approx(
        stats.spearmanr(predictions, labels).statistic, abs=ROUNDING
    )


def test_metrics_of_constant_predictions_are_zero() -> None:
    labels, constant = np.array([0, 1, 1, 0]), np.zeros(4, np.int64)
    for metric in (metrics.f1, metrics.matthews, metrics.pearson, metrics.spearman):
        assert metric(constant, labels) == 0.0


def test_perplexity_of_a_fair_die_is_its_sides() -> None:
    assert metrics.perplexity(100 * math.log(6), 100) == pytest.approx(6)


def test_perplexity_of_a_diverged_model_is_a_number() -> None:
    assert metrics.perplexity(1e9, 100) == pytest.approx(math.exp(metrics.MAX_MEAN_NLL))


def test_choose_takes_the_likeliest_of_each_question() -> None:
    costs = np.array([3.0, 1.0, 2.0, 0.5, 4.0, 0.7])
    assert metrics.choose(costs, 3).tolist() == [1, 0]


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 5), (10, 3), (2, 40), (400, 350)])
def test_mcnemar_equals_the_exact_binomial_test(lost: int, gained: int) -> None:
    theirs = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar_p(lost, gained) == pytest.approx(theirs, rel=1e-9)


def test_flips_count_answers_each_way() -> None:
    labels = np.array([0, 1, 2, 3, 4])
    reference, other = np.array([0, 1, 9, 9, 9]), np.array([0, 9, 2, 3, 8])
    assert flips_of(reference, other, labels) == Flips(lost=1, gained=2)
    assert Flips(1, 2).p == 1.0
