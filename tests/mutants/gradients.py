"""Mistakes of backwards: gradients summed too often or not at all, scaled, missing, or not added to those before.

Implementations for `--impl tests/mutants/gradients.py:<class>`; what is to be said of each is in `gradients.toml`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives, functions
from torch_tp.collectives import all_reduce, start_all_reduce
from torch_tp.functions import copy_in, gather_along, sum_over
from torch_tp.layers import column, products, row
from torch_tp.layers.products import column_product, row_product

weight_grad, bias_grad = products._weight_grad, products._bias_grad


class InputGradientNotReduced(TorchTp):
    """The column layer leaves the ranks' terms of the input's gradient as they are: pytorch/torchtitan#1805."""

    def set_up(self, group: Group) -> None:
        column.column_product = lambda x, weight, bias, group: F.linear(x, weight, bias)


class PairInputGradientNotReduced(InputGradientNotReduced):
    """The same in a pair, whose row layer has nothing to do with it."""


class InputGradientReducedTwice(TorchTp):
    """The column layer sums the input's gradient, and so does a hook: deepspeedai/DeepSpeed#8204."""

    def set_up(self, group: Group) -> None:
        def twice(buffer: Tensor, group: Any, what: str) -> Callable[[], Tensor]:
            return start_all_reduce(start_all_reduce(buffer, group, what)(), group, what)

        collectives.start_all_reduce = twice


class InputGradientAveraged(TorchTp):
    """The column layer averages the ranks' terms of the input's gradient: horovod/horovod#2654."""

    def set_up(self, group: Group) -> None:
        def average(buffer: Tensor, group: Any, what: str) -> Callable[[], Tensor]:
            finish = start_all_reduce(buffer, group, what)
            return lambda: finish() / group.size

        collectives.start_all_reduce = average


class _SumsUpstream(products._RowProduct):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        mine = grad.clone(memory_format=torch.contiguous_format)
        return products._RowProduct.backward(ctx, all_reduce(mine, ctx.group, "RowParallelLinear backward"))


class RowUpstreamReduced(TorchTp):
    """The backward of the row layer's all-reduce is another all-reduce: pytorch/pytorch#58005."""

    def set_up(self, group: Group) -> None:
        row.row_product = _SumsUpstream.apply


class ReduceBackwardDivides(TorchTp):
    """The backward of reduce shares its gradient out among the ranks."""

    def set_up(self, group: Group) -> None:
        functions._Reduce.backward = staticmethod(lambda ctx, grad: (grad / ctx.group.size, None))


class CopyBackwardMissing(TorchTp):
    """The gradient of copy is taken for a replicated one, and its terms are never summed: pytorch/torchtitan#3412."""

    def set_up(self, group: Group) -> None:
        functions._Copy.backward = staticmethod(lambda ctx, grad: (grad.clone(), None))


class _SumsBeforeSlice(functions._Gather):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return functions._Gather.backward(ctx, sum_over(grad, ctx.group))


class GatherBackwardSums(TorchTp):
    """The gradient of a gathered value, equal on all ranks, is summed before it is cut: pytorch/pytorch#120386."""

    def set_up(self, group: Group) -> None:
        functions.gather_along = _SumsBeforeSlice.apply


class NoGradientThroughGather(TorchTp):
    """The all-gather stands outside autograd, and the own shard gets no gradient: modelscope/ms-swift#9947."""

    def set_up(self, group: Group) -> None:
        functions.gather_along = lambda x, dim, group: gather_along(x.detach(), dim, group)


class WeightGradientSummed(TorchTp):
    """The column layer sums its weight's gradient over ranks that hold different rows."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return column_product(x, copy_in(weight, group), bias, group)

        column.column_product = product


class _Averages(functions._Copy):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_over(grad, ctx.group) / ctx.group.size, None


class WeightGradientAveraged(TorchTp):
    """A data-parallel wrapper averages the column layer's weight gradients, as if the ranks were replicas."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return column_product(x, _Averages.apply(weight, group), bias, group)

        column.column_product = product


class WeightGradientTwice(TorchTp):
    """The weight's gradient is counted by the product and by a hook on it."""

    def set_up(self, group: Group) -> None:
        products._weight_grad = lambda grad, x: 2 * weight_grad(grad, x)


class BiasGradientZero(TorchTp):
    """The buffer for the bias's gradient is allocated and never written."""

    def set_up(self, group: Group) -> None:
        products._bias_grad = lambda grad: torch.zeros_like(bias_grad(grad))


class BiasGradientByRank(TorchTp):
    """Odd ranks sum the bias's gradient in float64, and replicas drift apart: PaddlePaddle/Paddle#50676."""

    def set_up(self, group: Group) -> None:
        odd = dist.get_rank() % 2 == 1
        products._bias_grad = lambda grad: bias_grad(grad.double()).to(grad.dtype) if odd else bias_grad(grad)


def hooked(hook: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A row product whose weight has a hook on its gradient, put there by the first forward."""

    def product(x: Tensor, weight: Any, bias: Tensor | None, group: Any) -> Tensor:
        if weight.requires_grad and not hasattr(weight, "hooked"):
            weight.hooked = weight.register_hook(lambda grad: hook(weight, grad))
        return row_product(x, weight, bias, group)

    return product


class AccumulationLost(TorchTp):
    """Once there is a gradient of the weight, no other is added to it: pytorch/torchtitan#3412."""

    def set_up(self, group: Group) -> None:
        row.row_product = hooked(lambda weight, grad: grad if weight.grad is None else torch.zeros_like(grad))


class AccumulationOverwritten(TorchTp):
    """Every backward puts its weight gradient in the place of what was there."""

    def set_up(self, group: Group) -> None:
        def overwrite(weight: Any, grad: Tensor) -> Tensor:
            weight.grad = None
            return grad

        row.row_product = hooked(overwrite)


class AccumulatedTwice(TorchTp):
    """The layer adds up its weight gradients in a buffer of its own, and autograd adds up the buffer."""

    def set_up(self, group: Group) -> None:
        def running(weight: Any, grad: Tensor) -> Tensor:
            weight.running = grad + getattr(weight, "running", 0)
            return weight.running.clone()

        row.row_product = hooked(running)


class _FreesInput(products._RowProduct):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
        ctx.kept = x.clone()
        return products._RowProduct.forward(ctx, x, weight, bias, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x_grad, w_grad, b_grad, _ = products._RowProduct.backward(ctx, grad)
        if w_grad is not None:
            w_grad = weight_grad(grad, ctx.kept)
            ctx.kept.zero_()
        return x_grad, w_grad, b_grad, None


class SavedInputFreed(TorchTp):
    """The first backward clears the input that it kept, and a second through the same graph finds zeros."""

    def set_up(self, group: Group) -> None:
        row.row_product = _FreesInput.apply
