"""Classify images with PyTorch's own tensor parallelism over gloo: the outside peer of `astra`'s strategy `tensor`.

    rank 0:    the whole model on one device (`single`)
    all ranks: heads and hidden units split by torch.distributed.tensor.parallel, two all-reduces a layer (`tensor`)

Uses torch and transformers alone, and knows nothing of the testbed: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are
those of torchrun. Rank 0 prints a JSON object for each of the two, with columns of `astra bench`. Measured as there:
latency from the word that starts a request to the answer on rank 0; requests do not overlap; warm-up is not counted.
Every rank has the input (`replicated`) and all weights, drawn from one seed like those of `astra`, so nothing but
words and activations is sent.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import ViTConfig, ViTForImageClassification

SIZES = {"tiny": (64, 4, 4), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, layers, heads."""
PLAN = {
    **{f"attention.{name}_proj": ColwiseParallel() for name in "qkv"},
    "attention.o_proj": RowwiseParallel(),
    "mlp.fc1": ColwiseParallel(),
    "mlp.fc2": RowwiseParallel(),
}
"""How each layer is split, as in Megatron-LM (arXiv 1909.08053, section 3)."""
STANDARD_DEVIATION = 0.02
CLASSES = 1000


def main() -> None:
    """Measure both on one device mesh, and print what came out on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--image-size", type=int, default=512, help="pixels a side; patches are 16 x 16")
    parser.add_argument("--requests", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    model = build(arguments.size, arguments.image_size, arguments.seed)
    images = [image(arguments.image_size, number) for number in range(arguments.warmup + arguments.requests)]
    single = serve(model if dist.get_rank() == 0 else None, images)
    split(model)
    tensor = serve(model, images)
    if dist.get_rank() == 0:
        for name, answers, size in (("single", single, 1), ("tensor", tensor, dist.get_world_size())):
            measured = [row[arguments.warmup :] for row in (answers, single)]
            row = summary(name, *measured, sent=sent_bytes(model, size))
            sys.stdout.write(json.dumps(row) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def build(size: str, image_size: int, seed: int) -> ViTForImageClassification:
    """Make a ViT whose matrices are drawn from `seed` in the order of the parameters; biases are 0, norms 1."""
    width, layers, heads = SIZES[size]
    config = ViTConfig(
        image_size=image_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=CLASSES,
    )
    with torch.device("meta"):
        model = ViTForImageClassification(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, STANDARD_DEVIATION, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return model.eval()


def image(size: int, number: int) -> Tensor:
    """Draw the pixels [1, 3, size, size] of image `number`, from -1 to 1."""
    generator = torch.Generator().manual_seed(number)
    return torch.rand(1, 3, size, size, generator=generator) * 2 - 1


def split(model: ViTForImageClassification) -> None:
    """Leave each rank its share of every layer, in place; nothing is sent, since all ranks have the same weights."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.vit.layers:
        parallelize_module(layer, mesh, PLAN, src_data_rank=None)


@torch.no_grad()
def serve(model: Callable[[Tensor], object] | None, images: list[Tensor]) -> list[tuple[float, Tensor]]:
    """Answer one image after the other; return the seconds and the logits [C] of each, as this rank has them.

    Without a model this rank only keeps step.
    """
    answers, word = [], torch.zeros(1)
    for pixels_BCYX in images:
        dist.barrier()
        start_s = time.perf_counter()
        dist.broadcast(word, 0)
        if model is not None:
            logits_BC = model(pixels_BCYX).logits
            answers.append((time.perf_counter() - start_s, logits_BC[0]))
    return answers


def sent_bytes(model: ViTForImageClassification, world_size: int) -> int:
    """Return the payload of a request: in each of two ring all-reduces a layer, all ranks send 2 (N - 1) · T · D."""
    config = model.config
    tokens = 1 + (config.image_size // config.patch_size) ** 2
    return 2 * config.num_hidden_layers * 2 * (world_size - 1) * tokens * config.hidden_size * 4


def summary(
    name: str, answers: list[tuple[float, Tensor]], reference: list[tuple[float, Tensor]], *, sent: int
) -> dict[str, str | int | float]:
    """Describe the measured answers in the columns of `astra bench`; `reference` are those of one device."""
    latencies_s, single_s = [seconds for seconds, _ in answers], [seconds for seconds, _ in reference]
    pairs = [(ours.double(), theirs.double()) for (_, ours), (_, theirs) in zip(answers, reference, strict=True)]
    return {
        "strategy": name,
        "settings": "torch",
        "placement": "replicated",
        "requests": len(answers),
        **{f"latency_p{percent}_s": float(np.percentile(latencies_s, percent)) for percent in (50, 95, 99)},
        "speedup_vs_single": float(np.median(single_s) / np.median(latencies_s)),
        "bytes_per_request_predicted": sent,
        "agreement_cosine": float(np.mean([torch.cosine_similarity(a, b, dim=0) for a, b in pairs])),
        "agreement_top1_pct": 100 * float(np.mean([a.argmax() == b.argmax() for a, b in pairs])),
        "largest_difference": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs),
    }


if __name__ == "__main__":
    main()
