"""Keys and values of remote tokens from their codes, by the way that takes least time and fits in memory.

    legend: R remote tokens, D width, G groups, K codewords, H key/value heads, h head width, B batch,
            E keys and values side by side

    codes_BRG --look-up | bag | project--> k̂_BHRh, v̂_BHRh

Keys and values are affine in û, so those of a quantised token are sums of rows of tables made once per layer; all ways
give the same numbers but for rounding (design, section 7).

========  ==================================================  ===========================  =======================
way       table                                               memory, ViT-Base, K = 1024   what a request costs
========  ==================================================  ===========================  =======================
look-up   G = 1: keys and values of every codeword            6 MiB a layer                R rows of E to copy
bag       G > 1: [G · K, E], a token is a sum of G rows       3 MiB a group and layer, or  G · R rows of E to read
                                                              6 in fp32
project   none: codewords are put together and projected      none                         2 · R · D · E operations
========  ==================================================  ===========================  =======================

What a bag costs grows with G, and is a matter of memory; a projection is a matter of arithmetic. 768 tokens of ViT-Base
on one core of an AMD EPYC, milliseconds: a bag at G = 16 3.9 (6.9 in fp32), at G = 32 8.0 (15.7), a projection 17. The
ways differ in rounding, so the choice follows from these prices and the device's memory, and not from a trial at load:
a run that is replayed, or asked for again, goes the same way to the last digit.

Source: the tables are ours.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from astra.attention import split_heads
from astra.codebook import GroupedCodebook
from astra.memory import allowed_bytes, spare_bytes
from astra.strategy_config import TableType

__all__ = [
    "KeyValueCodewords",
    "KeyValueProjection",
    "KeyValueTable",
    "RemoteKeyValue",
    "Way",
    "remote_tables",
    "table_budget",
    "value_bytes",
]

Way = Literal["look-up", "bag", "project"]

READ_PRICE: dict[TableType, float] = {"fp16": 10.0, "fp32": 20.0}
"""What reading and adding a number of a table takes, in multiplications of a packed product: 0.2 or 0.4 and 0.02 ns."""
BUDGET_SHARE = 0.3
"""Of a device's memory for tables; where that is more than half of what is spare, that half."""
LARGEST_FP16 = 65504.0


