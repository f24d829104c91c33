"""fairscale 0.4.13: gather_from and the backward of scatter_to raise for an expanded tensor.

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

    def gathered():
        return mappings.gather_from_model_parallel_region(torch.ones(1, 1).expand(2, 1)).tolist()

    def gradient():
        x = torch.ones(2, 2, requires_grad=True)
        mappings.scatter_to_model_parallel_region(x).sum().backward()
        return x.grad.tolist()

    for what, f in (("gather_from(x), x expanded", gathered), ("gradient of scatter_to(x).sum()", gradient)):
        expected = [[1.0, 1.0], [1.0, 1.0]]
        try:
            got = f()
        except RuntimeError as error:
            got = f"RuntimeError: {error}"
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
