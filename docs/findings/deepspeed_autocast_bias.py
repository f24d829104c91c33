"""DeepSpeed 0.19.8: under autocast a layer with a bias returns float32.

Needs a C++ compiler, as DeepSpeed builds its shared-memory operation at the first use.
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
    for cls, features in ((layers.LinearLayer, 4), (layers.LinearAllreduce, 2)):
        for bias in (False, True):
            whole = torch.nn.Linear(4, 2, bias=bias)
            with torch.autocast("cpu", torch.bfloat16):
                expected = whole(torch.ones(3, 4)).dtype
                got = cls(whole, dist.group.WORLD)(torch.ones(3, features)).dtype
            if rank == 0:
                print(f"{cls.__name__}, bias={bias}, dtype of the output: expected {expected}, got {got}")
            if got != expected:
                wrong.value = 1
    dist.destroy_process_group()


if __name__ == "__main__":
    wrong = mp.get_context("spawn").Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (folder, wrong), nprocs=2)
    sys.exit(wrong.value)
