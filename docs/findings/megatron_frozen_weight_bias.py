"""Megatron-core 0.16.1: a column layer with a frozen weight gives its trained bias no gradient.

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
    for frozen in (False, True):
        layer = ColumnParallelLinear(
            4, 6, config=config, init_method=torch.nn.init.ones_, bias=True, tp_group=dist.group.WORLD
        )
        layer.weight.requires_grad_(not frozen)
        output, _ = layer(torch.ones(5, 4, requires_grad=True))
        output.sum().backward()
        expected, got = [5.0, 5.0, 5.0], layer.bias.grad
        got = None if got is None else got.tolist()
        if rank == 0:
            print(f"weight {'frozen' if frozen else 'trained'}, gradient of the bias: expected {expected}, got {got}")
        if got != expected:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
