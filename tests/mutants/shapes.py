"""Mistakes about shapes and strides: what holds for a contiguous matrix that is not empty is taken to hold for all.

Implementations for `--impl tests/mutants/shapes.py:<class>`; what is to be said of each is in `shapes.toml`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp import checks, collectives, functions
from torch_tp.collectives import all_gather, all_reduce
from torch_tp.layers import column, products
from torch_tp.layers.products import column_product

check_input = checks.check_input


class FlatIsView(TorchTp):
    """The backward views its gradient as a matrix, which not every stride allows: NVIDIA/apex#1573."""

    def set_up(self, group: Group) -> None:
        products._flat = lambda x: x.view(-1, x.shape[-1])


class TwoOrThreeDimensions(TorchTp):
    """The layers take (batch, features) and (sequence, batch, features), and nothing else."""

    def set_up(self, group: Group) -> None:
        def check(layer: torch.nn.Module, x: Any, *arguments: Any) -> None:
            check_input(layer, x, *arguments)
            if x.dim() not in (2, 3):
                owner = type(layer).__name__
                raise ValueError(f"{owner}: the input has {x.dim()} dimensions; it must have two or three")

        checks.check_input = check


class BatchFlattened(TorchTp):
    """The column layer returns a matrix, whatever the batch dimensions of its input."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return column_product(x.reshape(-1, x.shape[-1]), weight, bias, group)

        column.column_product = product


class EmptyBatchDetached(TorchTp):
    """For an empty batch the column layer returns an empty tensor that depends on nothing."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            empty = x.new_empty(*x.shape[:-1], weight.shape[0]) if x.numel() == 0 else None
            return column_product(x, weight, bias, group) if empty is None else empty

        column.column_product = product


class EmptyBatchWithoutBias(TorchTp):
    """For an empty batch the column layer leaves its bias out, which then gets no gradient: pytorch/pytorch#117728."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return column_product(x, weight, bias if x.numel() else None, group)

        column.column_product = product


class TemporaryReduced(TorchTp):
    """What is reduced is a contiguous copy, what is returned is the original: NVIDIA/Megatron-LM#5337."""

    def set_up(self, group: Group) -> None:
        def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
            ctx.group = group
            mine = copy.deepcopy(x.detach())  # which keeps the strides
            all_reduce(mine.contiguous(), group, "torch_tp.reduce")
            return mine

        functions._Reduce.forward = staticmethod(forward)


def in_storage_order(x: Tensor) -> Tensor:
    """The elements as they lie in memory under the shape of `x`, as code sees them that takes a pointer and a size."""
    elements = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    if x.numel() > elements:
        return x.contiguous()
    return x.detach().as_strided(x.shape, torch.empty(x.shape, device="meta").stride())


class GatherInStorageOrder(TorchTp):
    """The all-gather sends what lies behind a pointer, strides or not: pytorch/pytorch#159548."""

    def set_up(self, group: Group) -> None:
        def of_memory(local: Tensor, dim: int, group: Any, what: str) -> Tensor:
            return all_gather(in_storage_order(local), dim, group, what)

        collectives.all_gather = of_memory


class UpstreamInStorageOrder(TorchTp):
    """A kernel for the backward reads gradient and input as they lie in memory."""

    def set_up(self, group: Group) -> None:
        products._flat = lambda x: in_storage_order(x).reshape(-1, x.shape[-1])
