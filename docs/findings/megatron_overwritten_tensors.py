"""Megatron-core 0.16.1: reduce_from and the backward of copy_to overwrite a tensor that autograd holds elsewhere.

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
    from megatron.core import tensor_parallel as tp
    from megatron.core.transformer.moe.moe_utils import get_tokens_per_expert_and_token_count

    def reduce(x):
        return tp.reduce_from_tensor_model_parallel_region(x, group=dist.group.WORLD)

    def copy(x):
        return tp.copy_to_tensor_model_parallel_region(x, group=dist.group.WORLD)

    def residual(x):
        h = x * 1
        return h + copy(h)

    def sibling(x):
        h = x * 1
        return copy(torch.zeros(2, requires_grad=True)) + h

    def gradient(f, start):
        x = torch.full((2,), start, requires_grad=True)
        (f(x) * 1).sum().backward()
        return x.grad.tolist()

    partial = torch.ones(2)
    reduce(partial)
    routed = torch.ones(3, 2, dtype=torch.bool)  # 3 tokens, both to 2 experts
    counts = get_tokens_per_expert_and_token_count(routed, dist.group.WORLD, topk=2, with_padding_mask=True)
    seen = {
        "x after reduce_from(x)": ([1.0, 1.0], partial.tolist()),
        "gradient of reduce_from(exp(x)) at 0": ([1.0, 1.0], gradient(lambda x: reduce(x.exp()), 0.0)),
        "gradient of h + copy_to(h), on 2 ranks": ([3.0, 3.0], gradient(residual, 1.0)),
        "gradient of h in copy_to(0) + h": ([1.0, 1.0], gradient(sibling, 1.0)),
        "tokens of this rank, as the router counts them": (3.0, counts[1].item()),
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
