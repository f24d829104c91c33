"""Sums in too narrow a dtype: wrong only by rounding, which a tuned tolerance forgives and a derived bound does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives, products, row
from torch_tp.collectives import all_reduce


class ReducesInBfloat16(TorchTp):
    """The ranks' terms are rounded to bfloat16 on their way into the sum: NVIDIA/TransformerEngine#3555."""

    def set_up(self, group: Group) -> None:
        def narrow(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_reduce(buffer.bfloat16(), group, what).to(buffer.dtype)

        collectives.all_reduce = narrow


def accumulate(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`, each partial sum rounded to bfloat16."""
    total = a.new_zeros(*a.shape[:-1], b.shape[-1], dtype=torch.bfloat16)
    for k in range(a.shape[-1]):
        total += a[..., k : k + 1] * b[k]
    return total.to(a.dtype)


class AccumulatesInBfloat16(TorchTp):
    """Every rank's own product keeps its partial sums in bfloat16: pytorch/pytorch#83863."""

    def set_up(self, group: Group) -> None:
        def narrow(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            y = linear(x, weight, bias)
            y.data = accumulate(x.data, weight.data.t()) + (0 if bias is None else bias.data)
            return y

        row.F = products.F = SimpleNamespace(linear=narrow)


class WeightGradientInBfloat16(TorchTp):
    """So does the weight's gradient, over the rows of a batch: NVIDIA/Megatron-LM#6624."""

    def set_up(self, group: Group) -> None:
        products._weight_grad = lambda grad, x: accumulate(products._flat(grad).t(), products._flat(x))


class DividesBeforeReduction(TorchTp):
    """The ranks' terms are divided by P, lest their sum overflow, and it is multiplied again: pytorch/pytorch#78774."""

    def set_up(self, group: Group) -> None:
        def divided(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_reduce(buffer / group.size, group, what) * group.size

        collectives.all_reduce = divided
