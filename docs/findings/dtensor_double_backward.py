"""torch 2.13.0, DTensor: gradients of gradients lack what goes through a column layer.

Two ranks on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


def on_rank(rank, folder, wrong):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    mesh = init_device_mesh("cpu", (2,))
    seen = {}
    for parallel in (False, True):
        torch.manual_seed(0)
        up, down = torch.nn.Linear(4, 6).double(), torch.nn.Linear(6, 4).double()
        x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        if parallel:
            up = parallelize_module(up, mesh, ColwiseParallel())
            down = parallelize_module(down, mesh, RowwiseParallel())
        y = x**3 + down(torch.tanh(up(x)))
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        gradient.square().sum().backward()  # a gradient penalty
        grad = up.weight.grad
        whole = grad.full_tensor() if parallel and grad is not None else grad
        seen[parallel] = {"gradient": gradient.detach(), "x.grad": x.grad, "up.weight.grad": whole}
    for what, expected in seen[False].items():
        got = seen[True][what]
        right = got is not None and torch.allclose(got, expected)
        if rank == 0:
            print(f"{what}: expected {expected[0].tolist()}, got {got if got is None else got[0].tolist()}")
        if not right:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
