"""All-reduce tensors of several sizes by torch.distributed, and print how long that took.

Knows nothing of the testbed: rank, world size and address come from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as
torchrun sets them. Rank 0 prints a JSON object a size.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.distributed as dist


def main() -> None:
    """Measure every size that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, nargs="+", default=[1.0, 8.0], help="sizes of the tensor in MiB")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each size, after one to warm up")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    for mib in arguments.mib:
        measured = measure(int(mib * 2**20) // 4, arguments.repeats)
        if dist.get_rank() == 0:
            sys.stdout.write(json.dumps(measured) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def measure(elements: int, repeats: int) -> dict[str, int | float]:
    """All-reduce `elements` fp32 numbers `repeats` times, after one warm-up; return the median as this rank saw it.

    Raises SystemExit where a sum is wrong.
    """
    world_size, durations_s = dist.get_world_size(), []
    for _ in range(1 + repeats):
        x_E = torch.full((elements,), float(dist.get_rank()))
        dist.barrier()
        start_s = time.perf_counter()
        dist.all_reduce(x_E)
        durations_s.append(time.perf_counter() - start_s)
        if not torch.all(x_E == world_size * (world_size - 1) / 2):
            raise SystemExit(f"all-reduce of {elements} numbers gave a wrong sum")
    seconds = statistics.median(durations_s[1:])
    return {
        "world_size": world_size,
        "bytes": 4 * elements,
        "seconds": seconds,
        "min_seconds": min(durations_s[1:]),
        "max_seconds": max(durations_s[1:]),
        "algorithm_mbps": 8e-6 * 4 * elements / seconds,
    }


if __name__ == "__main__":
    main()
