"""nanotron 0.2: with async_communication the column layer's backward raises where the plain one's does not.

Under autocast, and for an input of three dimensions whose memory is not in their order.
One rank on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import os
import sys
import tempfile
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist


def gradient(async_communication, x, context):
    from nanotron.parallel.tensor_parallel.enum import TensorParallelLinearMode
    from nanotron.parallel.tensor_parallel.nn import TensorParallelColumnLinear

    mode = TensorParallelLinearMode.ALL_REDUCE
    layer = TensorParallelColumnLinear(
        4, 6, dist.group.WORLD, mode, bias=False, async_communication=async_communication
    )
    torch.nn.init.ones_(layer.weight)
    with context:
        y = layer(x)
    try:
        y.backward(torch.ones_like(y))
    except RuntimeError as error:
        return " ".join(str(error).split())
    return layer.weight.grad.tolist()


if __name__ == "__main__":
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    cases = {
        "autocast": (torch.ones(3, 4), torch.autocast("cpu", torch.bfloat16)),
        "batch and sequence transposed": (torch.ones(3, 2, 4).transpose(0, 1), nullcontext()),
    }
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=1, rank=0)
        for name, (x, context) in cases.items():
            expected, got = (gradient(overlap, x, context) for overlap in (False, True))
            print(f"{name}, the weight's gradient: expected {expected[0]}, got {got[0] if got == expected else got}")
            wrong |= got != expected
        dist.destroy_process_group()
    sys.exit(wrong)
