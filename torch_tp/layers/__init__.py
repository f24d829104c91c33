"""The layers: everything that has parameters or multiplies by them.

`column`, `row`, `fused` and `attention` have the layers, `linear` their base. `products` is their mathematics, forward
and backward. `gradients` and `shared_input` say which gradients several ranks, or several layers, sum together.

A layer is its arguments, the placements that its constructor makes of them, and the products it uses. The modules of
`torch_tp` next to this package are its foundation, ranks and values on ranks, and know nothing of layers; this package
knows nothing of `torch_tp.models`, which puts layers into models.
"""

from torch_tp.layers.attention import ParallelMultiheadAttention
from torch_tp.layers.column import ColumnParallelLinear, share_input
from torch_tp.layers.fused import MergedColumnParallelLinear, QKVParallelLinear
from torch_tp.layers.gradients import shared_gradient
from torch_tp.layers.row import RowParallelLinear

__all__ = [
    "ColumnParallelLinear",
    "MergedColumnParallelLinear",
    "ParallelMultiheadAttention",
    "QKVParallelLinear",
    "RowParallelLinear",
    "share_input",
    "shared_gradient",
]
