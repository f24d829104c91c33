"""A user's own layers and their adapter, as the suite's documentation describes it; and adapters that are none."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Function
from torch.nn.functional import linear

from conformance.adapters.pytorch import Layer, TorchAdapter


class Copy(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return Sum.apply(grad, ctx.group), None


class Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad, None


class MyLinear(nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.group = group


class MyColumn(MyLinear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(Copy.apply(x, self.group), self.weight, self.bias)


class MyRow(MyLinear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = Sum.apply(linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Mine(TorchAdapter):
    """About as little as an adapter can be."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> nn.Module:
        def mine(whole: torch.Tensor, dim: int) -> torch.Tensor:
            return whole.chunk(layer.size, dim)[layer.rank]

        assert layer.weight is not None
        if layer.kind == "row":
            return MyRow(mine(layer.weight, 1), layer.bias, group)
        return MyColumn(mine(layer.weight, 0), None if layer.bias is None else mine(layer.bias, 0), group)


class WithoutMethods:
    """No adapter: it can be made, and has nothing that one needs."""


class NotMade:
    """No adapter: making it fails."""

    def __init__(self) -> None:
        raise OSError("the checkpoint is not there")


class Misspelt(Mine):
    """Names layers that there are not."""

    layers = ("collumn", "row")


class DeclinesAll(Mine):
    """Has nothing of what may be asked for."""

    def unsupported(self, case: Any) -> str:
        return "is not written yet"
