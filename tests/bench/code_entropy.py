"""How many bits ASTRA's codes need, given what a receiver knows already: what an entropy coder could save.

    python tests/bench/code_entropy.py RUNS… --data DIR [--fit 6000] [--test 1000]

RUNS are folders of `astra train` for a ViT (model and codebooks), DIR is the data set of their recipe. Codes are those
of ASTRA on four devices, emulated. Probabilities are counted on the first training images, and bits are those that they
cost on the first test images: none of them were counted. Not a test: prints a table, judges nothing.

    order 0      what each code costs by how often it occurs in its layer and group
    position     given where in the image the token is
    left         given the code of the token before, in the same group
    layer        given the same token's code of the layer before, in the same group
    group        given the same token's code of the group before
    … of C       as such, but the known code is told only by which of C clusters its codeword is in

Counts are smoothed towards order 0 as if that had been seen `--prior` times, and order 0 towards all codes alike as if
each had been seen once.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from astra.codebook import CodebookSpec, GroupedCodebook, load_codebooks
from astra.data import load_examples, to_input
from astra.data_config import DataConfig
from astra.models import load_model
from astra.partition import split
from astra.training.emulation import emulate_astra, owners_of
from astra.training.quantiser import nearest_codes
from astra.training.recipe import Recipe

DEVICES, BATCH = 4, 100

Codes = npt.NDArray[np.int64]


def recipe_of(run: Path, data: Path) -> Recipe:
    """Read a run's recipe, with the model that it left."""
    tree = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    tree["model"]["checkpoint"], tree["data"]["folder"] = str(run), str(data)
    return Recipe.model_validate_json(json.dumps(tree))


@torch.inference_mode()
def codes_of(recipe: Recipe, codebooks: list[GroupedCodebook], data: DataConfig, split_name: Any, limit: int) -> Codes:
    """Return codes [images, layers, tokens, groups]."""
    model = load_model(recipe.model)
    inputs_N = load_examples(data, recipe.model, split_name, limit=limit).inputs
    owners_T = owners_of(split(model.shape.num_content_tokens, [1.0] * DEVICES))
    batches = []
    for first in range(0, len(inputs_N), BATCH):
        inputs = to_input(inputs_N[first : first + BATCH])
        kept: list[Tensor] = []

        def quantise(kept: list[Tensor], layer: int, u_BTE: Tensor) -> Tensor:
            codes_RG = nearest_codes(u_BTE.flatten(0, 1), codebooks[layer].codewords_GKd)
            kept.append(codes_RG.view(*u_BTE.shape[:2], -1))
            return codebooks[layer].decode(codes_RG).view_as(u_BTE)

        emulate_astra(model, inputs, owners_T, DEVICES, quantise=partial(quantise, kept))
        batches.append(torch.stack(kept, dim=1))
    return torch.cat(batches).numpy()


def smoothed(counts_CK: npt.NDArray[np.float64], prior: float) -> npt.NDArray[np.float64]:
    """Return bits [C, K] of each code after each context."""
    order_0_K = counts_CK.sum(0) + 1.0
    order_0_K /= order_0_K.sum()
    mass = counts_CK.sum(1, keepdims=True) + prior
    bits: npt.NDArray[np.float64] = -np.log2((counts_CK + prior * order_0_K) / mass)
    return bits


def bits_given(
    fit: Codes, known_fit: Codes, test: Codes, known_test: Codes, sizes: tuple[int, int], prior: float
) -> float:
    """Return the mean bits of `test` given `known_test`, by the counts of `fit` given `known_fit`."""
    num_known, num_codes = sizes
    pairs = known_fit.ravel() * num_codes + fit.ravel()
    counts_CK = np.bincount(pairs, minlength=num_known * num_codes).reshape(sizes).astype(np.float64)
    return float(smoothed(counts_CK, prior)[known_test.ravel(), test.ravel()].mean())


def clusters_of(codebook: GroupedCodebook, num_clusters: int) -> Codes:
    """Return clusters [G, K] of the codewords of each group."""
    fits = [KMeans(num_clusters, n_init=1, random_state=0).fit(group.numpy()) for group in codebook.codewords_GKd]
    return np.stack([fit.labels_.astype(np.int64) for fit in fits])


def layer_rows(
    fit: Codes, test: Codes, codebooks: list[GroupedCodebook], layer: int, clusters: list[Codes], prior: float
) -> dict[str, float]:
    """Return the bits of a code of one layer in every way; means over its groups."""
    num_codes, num_clusters = codebooks[0].num_codewords, int(clusters[0].max()) + 1
    found: dict[str, list[float]] = {}
    positions_fit, positions_test = (np.broadcast_to(np.arange(c.shape[2]), (len(c), c.shape[2])) for c in (fit, test))

    def note(name: str, group: int, known: tuple[Codes, Codes], num_known: int, first: int = 0) -> None:
        own = [codes[:, layer, first:, group] for codes in (fit, test)]
        bits = bits_given(own[0], known[0], own[1], known[1], (num_known, num_codes), prior)
        found.setdefault(name, []).append(bits)

    for group in range(fit.shape[3]):
        note("order 0", group, (np.zeros_like(positions_fit), np.zeros_like(positions_test)), 1)
        note("position", group, (positions_fit, positions_test), positions_fit.shape[1])
        left = (fit[:, layer, :-1, group], test[:, layer, :-1, group])
        note("left", group, left, num_codes, first=1)
        of = clusters[layer][group]
        note(f"left of {num_clusters}", group, (of[left[0]], of[left[1]]), num_clusters, first=1)
        if layer:
            before = (fit[:, layer - 1, :, group], test[:, layer - 1, :, group])
            note("layer", group, before, num_codes)
            of = clusters[layer - 1][group]
            note(f"layer of {num_clusters}", group, (of[before[0]], of[before[1]]), num_clusters)
        if group:
            other = (fit[:, layer, :, group - 1], test[:, layer, :, group - 1])
            note("group", group, other, num_codes)
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fit", type=int, default=6000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--clusters", type=int, default=32)
    parser.add_argument("--prior", type=float, default=200.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for run in given.runs:
        recipe = recipe_of(run, given.data)
        metadata = json.loads((run / "astra.json").read_text(encoding="utf-8"))
        spec = CodebookSpec(**{name: metadata[name] for name in CodebookSpec.__dataclass_fields__})
        codebooks = load_codebooks(run, spec)
        fit = codes_of(recipe, codebooks, recipe.data, "train", given.fit)
        test = codes_of(recipe, codebooks, recipe.data, "test", given.test)
        clusters = [clusters_of(codebook, given.clusters) for codebook in codebooks]
        rows = [layer_rows(fit, test, codebooks, layer, clusters, given.prior) for layer in range(spec.num_layers)]
        names = list(dict.fromkeys(name for row in rows[::-1] for name in row))
        print(f"\n{run.name}: bits a code, fixed {spec.num_codewords.bit_length() - 1}")  # noqa: T201
        print("| layer |" + "|".join(f" {name} " for name in names) + "|")  # noqa: T201
        for layer, row in enumerate(rows):
            print(f"| {layer} |" + "|".join(f" {row[name]:.2f} " if name in row else " " for name in names) + "|")  # noqa: T201


if __name__ == "__main__":
    main()
