"""Mistakes about state: what a call leaves behind changes another call, another layer, or this layer's later self.

Implementations for `--impl tests/mutants/state.py:<class>`; what is to be said of each is in `state.toml`.
Whatever a layer keeps it keeps on its weight, which autograd functions are given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp.layers import column, products, row
from torch_tp.layers.products import row_product

input_grad, weight_grad = products._input_grad, products._weight_grad


class _InputOnLayer(products._RowProduct):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None, group: Any) -> Tensor:
        ctx.layer = weight
        weight.last_input = x.detach()
        return products._RowProduct.forward(ctx, x, weight, bias, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x_grad, w_grad, b_grad, _ = products._RowProduct.backward(ctx, grad)
        if w_grad is not None:
            w_grad = weight_grad(grad, ctx.layer.last_input)
        return x_grad, w_grad, b_grad, None


class InputOnLayer(TorchTp):
    """The row layer keeps its last input for the backward, and not every call its own."""

    def set_up(self, group: Group) -> None:
        row.row_product = _InputOnLayer.apply


_last_input: dict[torch.Size, Tensor] = {}


class _InputByShape(products._ColumnProduct):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
        ctx.shape = x.shape
        _last_input[x.shape] = x.detach()
        return products._ColumnProduct.forward(ctx, x, weight, bias, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x_grad, w_grad, b_grad, _ = products._ColumnProduct.backward(ctx, grad)
        if w_grad is not None:
            w_grad = weight_grad(grad, _last_input[ctx.shape])
        return x_grad, w_grad, b_grad, None


class InputByShape(TorchTp):
    """All column layers keep their inputs in one dict, by shape: pytorch/pytorch#131264."""

    def set_up(self, group: Group) -> None:
        column.column_product = _InputByShape.apply


class StaleWeight(TorchTp):
    """The row layer computes with the weight that its first forward saw."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Any, bias: Tensor | None, group: Any) -> Tensor:
            if not hasattr(weight, "first"):
                weight.first = weight.detach().clone()
            # The gradient still goes to the weight.
            return row_product(x, weight + (weight.first - weight).detach(), bias, group)

        row.row_product = product


class StaleTranspose(TorchTp):
    """A contiguous transpose of the weight is made in the first backward, and used in all."""

    def set_up(self, group: Group) -> None:
        def product(grad: Tensor, weight: Any) -> Tensor:
            if not hasattr(weight, "transposed"):
                weight.transposed = weight.t().clone(memory_format=torch.contiguous_format)
            return input_grad(grad, weight.transposed.t())

        products._input_grad = product


class _IntoBuffer(products._RowProduct):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None, group: Any) -> Tensor:
        y = products._RowProduct.forward(ctx, x, weight, bias, group)
        buffer = getattr(weight, "buffer", None)
        if buffer is None or buffer.shape != y.shape:
            weight.buffer = buffer = torch.empty_like(y)
        return buffer.copy_(y).detach()


class OutputInBuffer(TorchTp):
    """The row layer returns one buffer from all calls of a size, and the next call overwrites the last output."""

    def set_up(self, group: Group) -> None:
        row.row_product = _IntoBuffer.apply


class NeverZeroed(TorchTp):
    """The row layer adds every output to those before it, in a buffer that nobody clears."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Any, bias: Tensor | None, group: Any) -> Tensor:
            y = row_product(x, weight, bias, group) + getattr(weight, "total", 0)
            weight.total = y.detach().clone()
            return y

        row.row_product = product


class _PerForward(products._RowProduct):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None, group: Any) -> Tensor:
        ctx.layer = weight
        weight.forwards = getattr(weight, "forwards", 0) + 1
        return products._RowProduct.forward(ctx, x, weight, bias, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # A forward that was checkpointed runs again in here, when what it saved is asked for.
        x_grad, w_grad, b_grad, _ = products._RowProduct.backward(ctx, grad)
        if w_grad is not None:
            w_grad = w_grad / max(ctx.layer.forwards, 1)
            ctx.layer.forwards = 0
        return x_grad, w_grad, b_grad, None


class CountsForwards(TorchTp):
    """The row layer averages its weight's gradient over the forwards since the last one, recomputed ones included."""

    def set_up(self, group: Group) -> None:
        row.row_product = _PerForward.apply
