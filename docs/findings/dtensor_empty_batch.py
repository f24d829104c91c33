"""torch 2.13.0, DTensor: a column layer raises, or never returns, for an input with an empty batch of two dimensions.

Whatever the number of ranks, so one rank on the CPU; what has not returned after 5 seconds is ended by a signal;
exits with 1 while it is so, with 0 once it is fixed.
"""

import signal
import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module


def on_rank(rank, folder, wrong):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=1, rank=rank)
    mesh = init_device_mesh("cpu", (1,))
    column = parallelize_module(torch.nn.Linear(3, 2), mesh, ColwiseParallel())

    def give_up(*_):
        raise TimeoutError("did not return within 5 seconds")

    signal.signal(signal.SIGALRM, give_up)
    for shape in ((0, 3), (3, 0, 3), (0, 3, 3)):
        expected = torch.Size((*shape[:-1], 2))
        signal.alarm(5)
        try:
            got = column(torch.ones(shape)).shape
        except (RuntimeError, TimeoutError) as error:
            got = f"{type(error.__cause__ or error).__name__}: {str(error).splitlines()[0]}"
        signal.alarm(0)
        print(f"output for an input of shape {shape}: expected {expected}, got {got}")
        if got != expected:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=1)
    sys.exit(wrong.value)
