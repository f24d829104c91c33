"""The products of the two layers at P > 1, each with its communication in one autograd node.

Suffixes: B is all batch dimensions together, I input features, O output features; in a layer
that cuts a dimension the suffix means this rank's part of it. `w_OI`, `g_BO`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_tp import collectives
from torch_tp.autocast import without_autocast
from torch_tp.functions import copy_in, sum_over
from torch_tp.group import Group


def column_product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    """`x W_r^T + b_r` of a replicated `x`, whose gradient is summed over the group.

    Without a gradient to sum this is the plain product, without a node of ours.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.linear(x, weight, bias)
    y: Tensor = _ColumnProduct.apply(x, weight, bias, group)
    return y


def row_product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    """`sum_r x_r W_r^T + b`: the sum over the group, then the bias, once."""
    y: Tensor = _RowProduct.apply(x, weight, bias, group)
    return y


class _ColumnProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
        ctx.group = group
        _save(ctx, x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        with without_autocast(grad):
            if _differentiable():
                whole = sum_over(_input_grad(grad, weight), ctx.group) if ctx.needs_input_grad[0] else None
                replicated = None if x is None else copy_in(x, ctx.group)
                return whole, *_parameter_grads(ctx, grad, replicated), None
            if not ctx.needs_input_grad[0]:
                return None, *_parameter_grads(ctx, grad, x), None
            # The reduction runs under the parameters' products, which do not depend on it.
            finish = collectives.start_all_reduce(_input_grad(grad, weight), ctx.group, "ColumnParallelLinear backward")
            weight_grad, bias_grad = _parameter_grads(ctx, grad, x)
            return finish(), weight_grad, bias_grad, None


class _RowProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
        ctx.group = group
        _save(ctx, x, weight)
        return _sum_and_bias(F.linear(x, weight), bias, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        with without_autocast(grad):
            # What the shards give back to a replicated gradient is partial; the bias's part is not.
            local = copy_in(grad, ctx.group) if _differentiable() else grad
            input_grad = _input_grad(local, weight) if ctx.needs_input_grad[0] else None
            weight_grad = _weight_grad(local, x) if ctx.needs_input_grad[1] else None
            bias_grad = _bias_grad(grad) if ctx.needs_input_grad[2] else None
            return input_grad, weight_grad, bias_grad, None


def _sum_and_bias(partial: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    """The row's output; `partial` is ours and is overwritten."""
    total = collectives.all_reduce(partial, group, "RowParallelLinear forward")
    return total if bias is None else total.add_(bias)


def _save(ctx: Any, x: Tensor, weight: Tensor) -> None:
    """Keep what the backward will need: a frozen weight costs no memory for the input."""
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)


def _differentiable() -> bool:
    """True in a backward under create_graph=True, which compiled code refuses by itself."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _parameter_grads(ctx: Any, grad: Tensor, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    weight_grad = _weight_grad(grad, x) if ctx.needs_input_grad[1] and x is not None else None
    return weight_grad, _bias_grad(grad) if ctx.needs_input_grad[2] else None


def _input_grad(grad: Tensor, w_OI: Tensor) -> Tensor:
    product = _flat(grad).mm(w_OI)
    return product if grad.dim() == 2 else product.view(*grad.shape[:-1], w_OI.shape[1])


def _weight_grad(grad: Tensor, x: Tensor) -> Tensor:
    return _flat(grad).t().mm(_flat(x))


def _bias_grad(grad: Tensor) -> Tensor:
    return _flat(grad).sum(0)


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