class KeyValueProjection(Protocol):
    """The part of a model's block that tables are made from."""

    @property
    def key_value_weight(self) -> Tensor:
        """[E, D], keys above values."""

    @property
    def key_value_bias(self) -> Tensor | None:
        """[E] or None."""

    def key_value_unrotated(self, u_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return k_BHTh and v_BHTh, before positions are applied to k."""


class RemoteKeyValue(Protocol):
    """One layer's way from codes to keys and values."""

    def remote_key_value(self, codes_BRG: Tensor) -> tuple[Tensor, Tensor]:
        """Return k̂_BHRh, before positions, and v̂_BHRh of the tokens whose codes are `codes_BRG`."""


class KeyValueTable:
    """Keys and values of tokens whose attention input was quantised."""

    def __init__(self, codebook: GroupedCodebook, block: KeyValueProjection, way: Way, tables: TableType = "fp32"):
        self._codebook = codebook
        self._block = block
        self.way = way
        codewords_1KD = codebook.codewords_GKd[:1]
        with torch.no_grad():
            if way == "look-up":
                k_1HKh, v_1HKh = block.key_value_unrotated(codewords_1KD)
                self._num_heads = k_1HKh.shape[1]
                self._table_XKh = torch.cat((k_1HKh[0], v_1HKh[0]))  # X: the heads of the keys, then of the values
            elif way == "bag":
                weight_ED = block.key_value_weight
                nothing_11D = codewords_1KD.new_zeros(1, 1, weight_ED.shape[1])
                self._num_heads = block.key_value_unrotated(nothing_11D)[0].shape[1]
                table_NE = _bag_table(codebook, weight_ED, block.key_value_bias)
                small_enough = tables == "fp16" and _largest_sum(table_NE, codebook.num_groups) <= LARGEST_FP16
                self._table_NE = table_NE.half() if small_enough else table_NE

    def remote_key_value(self, codes_BRG: Tensor) -> tuple[Tensor, Tensor]:
        """Return k̂_BHRh, before positions, and v̂_BHRh of the tokens whose codes are `codes_BRG`."""
        batch, num_tokens, num_groups = codes_BRG.shape
        if self.way == "look-up":
            both_XRh = self._table_XKh.index_select(1, codes_BRG.reshape(-1))
            both = both_XRh.view(2, self._num_heads, batch, num_tokens, -1).transpose(1, 2)
            return both[0], both[1]
        codes_RG = codes_BRG.reshape(-1, num_groups)
        if self.way == "project":
            return self._block.key_value_unrotated(self._codebook.decode(codes_RG).view(batch, num_tokens, -1))
        rows_RG = codes_RG + torch.arange(num_groups) * self._codebook.num_codewords
        both_RE = F.embedding_bag(rows_RG, self._table_NE, mode="sum").float()
        k_RD, v_RD = both_RE.view(batch, num_tokens, -1).chunk(2, dim=-1)
        return split_heads(k_RD, self._num_heads), split_heads(v_RD, self._num_heads)


class KeyValueCodewords:
    """Keys and values of tokens that were quantised as such: the codewords themselves, so that nothing is projected."""

    def __init__(self, codebook: GroupedCodebook, num_kv_heads: int):
        self._codebook = codebook
        self._num_kv_heads = num_kv_heads

    def remote_key_value(self, codes_BRG: Tensor) -> tuple[Tensor, Tensor]:
        """Return k̂_BHRh, before positions, and v̂_BHRh of the tokens whose codes are `codes_BRG`."""
        batch, num_tokens, num_groups = codes_BRG.shape
        both_RE = self._codebook.decode(codes_BRG.reshape(-1, num_groups))
        k_BRE, v_BRE = both_RE.view(batch, num_tokens, -1).chunk(2, dim=-1)
        return split_heads(k_BRE, self._num_kv_heads), split_heads(v_BRE, self._num_kv_heads)


def remote_tables(
    codebooks: Sequence[GroupedCodebook],
    blocks: Sequence[KeyValueProjection],
    num_remote: int,
    *,
    tables: TableType,
    budget_bytes: int,
) -> list[KeyValueTable]:
    """Return every layer's keys and values of quantised tokens, of which a request brings `num_remote`.

    Tables take at most `budget_bytes` in all; where nothing is remote there are none.
    """
    codebook, weight_ED = max(codebooks, key=lambda each: each.num_codewords), blocks[0].key_value_weight
    num_values = codebook.num_groups * codebook.num_codewords * weight_ED.shape[0]
    table_bytes = num_values * value_bytes(tables, codebook.num_groups)
    num_tables = min(len(blocks), budget_bytes // table_bytes)
    if not num_remote or codebook.num_groups * READ_PRICE[tables] >= weight_ED.shape[1]:
        num_tables = 0
    table: Way = "look-up" if codebook.num_groups == 1 else "bag"
    return [
        KeyValueTable(codebook, block, table if layer < num_tables else "project", tables)
        for layer, (codebook, block) in enumerate(zip(codebooks, blocks, strict=True))
    ]


def value_bytes(tables: TableType, num_groups: int) -> int:
    """Return the bytes of a number of a table; that of one group, which is small, is always in fp32."""
    return 2 if tables == "fp16" and num_groups > 1 else 4


def table_budget() -> int:
    """Return how many bytes tables may take on this device."""
    return min(int(BUDGET_SHARE * allowed_bytes()), spare_bytes() // 2)


def _largest_sum(table_NE: Tensor, num_groups: int) -> float:
    """Return a bound of what a token's keys and values can come to: one row of each group."""
    lowest, highest = torch.aminmax(table_NE.view(num_groups, -1, table_NE.shape[1]), dim=1)
    return float(torch.maximum(-lowest, highest).sum(dim=0).max())


def _bag_table(codebook: GroupedCodebook, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    """Return [G · K, E]: what each codeword adds to keys and values; the bias is in the first group's rows."""
    width_per_group = weight_ED.shape[1] // codebook.num_groups
    table_NE = weight_ED.new_empty(codebook.num_groups * codebook.num_codewords, weight_ED.shape[0])
    rows = torch.split(table_NE, codebook.num_codewords)
    weights = torch.split(weight_ED, width_per_group, dim=1)
    for rows_KE, codewords_Kd, weight_Ed in zip(rows, codebook.codewords_GKd, weights, strict=True):
        torch.matmul(codewords_Kd, weight_Ed.t(), out=rows_KE)
    if bias_E is not None:
        rows[0].add_(bias_E)
    return table_NE
