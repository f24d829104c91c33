"""Sums in too narrow a dtype: wrong only by rounding, which a tuned tolerance forgives and a derived bound does not.

Implementations for `--impl tests/mutants/precision.py:<class>`; what is to be said of each is in `precision.toml`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives, functions
from torch_tp.collectives import all_reduce
from torch_tp.functions import sum_over
from torch_tp.layers import products


class ReducesInBfloat16(TorchTp):
    """The ranks' terms are rounded to bfloat16 on their way into the sum: NVIDIA/TransformerEngine#3555."""

    def set_up(self, group: Group) -> None:
        def narrow(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_reduce(buffer.bfloat16(), group, what).to(buffer.dtype)

        collectives.all_reduce = narrow


class CopyReducesInBfloat16(TorchTp):
    """copy sums its gradients in bfloat16."""

    def set_up(self, group: Group) -> None:
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return sum_over(grad.bfloat16(), ctx.group).to(grad.dtype), None

        functions._Copy.backward = staticmethod(backward)


class DividesBeforeReduction(TorchTp):
    """The terms are divided by P against overflow, and the sum multiplied again: the smallest lose their last bits."""

    def set_up(self, group: Group) -> None:
        def shrunk(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_reduce(buffer / group.size, group, what) * group.size

        collectives.all_reduce = shrunk


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

        products.F = SimpleNamespace(linear=narrow)


class Float64InFloat32(TorchTp):
    """Products of float64 tensors are computed in float32."""

    def set_up(self, group: Group) -> None:
        def narrow(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            y = linear(x, weight, bias)
            if x.dtype == torch.float64:
                y.data = linear(
                    x.data.float(), weight.data.float(), None if bias is None else bias.data.float()
                ).double()
            return y

        products.F = SimpleNamespace(linear=narrow)


class WeightGradientInBfloat16(TorchTp):
    """The weight's gradient adds up the rows of a batch in bfloat16: NVIDIA/Megatron-LM#6624."""

    def set_up(self, group: Group) -> None:
        products._weight_grad = lambda grad, x: accumulate(products._flat(grad).t(), products._flat(x))


class BiasGradientInBfloat16(TorchTp):
    """So does the bias's gradient."""

    def set_up(self, group: Group) -> None:
        def narrow(grad: Tensor) -> Tensor:
            rows = products._flat(grad)
            return accumulate(rows.new_ones(len(rows)), rows)

        products._bias_grad = narrow
