"""Megatron-core 0.16.1: a column layer all-reduces a gradient of its input that nobody asked for.

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
    from megatron.core import ModelParallelConfig
    from megatron.core.tensor_parallel import ColumnParallelLinear

    config = ModelParallelConfig(tensor_model_parallel_size=2, use_cpu_initialization=True)
    layer = ColumnParallelLinear(4, 6, config=config, init_method=torch.nn.init.ones_, tp_group=dist.group.WORLD)
    all_reduce, sizes = dist.all_reduce, []

    def counted(tensor, *args, **kwargs):
        sizes.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    for wanted in (True, False):
        sizes.clear()
        layer(torch.ones(5, 4, requires_grad=wanted))[0].sum().backward()
        expected = [20] if wanted else []
        if rank == 0:
            print(f"input requires_grad={wanted}, elements all-reduced: expected {expected}, got {sizes}")
        if sizes != expected:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
