"""Tensor-parallel linear layers for PyTorch.

Two layers, `ColumnParallelLinear` and `RowParallelLinear`, whose weight is sharded over the ranks of a process group;
the four differentiable functions they are made of, `copy`, `reduce`, `gather` and `scatter`; and a small runtime.
Names are those of Megatron-LM (arXiv:1909.08053): column-parallel shards the output features, which are the rows of the
stored `[out_features, in_features]` matrix, and row-parallel the input features.

Everything that has parameters or multiplies by them is in `torch_tp.layers`. Everything that puts layers into a model
is in `torch_tp.models`. The other modules are the foundation: ranks, and values that lie on them and move between them.
The foundation knows nothing of layers, and layers know nothing of models.

Preconditions: sizes, flags, dtypes, input shapes, `requires_grad` of input and parameters, grad mode and replicated
values are the same on all ranks of the group. Where they are not, behaviour is undefined (often a hang), except under
the environment variable `TP_DEBUG=check`, which makes every rank raise `RankMismatchError` naming who differs in what.
`TP_DEBUG=1` logs every collective to the logger `torch_tp`. The variable is read once, at the first use.

    import torch, torch_tp

    torch_tp.init_tensor_parallel()                       # under torchrun
    torch.manual_seed(0)                                  # alike on every rank: they draw shards of one weight
    up = torch_tp.ColumnParallelLinear(1024, 4096)
    down = torch_tp.RowParallelLinear(4096, 1024)
    y = down(torch.relu(up(x)))                           # x and y are replicated
"""

from torch_tp.errors import (
    NoProcessGroupError,
    RankMismatchError,
    UnprovenCallError,
    UnprovenCallWarning,
    VerificationError,
)
from torch_tp.functions import copy, gather, reduce, scatter
from torch_tp.layers.column import ColumnParallelLinear
from torch_tp.layers.fused import MergedColumnParallelLinear, QKVParallelLinear
from torch_tp.layers.row import RowParallelLinear
from torch_tp.models.parallel import parallelize
from torch_tp.models.report import Report
from torch_tp.models.wrapper import DistributedModelWrapper
from torch_tp.placements import Placement, Replicate, Shard
from torch_tp.runtime import (
    TensorParallelConfig,
    all_reduce_sum,
    broadcast_tensor,
    get_tensor_parallel_config,
    init_tensor_parallel,
    synchronize_across_ranks,
)
from torch_tp.training import clip_grad_norm_

__all__ = [
    "ColumnParallelLinear",
    "DistributedModelWrapper",
    "MergedColumnParallelLinear",
    "NoProcessGroupError",
    "Placement",
    "QKVParallelLinear",
    "RankMismatchError",
    "Replicate",
    "Report",
    "RowParallelLinear",
    "Shard",
    "TensorParallelConfig",
    "UnprovenCallError",
    "UnprovenCallWarning",
    "VerificationError",
    "all_reduce_sum",
    "broadcast_tensor",
    "clip_grad_norm_",
    "copy",
    "gather",
    "get_tensor_parallel_config",
    "init_tensor_parallel",
    "parallelize",
    "reduce",
    "scatter",
    "synchronize_across_ranks",
]
