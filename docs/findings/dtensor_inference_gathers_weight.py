"""torch 2.13.0, DTensor: under inference_mode a row layer with a bias gathers its weight.

Two ranks on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module


def on_rank(rank, folder, wrong):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    mesh = init_device_mesh("cpu", (2,))
    for bias in (False, True):
        row = parallelize_module(torch.nn.Linear(1024, 512, bias=bias), mesh, RowwiseParallel())
        counts = []
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode, CommDebugMode() as seen:
                row(torch.ones(4, 512)).sum()
            counts.append({operator.__name__: count for operator, count in seen.get_comm_counts().items()})
        if rank == 0:
            print(f"bias={bias}, collectives: expected {counts[0]}, as under no_grad, got {counts[1]}")
        if counts[1] != counts[0]:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
