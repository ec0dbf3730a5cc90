"""Coarser codebooks inside a codebook: codewords in an order in which the first bits of a code are a code themselves.

    codewords ──halved along their widest direction, again and again──► order: a binary tree, leaves from left to right
    first b bits of a code = the subtree it is in; its codeword: the mean of the subtree

So a codebook of 1,024 codewords has one of 512, of 256 … in it, none of which has to be trained or kept: fewer bits for
less exactness, to be chosen when a model is run.

    legend: G groups, K codewords, d numbers of a codeword, S subtrees, W codewords of one

Source: ours; nested like tree-structured vector quantisation (Buzo et al., 1980), but over codewords that are there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.codebook import GroupedCodebook
from astra.strategy_config import AstraConfig

__all__ = ["coarsened", "losses", "nested", "sent_codebooks"]


def nested(codebook: GroupedCodebook) -> GroupedCodebook:
    """Return the same codewords in nested order, each group by itself."""
    return GroupedCodebook(torch.stack([_in_order(codewords_Kd) for codewords_Kd in codebook.codewords_GKd]))


def coarsened(ordered_GKd: Tensor, bits: int) -> GroupedCodebook:
    """Return the codebook of the first `bits` bits of the codes of codewords in nested order."""
    num_groups, num_codewords, width = ordered_GKd.shape
    assert num_codewords % (1 << bits) == 0, "checked with the config"
    return GroupedCodebook(ordered_GKd.view(num_groups, 1 << bits, num_codewords >> bits, width).mean(dim=2))


def sent_codebooks(codewords: Sequence[Tensor], config: AstraConfig) -> list[GroupedCodebook]:
    """Return the codebooks of the codes that are sent, by all layers' codewords: nested ones for `code_bits`."""
    if config.code_bits is None:
        return [GroupedCodebook(codewords_GKd) for codewords_GKd in codewords]
    bits = config.bits_by_layer(len(codewords))
    return [coarsened(ordered_GKd, count) for ordered_GKd, count in zip(codewords, bits, strict=True)]


def losses(ordered_GKd: Tensor) -> list[float]:
    """Return for 0, 1, … all bits of a code what share of the variance of codewords in nested order they leave out.

    All codewords count alike: k-means and moving averages use them almost equally (docs/results/bits.md).
    """
    centred_GKd = ordered_GKd - ordered_GKd.mean(dim=1, keepdim=True)
    num_groups, num_codewords, width = centred_GKd.shape
    whole = float(centred_GKd.square().sum())
    if not whole:
        return [0.0] * num_codewords.bit_length()
    means = (
        centred_GKd.view(num_groups, 1 << bits, -1, width).mean(dim=2) for bits in range(num_codewords.bit_length())
    )
    kept = [float(means_GSd.square().sum()) * num_codewords / means_GSd.shape[1] for means_GSd in means]
    return [1 - part / whole for part in kept]


def _in_order(codewords_Kd: Tensor) -> Tensor:
    """Sort codewords so that each half, quarter and so on is what lies on one side of its neighbour."""
    num_codewords, width = codewords_Kd.shape
    ordered_SWd = codewords_Kd.view(1, num_codewords, width)
    while ordered_SWd.shape[1] > 1:
        centred_SWd = ordered_SWd - ordered_SWd.mean(dim=1, keepdim=True)
        widest_Sd1 = torch.linalg.svd(centred_SWd, full_matrices=False).Vh[:, :1].transpose(1, 2)
        order_SW = (centred_SWd @ widest_Sd1).squeeze(2).argsort(dim=1, stable=True)
        sorted_SWd = ordered_SWd.gather(1, order_SW[:, :, None].expand(-1, -1, width))
        ordered_SWd = sorted_SWd.reshape(2 * len(sorted_SWd), -1, width)
    return ordered_SWd.reshape(num_codewords, width)
