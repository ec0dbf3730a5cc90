"""Tables for the entropy coder, counted on the codes of a model's own activations.

    inputs ──model, layer by layer──► codes of every token ──► classes of what is known ──count──► probabilities

What is known (a position, a code of the layer before) goes into classes by k-means on the mean of what it is followed
by: so that things after which the same codes come share their counts.

    legend: R rows (tokens), G groups, K codewords, C classes, S things that may be known, F halves of the inputs
"""

import warnings

import numpy as np
import numpy.typing as npt
from torch import Tensor

from astra.clustering import layer_rows
from astra.code_tables import CodeTables, Given
from astra.codebook import GroupedCodebook
from astra.entropy import PROBABILITY_TOTAL
from astra.models import ModelAdapter
from astra.strategy_config import Site

__all__ = ["NUM_CLASSES", "count_codes_of", "tables_of"]

NUM_CLASSES = 64
"""Classes of one thing that is known. On CIFAR-100 with G = 16, a code of layers 1 to 3 takes 7.94 bits given 32, 7.71
given 64 and 7.53 given 128; each class that occurs costs a call of the coder."""

PRIORS = (1 / 64, 1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""How often a class counts as having met each code on average, in the usual shares, before anything is counted:
whichever costs the fewest bits where it was not counted."""

SHRINKAGE = 4.0
"""The same for the mean of what follows one thing."""

Codes = npt.NDArray[np.int64]
Counts = npt.NDArray[np.float64]


def tables_of(
    model: ModelAdapter, inputs: Tensor, codebooks: list[GroupedCodebook], site: Site, *, seed: int
) -> CodeTables:
    """Return tables counted on the content tokens of `inputs`, run on one device."""
    codes = [
        codebook.encode(rows_RE).numpy()
        for codebook, rows_RE in zip(codebooks, layer_rows(model, inputs, site), strict=True)
    ]
    return count_codes_of(codes, codebooks, model.shape.num_content_tokens, seed=seed)


def count_codes_of(
    codes: list[Codes], codebooks: list[GroupedCodebook], num_positions: int, *, seed: int
) -> CodeTables:
    """Return tables counted on codes [R, G] of every layer, whose rows are whole inputs one after the other."""
    num_rows, num_groups = codes[0].shape
    positions_RG = np.tile(np.arange(num_positions), num_rows // num_positions)[:, None].repeat(num_groups, axis=1)
    folds_R = np.arange(num_rows) // num_positions * 2 // (num_rows // num_positions)
    num_codes = codebooks[0].num_codewords
    return CodeTables(
        tuple(
            _count(own_RG, positions_RG, num_positions, codebook, folds_R=folds_R, seed=seed)
            for own_RG, codebook in zip(codes, codebooks, strict=True)
        ),
        tuple(
            _count(own_RG, before_RG, num_codes, codebook, folds_R=folds_R, seed=seed)
            for before_RG, own_RG, codebook in zip(codes[:-1], codes[1:], codebooks[1:], strict=True)
        ),
    )


def _count(
    codes_RG: Codes, known_RG: Codes, num_known: int, codebook: GroupedCodebook, *, folds_R: Codes, seed: int
) -> Given:
    """Count the codes of one layer in classes of what is known."""
    classes, probabilities, bits = [], [], []
    for group, codewords_Kd in enumerate(codebook.codewords_GKd.numpy()):
        codes_R, known_R = codes_RG[:, group], known_RG[:, group]
        classes_S = _classes(codewords_Kd[codes_R], known_R, num_known, seed)
        sizes = (int(classes_S.max()) + 1, codebook.num_codewords)
        counts_FCK = _counts(codes_R, classes_S[known_R], sizes, folds_R)
        cost, prior = min((_bits_elsewhere(counts_FCK, prior), prior) for prior in PRIORS)
        classes.append(classes_S)
        probabilities.append(_in_whole_numbers(_shares(counts_FCK.sum(axis=0), prior)))
        bits.append(cost)
    return Given(np.stack(classes), _padded(probabilities), float(np.mean(bits)))


def _classes(follows_Rd: npt.NDArray[np.float32], known_R: Codes, num_known: int, seed: int) -> Codes:
    """Return the class of each of `num_known` things, by the mean of what follows it."""
    from sklearn.cluster import KMeans  # takes two seconds to import; ranks only read tables
    from sklearn.exceptions import ConvergenceWarning

    counts_S = np.bincount(known_R, minlength=num_known).astype(np.float64)
    sums_Sd = np.stack([np.bincount(known_R, column, minlength=num_known) for column in follows_Rd.T], axis=1)
    means_Sd = (sums_Sd + SHRINKAGE * follows_Rd.mean(axis=0)) / (counts_S + SHRINKAGE)[:, None]
    means = KMeans(min(NUM_CLASSES, num_known), n_init=1, random_state=seed)
    with warnings.catch_warnings():  # things never seen have the same mean
        warnings.simplefilter("ignore", ConvergenceWarning)
        classes_S = means.fit(means_Sd, sample_weight=counts_S + 1e-3).labels_
    _, dense_S = np.unique(classes_S, return_inverse=True)
    return dense_S.astype(np.int64)


def _counts(codes_R: Codes, classes_R: Codes, sizes: tuple[int, int], folds_R: Codes) -> Counts:
    """Return [2, C, K]: how often each code came in each class, in either half of the inputs."""
    cells_R = (folds_R * sizes[0] + classes_R) * sizes[1] + codes_R
    counts_FCK: Counts = np.bincount(cells_R, minlength=2 * sizes[0] * sizes[1]).reshape(2, *sizes).astype(np.float64)
    return counts_FCK


def _shares(counts_CK: Counts, prior: float) -> Counts:
    """Return [C, K], smoothed towards how often codes occur at all, and that towards all alike."""
    usual_K = counts_CK.sum(axis=0) + 1.0
    shares_CK: Counts = counts_CK + prior * usual_K / usual_K.mean()
    shares_CK /= shares_CK.sum(axis=1, keepdims=True)
    return shares_CK


def _bits_elsewhere(counts_FCK: Counts, prior: float) -> float:
    """Return what a code of each half of the inputs costs by the counts of the other half."""
    halves = zip(counts_FCK, counts_FCK[::-1], strict=True)
    costs = [-(here_CK * np.log2(_shares(there_CK, prior))).sum() for here_CK, there_CK in halves]
    return float(sum(costs) / counts_FCK.sum())


def _in_whole_numbers(shares_CK: Counts) -> npt.NDArray[np.uint16]:
    """Return probabilities of at least 1 in PROBABILITY_TOTAL; the most probable code takes what is left over."""
    num_codes = shares_CK.shape[1]
    whole_CK = np.floor(shares_CK * (PROBABILITY_TOTAL - num_codes)).astype(np.int64) + 1
    rows = np.arange(len(whole_CK))
    whole_CK[rows, whole_CK.argmax(axis=1)] += PROBABILITY_TOTAL - whole_CK.sum(axis=1)
    in_table_CK: npt.NDArray[np.uint16] = whole_CK.astype(np.uint16)
    return in_table_CK


def _padded(probabilities: list[npt.NDArray[np.uint16]]) -> npt.NDArray[np.uint16]:
    """Return the groups' tables in one array; classes that a group does not have repeat its first."""
    most = max(len(table_CK) for table_CK in probabilities)
    whole_GCK: npt.NDArray[np.uint16] = np.stack(
        [table_CK[[*range(len(table_CK)), *[0] * (most - len(table_CK))]] for table_CK in probabilities]
    )
    return whole_GCK
