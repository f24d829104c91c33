"""torch 2.13.0, DTensor: the backward of a row layer without a bias raises for an input of one dimension.

The cause is squeeze_, which leaves a DTensor its old shape.
Two ranks on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module


def on_rank(rank, folder, wrong):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    mesh = init_device_mesh("cpu", (2,))
    row = parallelize_module(torch.nn.Linear(4, 3, bias=False), mesh, RowwiseParallel())

    def gradient():
        x = torch.ones(2, requires_grad=True)
        row(x).sum().backward()
        return x.grad.shape

    def squeezed():
        return DTensor.from_local(torch.ones(1, 3), mesh, [Replicate()]).squeeze_(0).shape

    for what, f, expected in (
        ("x.grad", gradient, torch.Size([2])),
        ("DTensor[1, 3].squeeze_(0)", squeezed, torch.Size([3])),
    ):
        try:
            got = f()
        except RuntimeError as error:
            got = f"RuntimeError: {error}"
        if rank == 0:
            print(f"shape of {what}: expected {expected}, got {got}")
        if got != expected:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
