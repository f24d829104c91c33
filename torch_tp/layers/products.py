"""The mathematics of the two layers, forward and backward, each with its communication in one autograd node.

Suffixes name the dimensions, and `g` stands before the gradient of a tensor: N is all batch dimensions together, I the
input features and O the output features. In a column-parallel layer O means this rank's shard, in a row-parallel layer
I does.

| | formula on a rank | column-parallel, all-reduced | row-parallel, all-reduced |
| --- | --- | --- | --- |
| forward | `y_NO = x_NI w_OI^T + b_O` | | `x_NI w_OI^T`, before the bias |
| gradient of the input | `gx_NI = gy_NO w_OI` | `gx_NI` | |
| gradient of the weight | `gw_OI = gy_NO^T x_NI` | | |
| gradient of the bias | `gb_O = sum_N gy_NO` | | |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_tp import collectives
from torch_tp.autocast import without_autocast
from torch_tp.functions import copy_in, sum_over
from torch_tp.group import Group


def column_product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group | None) -> Tensor:
    """`y_NO` of a replicated `x`, whose gradient is all-reduced over the group.

    Without a group the gradient stays partial, for a caller who reduces it. An input that needs no gradient gets the
    plain product, without an autograd node of ours.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.linear(x, weight, bias)
    y: Tensor = _ColumnProduct.apply(x, weight, bias, group)
    return y


def row_product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    """`y_NO` of a sharded `x`: partial products are all-reduced over the group, then the bias is added once."""
    y: Tensor = _RowProduct.apply(x, weight, bias, group)
    return y


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None]


class _ColumnProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, w_OI: Tensor, b_O: Tensor | None, group: Group | None) -> Tensor:
        ctx.group = group
        _save(ctx, x_NI, w_OI)
        return F.linear(x_NI, w_OI, b_O)

    @staticmethod
    def backward(ctx: Any, gy_NO: Tensor) -> Gradients:
        x_NI, w_OI = ctx.saved_tensors
        with without_autocast(gy_NO):
            if x_NI is not None and ctx.group is not None and _differentiable():
                x_NI = copy_in(x_NI, ctx.group)  # the derivative of gw_OI by the input is partial, as gx_NI is
            # The reduction runs under the parameters' products, which do not depend on it.
            finish = _start_sum(_input_grad(gy_NO, w_OI) if ctx.needs_input_grad[0] else None, ctx.group)
            gw_OI = _weight_grad(gy_NO, x_NI) if ctx.needs_input_grad[1] else None
            gb_O = _bias_grad(gy_NO) if ctx.needs_input_grad[2] else None
            return finish(), gw_OI, gb_O, None


class _RowProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, w_OI: Tensor, b_O: Tensor | None, group: Group) -> Tensor:
        ctx.group = group
        _save(ctx, x_NI, w_OI)
        # The partial product is a new tensor, which the all-reduce and the bias may overwrite.
        y_NO = collectives.all_reduce(F.linear(x_NI, w_OI), group, "RowParallelLinear forward")
        if b_O is None:
            return y_NO
        # What is traced with gradients may not be written into: it is a view of what was waited for.
        return y_NO + b_O if torch.compiler.is_compiling() else y_NO.add_(b_O)

    @staticmethod
    def backward(ctx: Any, gy_NO: Tensor) -> Gradients:
        x_NI, w_OI = ctx.saved_tensors
        with without_autocast(gy_NO):
            # Through the sharded products a replicated gradient gets a partial derivative, through the bias not.
            local = copy_in(gy_NO, ctx.group) if _differentiable() else gy_NO
            gx_NI = _input_grad(local, w_OI) if ctx.needs_input_grad[0] else None
            gw_OI = _weight_grad(local, x_NI) if ctx.needs_input_grad[1] else None
            gb_O = _bias_grad(gy_NO) if ctx.needs_input_grad[2] else None
            return gx_NI, gw_OI, gb_O, None


def _save(ctx: Any, x_NI: Tensor, w_OI: Tensor) -> None:
    """Save what the backward will need: a frozen weight costs no memory for the input."""
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x_NI if needs_weight else None, w_OI if needs_x else None)


def _differentiable() -> bool:
    """True in a backward under create_graph=True, which compiled code refuses by itself."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _start_sum(partial: Tensor | None, group: Group | None) -> Callable[[], Tensor | None]:
    """Start the all-reduce of an input's gradient, where there is one to reduce; the result waits for it."""
    if partial is None or group is None:
        return lambda: partial
    if _differentiable():
        total = sum_over(partial, group)
        return lambda: total
    return collectives.start_all_reduce(partial, group, "ColumnParallelLinear backward")


def _input_grad(gy_NO: Tensor, w_OI: Tensor) -> Tensor:
    gx_NI = _flat(gy_NO).mm(w_OI)
    return gx_NI if gy_NO.dim() == 2 else gx_NI.view(*gy_NO.shape[:-1], w_OI.shape[1])


def _weight_grad(gy_NO: Tensor, x_NI: Tensor) -> Tensor:
    return _flat(gy_NO).t().mm(_flat(x_NI))


def _bias_grad(gy_NO: Tensor) -> Tensor:
    return _flat(gy_NO).sum(0)


def _flat(x: Tensor) -> Tensor:
    """All batch dimensions as one: `[..., features]` to `[N, features]`."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
