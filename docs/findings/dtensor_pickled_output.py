"""torch 2.13.0, DTensor: what is pickled of a row layer's output may not have been reduced.

Two ranks on the CPU, of which the second is late, so that the first saves before the sum is there;
exits with 1 while it is so, with 0 once it is fixed.
"""

import io
import sys
import tempfile
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module


def on_rank(rank, folder, wrong):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    mesh = init_device_mesh("cpu", (2,))
    linear = torch.nn.Linear(4, 3)
    torch.nn.init.ones_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    row = parallelize_module(linear, mesh, RowwiseParallel())
    with torch.no_grad():
        row(torch.ones(1, 2)).sum()  # imports what the first call imports
        time.sleep(rank)
        y = row(torch.ones(1, 2))
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    expected, got = [[4.0, 4.0, 4.0]], torch.load(file, weights_only=False).tolist()
    later = y.tolist()
    if rank == 0:
        print(f"saved output of type {type(y).__name__}: expected {expected}, got {got}; after that it is {later}")
    if got != expected:
        wrong.value = 1
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
