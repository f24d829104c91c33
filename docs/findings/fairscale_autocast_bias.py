"""fairscale 0.4.13: under autocast a row layer with a bias returns float32.

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
    from fairscale.nn.model_parallel import RowParallelLinear, initialize_model_parallel

    initialize_model_parallel(2)
    for bias in (False, True):
        row, whole = RowParallelLinear(4, 2, bias=bias, input_is_parallel=True), torch.nn.Linear(4, 2, bias=bias)
        with torch.autocast("cpu", torch.bfloat16):
            expected, got = whole(torch.ones(3, 4)).dtype, row(torch.ones(3, 2)).dtype
        if rank == 0:
            print(f"bias={bias}, dtype of the output: expected {expected}, got {got}")
        if got != expected:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
