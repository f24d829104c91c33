"""fairscale 0.4.13: reduce_from and the backward of copy_to hand a tensor that is not contiguous to all_reduce.

NCCL refuses it; gloo takes it, without a check, and reduces other memory than the tensor's.
Two ranks on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def strided_input(copy, reduce):
    return reduce(torch.ones(4, 2)[:, 0])


def strided_gradient(copy, reduce):
    x = torch.ones(4, requires_grad=True)
    torch.stack((copy(x), torch.zeros(4)), dim=1).backward(torch.ones(4, 2))
    return x.grad


def expanded_gradient(copy, reduce):
    x = torch.ones(10**6, requires_grad=True)
    copy(x).sum().backward()
    return x.grad[-4:]


def on_rank(rank, folder, wrong, f):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    from fairscale.nn.model_parallel import initialize_model_parallel, mappings

    initialize_model_parallel(2)
    expected = [2.0, 2.0, 2.0, 2.0]
    got = f(mappings.copy_to_model_parallel_region, mappings.reduce_from_model_parallel_region).tolist()
    if rank == 0:
        print(f"{f.__name__}: expected {expected}, got {got}", flush=True)
    if got != expected:
        wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    for f in (strided_input, strided_gradient, expanded_gradient):
        with tempfile.TemporaryDirectory() as folder:
            try:
                mp.spawn(on_rank, (folder, wrong, f), nprocs=2)
            except mp.ProcessExitedException as error:
                print(f"{f.__name__}: {error}")
                wrong.value = 1
    sys.exit(wrong.value)
