"""DeepSpeed 0.19.8: a column layer does not sum the gradient of its input where that gradient is not contiguous.

It is not where the input is the transpose of a matrix: autograd computes the gradient in the input's layout. Needs a
C++ compiler, as DeepSpeed builds its shared-memory operation at the first use.
Two ranks on the CPU; exits with 1 while it is so, with 0 once it is fixed.
"""

import sys
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_rank(rank, folder, wrong):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=600), world_size=2, rank=rank)
    from deepspeed import comm
    from deepspeed.module_inject import layers

    comm.init_distributed("gloo", verbose=False)
    layers.set_autotp_mode(training=True)
    whole = torch.nn.Linear(2, 4)
    torch.nn.init.ones_(whole.weight)
    column = layers.LinearLayer(whole, dist.group.WORLD)  # two outputs on each rank
    inputs = {
        "contiguous": torch.ones(3, 2),
        "transposed": torch.ones(2, 3).t(),
        "one image, flatten(2).transpose(1, 2)": torch.ones(1, 2, 3).transpose(1, 2),
    }
    for what, x in inputs.items():
        x.requires_grad_()
        column(x).sum().backward()
        got, expected = x.grad.flatten().tolist(), [4.0] * x.numel()
        if rank == 0:
            print(f"gradient of the input, {what}: expected {expected}, got {got}")
        if got != expected:
            wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
