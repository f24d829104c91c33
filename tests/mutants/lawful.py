"""Correct layers that go about it in another way, and must never be accused.

Implementations for `--impl tests/mutants/lawful.py:<class>`. Some communicate more than need be, which the contract
advises against and does not forbid.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives
from torch_tp.collectives import all_gather
from torch_tp.functions import sum_over
from torch_tp.layers import column, fused, gradients, products, row
from torch_tp.layers.products import column_product, row_product

# Newer releases of torch warn of the older name.
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def in_rank_order(terms: Tensor) -> Tensor:
    """The sum over dimension 0, added up from the first."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class SumByGather(TorchTp):
    """Every rank gathers all terms and adds them up in the order of the ranks."""

    strict = False

    def set_up(self, group: Group) -> None:
        def gathered(buffer: Tensor, group: Any, what: str) -> Callable[[], Tensor]:
            total = in_rank_order(all_gather(buffer.unsqueeze(0), 0, group, what))
            return lambda: total

        collectives.start_all_reduce = gathered


class SumByScatter(TorchTp):
    """Every rank adds up its piece of the flattened terms, and gathers the other pieces."""

    strict = False

    def set_up(self, group: Group) -> None:
        def scattered(buffer: Tensor, group: Any, what: str) -> Callable[[], Tensor]:
            if not buffer.numel():
                return lambda: buffer
            flat = F.pad(buffer.reshape(-1), (0, -buffer.numel() % group.size))
            piece = flat.new_empty(flat.numel() // group.size)
            reduce_scatter(piece, flat, group=group.require(what, "a reduce-scatter is needed"))
            total = all_gather(piece, 0, group, what)[: buffer.numel()].view(buffer.shape)
            return lambda: total

        collectives.start_all_reduce = scattered


class ProductsByBlocks(TorchTp):
    """Products are added up in float64, three input features at a time and from the last, then rounded once."""

    strict = False

    def set_up(self, group: Group) -> None:
        def by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            blocks = list(zip(x.double().split(3, -1), weight.double().split(3, -1), strict=True))
            total = sum(a @ b.t() for a, b in blocks[::-1])
            return (total if bias is None else total + bias.double()).to(x.dtype)

        products.F = SimpleNamespace(linear=by_blocks)


class BiasInFirstTerm(TorchTp):
    """Rank 0 adds the bias to its term, and every rank gives it the whole gradient."""

    strict = False

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            if bias is None:
                return row_product(x, weight, None, group)
            total = sum_over(F.linear(x, weight, bias.detach() if group.rank == 0 else None), group)
            return total + (bias - bias.detach())  # zero, with the bias's gradient

        row.row_product = product


class _Contiguous(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone(memory_format=torch.contiguous_format)


class ContiguousFirst(TorchTp):
    """Inputs, outputs and upstream gradients are made contiguous before anything is done with them."""

    strict = False

    def set_up(self, group: Group) -> None:
        def around(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda x, *others: _Contiguous.apply(product(_Contiguous.apply(x), *others))

        column.column_product, row.row_product = around(column_product), around(row_product)


class _SumGathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return in_rank_order(all_gather(grad.unsqueeze(0), 0, ctx.group, "ColumnParallelLinear backward")), None


class InputGradientByGather(TorchTp):
    """The column layer gathers the terms of its input's gradient and adds them up on every rank."""

    strict = False

    def set_up(self, group: Group) -> None:
        column.column_product = lambda x, weight, bias, group: F.linear(_SumGathered.apply(x, group), weight, bias)


class CopiesSummedByGather(TorchTp):
    """Ranks that hold the same key head gather its gradients and add them up in the order of the ranks."""

    strict = False

    def set_up(self, group: Group) -> None:
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            own, shared = grad.split(ctx.rule.widths)
            total = in_rank_order(all_gather(shared.unsqueeze(0), 0, ctx.rule.groups[1], "QKVParallelLinear backward"))
            return torch.cat([own, total]), None

        gradients._Shared.backward = staticmethod(backward)


class CopiesSummedByHead(TorchTp):
    """Every rank puts its key and value rows in the place of their head, and the whole group adds all heads up."""

    strict = False

    def set_up(self, group: Group) -> None:
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            whole, copies = ctx.rule.groups[1]
            own, shared = grad.split(ctx.rule.widths)
            heads = shared.new_zeros((whole.size // copies, *shared.shape))
            heads[whole.rank // copies] = shared
            return torch.cat([own, sum_over(heads, whole)[whole.rank // copies]]), None

        gradients.neighbours = lambda group, size: WithCopies(group, size)
        gradients._Shared.backward = staticmethod(backward)


class WithCopies(tuple[Any, int]):
    """A group and how many neighbours in it hold the same, in place of the group of these."""

    def __new__(cls, group: Any, size: int) -> WithCopies:
        return super().__new__(cls, (group, size))

    def require(self, owner: str, why: str) -> Any:
        return self[0].require(owner, why)


class PartsOneByOne(TorchTp):
    """Each part of a merged or QKV layer has a product of its own, with a reduction of its own in the backward."""

    strict = False

    def set_up(self, group: Group) -> None:
        def one_by_one(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            sizes = layer.output_sizes_per_rank
            biases = [None] * len(sizes) if bias is None else bias.split(sizes)
            products = [column_product(x, *part, group) for part in zip(weight.split(sizes), biases, strict=True)]
            return torch.cat(products, dim=-1)

        for cls in (fused.MergedColumnParallelLinear, fused.QKVParallelLinear):
            cls._parallel = _with_product(column.ColumnParallelLinear._parallel, one_by_one)


def _with_product(parallel: Callable[..., Tensor], product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer's computation with another product."""

    def computed(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
        column.column_product = lambda *args: product(layer, *args)
        try:
            return parallel(layer, x, weight, bias, group)
        finally:
            column.column_product = column_product

    return computed
