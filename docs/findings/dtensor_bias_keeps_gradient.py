"""torch 2.13.0, DTensor: a bias that alone is trained keeps the caller's gradient, and accumulates into it.

Two ranks on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module


def on_rank(rank, folder, wrong):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    mesh = init_device_mesh("cpu", (2,))
    linear = torch.nn.Linear(3, 4)
    linear.weight.requires_grad_(False)
    column = parallelize_module(linear, mesh, ColwiseParallel())
    x = torch.ones(3, 2)[:, 0]  # of one dimension and stride 2
    g = torch.ones(2)
    for times in (1, 2, 3):
        column(x).backward(g)
        seen = {
            "bias.grad": (float(times), column.bias.grad.to_local()[0].item()),
            "the caller's g": (1.0, g[0].item()),
        }
        for what, (expected, got) in seen.items():
            if rank == 0:
                print(f"after backward {times}, {what}: expected {expected}, got {got}")
            if got != expected:
                wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
