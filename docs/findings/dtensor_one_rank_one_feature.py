"""torch 2.13.0, DTensor: on a mesh of one rank the backward of a column layer with one output raises.

One rank on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module


def on_rank(rank, folder, wrong):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=1, rank=rank)
    mesh = init_device_mesh("cpu", (1,))

    def gradient(out_features):
        column = parallelize_module(torch.nn.Linear(4, out_features), mesh, ColwiseParallel())
        column(torch.ones(3, 4)).sum().backward()
        return column.bias.grad.to_local().tolist()

    def view():
        return distribute_tensor(torch.ones(1, 1), mesh, [Shard(1)]).view(1).to_local().tolist()

    tries = {
        "bias.grad of Linear(4, 2)": (lambda: gradient(2), [3.0, 3.0]),
        "bias.grad of Linear(4, 1)": (lambda: gradient(1), [3.0]),
        "DTensor[1, 1], Shard(1), as view(1)": (view, [1.0]),
    }
    for what, (f, expected) in tries.items():
        try:
            got = f()
        except RuntimeError as error:
            got = f"RuntimeError: {str(error).splitlines()[0]}"
        print(f"{what}: expected {expected}, got {got}")
        if got != expected:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=1)
    sys.exit(wrong.value)
