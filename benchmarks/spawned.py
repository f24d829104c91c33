"""One example in the usual way of distributed tests: processes spawned for it alone."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory


def one_example(P: int) -> None:
    """Spawn P processes, join them over gloo, run one column-parallel forward and backward, end them."""
    import torch.multiprocessing

    with TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (P, str(Path(folder) / "store")), nprocs=P)


def _rank(rank: int, P: int, store: str) -> None:
    from conformance.ranks import host

    host.run_as_batch()
    os.environ["GLOO_SOCKET_IFNAME"] = host.loopback()
    import torch
    import torch.distributed as dist

    import torch_tp

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=P)
    layer = torch_tp.ColumnParallelLinear(4, 2 * P)
    x = torch.ones(3, 4, requires_grad=True)
    layer(x).backward(torch.ones(3, 2))
    dist.destroy_process_group()
