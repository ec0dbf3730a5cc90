"""What entropy coding costs a device and saves a link: 256 tokens of one layer, packed and entropy-coded by turns.

    python tests/bench/coding_cost.py

Codes are drawn so that a code of the layer before leaves `--bits` bits on average unknown, of ten: what was measured on
CIFAR-100 (docs/results/bits.md). A device encodes its own codes once and sends them to `--peers` peers over one link,
and decodes those of as many peers. The last column is the rate of that link below which coding saves time: the bits
that it saves over the time that it takes beyond packing, if nothing else is done meanwhile. Not a test: prints a table.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from astra.code_statistics import NUM_CLASSES
from astra.code_tables import CodeTables, Given
from astra.coded_rows import CodedRows
from astra.entropy import PROBABILITY_TOTAL
from astra.rows import CodeRows, Known, RowCodec

TOKENS, CODEWORDS, BITS, ROUNDS = 256, 1024, 10, 31


def given_of(random: np.random.Generator, groups: int, known: int, bits: float) -> Given:
    """Return made-up tables whose classes leave about so many bits unknown."""
    ranks_K = np.arange(1, CODEWORDS + 1, dtype=np.float64)
    exponents = np.linspace(0, 4, 401)
    shapes = [ranks_K**-exponent / (ranks_K**-exponent).sum() for exponent in exponents]
    shares_K = min(shapes, key=lambda shares: abs(-(shares * np.log2(shares)).sum() - bits))
    whole_K = np.floor(shares_K * (PROBABILITY_TOTAL - CODEWORDS)).astype(np.int64) + 1
    whole_K[0] += PROBABILITY_TOTAL - whole_K.sum()
    tables = [random.permutation(whole_K) for _ in range(groups * NUM_CLASSES)]
    return Given(
        random.integers(0, NUM_CLASSES, (groups, known)),
        np.stack(tables).astype(np.uint16).reshape(groups, NUM_CLASSES, CODEWORDS),
        bits,
    )


def drawn(random: np.random.Generator, given: Given, before_RG: np.ndarray) -> torch.Tensor:
    """Draw codes as probable as the tables say."""
    codes_RG = np.empty_like(before_RG)
    for row, group in np.ndindex(*before_RG.shape):
        shares_K = given.probabilities_GCK[group, given.classes_GN[group, before_RG[row, group]]] / PROBABILITY_TOTAL
        codes_RG[row, group] = random.choice(CODEWORDS, p=shares_K)
    return torch.from_numpy(codes_RG)


def taken_ms(act: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    act()
    return (time.perf_counter() - began_s) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=float, default=7.2)
    parser.add_argument("--peers", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    print("| G | packed B | coded B | pack, ms | unpack | encode | decode | worth it below, Mbps |")  # noqa: T201
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")  # noqa: T201
    for groups in (1, 16, 32):
        way = given_of(random, groups, CODEWORDS, given.bits)
        tables = CodeTables((given_of(random, groups, TOKENS, given.bits),), (way,))
        before_RG = random.integers(0, CODEWORDS, (TOKENS, groups))
        rows_RG, known = drawn(random, way, before_RG), Known(1, 0, torch.from_numpy(before_RG))
        codecs: list[RowCodec] = [CodeRows(BITS), CodedRows(BITS, tables)]
        payloads = [codec.encode(rows_RG, known) for codec in codecs]
        times: list[list[float]] = [[], [], [], []]
        for _ in range(ROUNDS):
            for number, (codec, payload) in enumerate(zip(codecs, payloads, strict=True)):
                times[number].append(taken_ms(partial(codec.encode, rows_RG, known)))
                times[number + 2].append(taken_ms(partial(codec.decode, payload, TOKENS, groups, known)))
        pack, encode, unpack, decode = (statistics.median(each) for each in times)
        saved_bits = 8 * (len(payloads[0]) - len(payloads[1])) * given.peers
        worth = saved_bits / max(encode - pack + given.peers * (decode - unpack), 1e-3) / 1e3
        sizes = f"{len(payloads[0])} | {len(payloads[1])}"
        print(f"| {groups} | {sizes} | {pack:.2f} | {unpack:.2f} | {encode:.2f} | {decode:.2f} | {worth:.0f} |")  # noqa: T201


if __name__ == "__main__":
    main()
