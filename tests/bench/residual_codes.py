"""What a token loses at equal bits: a prefix of its code, a codebook of that size, or two residual stages of half.

    python tests/bench/residual_codes.py RUN --data DIR [--bits 4 6 8 10] [--layers 1 3] [--groups 4]

RUN is a folder of `astra train` for a ViT (model and codebooks), DIR is the data set of its recipe. Codebooks are
fitted to the first training images and judged by the first test images: the share of the variance of what is quantised
that they leave. Not a test: prints a table, judges nothing.

    prefix     the first bits of a code of the trained codebook (astra/nesting.py)
    one        k-means with 2^bits codewords; at all bits, the trained codebook itself
    residual   k-means with 2^(bits/2) codewords, and as many for what it leaves

legend: R rows (tokens), d numbers of a group
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from code_entropy import recipe_of
from sklearn.cluster import KMeans

from astra.clustering import layer_rows
from astra.codebook import CodebookSpec, GroupedCodebook, load_codebooks
from astra.data import load_examples, to_input
from astra.models import load_model
from astra.nesting import coarsened, nested

Values = npt.NDArray[np.float32]


def left_by(rows_Rd: Values, codewords_Kd: Values) -> Values:
    """Return rows less their nearest codewords."""
    distances_RK = (codewords_Kd**2).sum(1) - 2 * rows_Rd @ codewords_Kd.T
    left_Rd: Values = rows_Rd - codewords_Kd[distances_RK.argmin(1)]
    return left_Rd


def fitted(rows_Rd: Values, bits: int) -> Values:
    codewords_Kd: Values = KMeans(1 << bits, n_init=1, random_state=0).fit(rows_Rd).cluster_centers_
    return codewords_Kd


def ways(codebook: GroupedCodebook, group: int, fit_Rd: Values, test_Rd: Values, bits: int) -> list[float]:
    """Return the share of the variance that each way leaves."""
    most = codebook.num_codewords.bit_length() - 1
    prefix_Kd = coarsened(nested(codebook).codewords_GKd, bits).codewords_GKd[group].numpy()
    one_Kd = prefix_Kd if bits == most else fitted(fit_Rd, bits)
    first_Kd = fitted(fit_Rd, bits // 2)
    second_Kd = fitted(left_by(fit_Rd, first_Kd), bits - bits // 2)
    residual_Rd = left_by(left_by(test_Rd, first_Kd), second_Kd)
    left = [left_by(test_Rd, prefix_Kd), left_by(test_Rd, one_Kd), residual_Rd]
    return [float((each**2).mean() / test_Rd.var(axis=0).mean()) for each in left]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 6, 8, 10])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--fit", type=int, default=300)
    parser.add_argument("--test", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe, metadata = recipe_of(given.run, given.data), json.loads((given.run / "astra.json").read_text("utf-8"))
    codebooks = load_codebooks(
        given.run, CodebookSpec(**{name: metadata[name] for name in CodebookSpec.__dataclass_fields__})
    )
    model = load_model(recipe.model)
    layers = []
    for split_name, limit in (("train", given.fit), ("test", given.test)):
        inputs = to_input(load_examples(recipe.data, recipe.model, split_name, limit=limit).inputs)
        layers.append([rows_RE.numpy() for rows_RE in layer_rows(model, inputs, "input")])
    width = codebooks[0].codewords_GKd.shape[2]
    print("| bits | prefix | one | residual |\n| --- | --- | --- | --- |")  # noqa: T201
    for bits in given.bits:
        found = []
        for layer in given.layers:
            for group in range(given.groups):
                fit_Rd, test_Rd = (
                    np.ascontiguousarray(rows[layer][:, group * width : (group + 1) * width]) for rows in layers
                )
                found.append(ways(codebooks[layer], group, fit_Rd, test_Rd, bits))
        print(f"| {bits} |" + "|".join(f" {100 * value:.1f} % " for value in np.mean(found, axis=0)) + "|")  # noqa: T201


if __name__ == "__main__":
    main()
