"""fairscale 0.4.13: reduce_from and the backward of copy_to overwrite a tensor that others hold.

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
    from fairscale.nn.model_parallel import initialize_model_parallel, mappings

    initialize_model_parallel(2)
    copy, reduce = mappings.copy_to_model_parallel_region, mappings.reduce_from_model_parallel_region

    def residual(x):
        h = x * 1
        return h + copy(h)

    def sibling(x):
        h = x * 1
        return copy(torch.zeros(2, requires_grad=True)) + h

    def gradient(f):
        x = torch.ones(2, requires_grad=True)
        try:
            (f(x) * 1).sum().backward()
        except RuntimeError as error:
            return str(error).split("[")[0]
        return x.grad.tolist()

    partial = torch.ones(2)
    reduce(partial)
    seen = {
        "gradient of h + copy_to(h), on 2 ranks": ([3.0, 3.0], gradient(residual)),
        "gradient of h in copy_to(0) + h": ([1.0, 1.0], gradient(sibling)),
        "x after reduce_from(x)": ([1.0, 1.0], partial.tolist()),
        "gradient of reduce_from(x), x a leaf": ([1.0, 1.0], gradient(reduce)),
        "gradient of reduce_from(relu(x))": ([1.0, 1.0], gradient(lambda x: reduce(x.relu()))),
    }
    for what, (expected, got) in seen.items():
        if rank == 0:
            print(f"{what}: expected {expected}, got {got}")
        if got != expected:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
