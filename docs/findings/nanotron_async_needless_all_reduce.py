"""nanotron 0.2: with async_communication the column layer all-reduces a gradient that nobody asked for.

Two ranks on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import os
import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_rank(rank, folder, wrong):
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    from nanotron.parallel.tensor_parallel import functional
    from nanotron.parallel.tensor_parallel.enum import TensorParallelLinearMode
    from nanotron.parallel.tensor_parallel.nn import TensorParallelColumnLinear

    reduced = []
    all_reduce = functional.dist.all_reduce

    def recorded(tensor, *given, **named):
        reduced.append(list(tensor.shape))
        return all_reduce(tensor, *given, **named)

    functional.dist.all_reduce = recorded
    mode = TensorParallelLinearMode.ALL_REDUCE
    for overlap in (False, True):
        reduced.clear()
        layer = TensorParallelColumnLinear(4, 6, dist.group.WORLD, mode, bias=False, async_communication=overlap)
        layer(torch.ones(5, 4)).sum().backward()
        if rank == 0:
            print(f"async_communication={overlap}: expected to reduce [], got {reduced}")
        if reduced:
            wrong.value = 1
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
