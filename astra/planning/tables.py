"""How many keys and values a quantised model makes of its peers' codes, as far as that is known before a request. Pure.

codes of remote tokens ──expected_codes──► keys, where equal codes have equal keys
table of a layer ──expected_tables──► share of the layers that memory has tables for, and do without projections
"""

import math

from astra.models import ModelShape

__all__ = ["expected_codes", "expected_keys", "expected_tables"]

LIKELY_CODES = 1 / 3
"""The part of a codebook that one input's codes seem drawn from. With 1,024 codewords, 768 tokens of a photograph have
some 300 different codes (docs/results/performance.md)."""

TABLE_BYTES = 900_000_000
"""What tables may take of a device of 3 GB (`remote_tables.table_budget`)."""


def expected_codes(num_codewords: int, num_tokens: int) -> int:
    """Return how many different codes so many tokens have, if a part of the codebook is all that comes."""
    likely = max(2, round(LIKELY_CODES * num_codewords))
    return round(likely * -math.expm1(num_tokens * math.log1p(-1 / likely)))


def expected_keys(shape: ModelShape, num_groups: int, num_codewords: int, num_tokens: int) -> int:
    """Return how many keys so many remote tokens are: with one group, equal codes are one, unless positions turn it."""
    is_counted = num_groups == 1 and not shape.turns_keys
    return expected_codes(num_codewords, num_tokens) if is_counted else num_tokens


def expected_tables(num_layers: int, table_bytes: float) -> float:
    """Return the share of the layers that have tables.

    Tables are taken to be faster than projections, as they are but for the narrowest of tokens.
    """
    return min(1.0, TABLE_BYTES // table_bytes / num_layers)
