"""Megatron-core 0.16.1: reduce_from and the backward of copy_to do not reduce a tensor that is not contiguous.

Two ranks on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_rank(rank, folder, wrong):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    from megatron.core import tensor_parallel as tp

    def reduced(x):
        return tp.reduce_from_tensor_model_parallel_region(x, group=dist.group.WORLD)

    def gradient(f):
        x = torch.ones(2, 3, requires_grad=True)
        f(tp.copy_to_tensor_model_parallel_region(x, group=dist.group.WORLD)).backward()
        return x.grad

    two = [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    seen = {
        "reduce_from(ones)": (two, reduced(torch.ones(2, 3))),
        "reduce_from(ones, transposed)": (two, reduced(torch.ones(3, 2).t())),
        "gradient of (copy_to(x) * 1).sum()": (two, gradient(lambda y: (y * 1).sum())),
        "gradient of copy_to(x).sum()": (two, gradient(lambda y: y.sum())),
    }
    for what, (expected, got) in seen.items():
        if rank == 0:
            print(f"{what}: expected {expected}, got {got.tolist()}")
        if got.tolist() != expected:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
