"""Two mistakes at once, each of which must be reported as a failure of its own.

Implementations for `--impl tests/mutants/two_bugs.py:<class>`; what is to be said of each is in `two_bugs.toml`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives, functions
from torch_tp.collectives import all_gather, all_reduce, start_all_reduce
from torch_tp.functions import sum_over
from torch_tp.layers import linear, products, row
from torch_tp.placements import Shard

cut, weight_grad = linear.ShardedLinear._own_shard, products._weight_grad


class BiasAndInputGradient(TorchTp):
    """The row layer adds its bias before the sum, and makes the input's gradient P times too large."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            scaled = x + (group.size - 1) * (x - x.detach())  # equal to x, with P times its gradient
            return sum_over(F.linear(scaled, weight, bias), group)

        row.row_product = product


class GatherAndWeightGradient(TorchTp):
    """Slices are joined from the last rank to the first, and the weight's gradient is zero."""

    def set_up(self, group: Group) -> None:
        def backwards(local: Tensor, dim: int, group: Any, what: str) -> Tensor:
            return torch.cat(all_gather(local, dim, group, what).chunk(group.size, dim)[::-1], dim)

        collectives.all_gather = backwards
        products._weight_grad = lambda grad, x: torch.zeros_like(weight_grad(grad, x))


class InputAndGradient(TorchTp):
    """reduce sums in its input, and its backward shares the gradient out among the ranks."""

    def set_up(self, group: Group) -> None:
        def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
            ctx.group = group
            return all_reduce(x.contiguous(), group, "torch_tp.reduce").clone()

        functions._Reduce.forward = staticmethod(forward)
        functions._Reduce.backward = staticmethod(lambda ctx, grad: (grad / ctx.group.size, None))


class ShardAndInputGradient(TorchTp):
    """Column shards of two and more rows begin one row too late, and the input's gradient is summed twice."""

    def set_up(self, group: Group) -> None:
        def late(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            size = whole.shape[0] // layer.world_size
            if whole.dim() == 2 and placement == Shard(0) and size > 1:
                return whole.narrow(0, min(layer.rank * size + 1, whole.shape[0] - size), size)
            return cut(layer, whole, placement)

        def twice(buffer: Tensor, group: Any, what: str) -> Callable[[], Tensor]:
            return start_all_reduce(start_all_reduce(buffer, group, what)(), group, what)

        linear.ShardedLinear._own_shard, collectives.start_all_reduce = late, twice
