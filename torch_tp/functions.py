"""The four differentiable functions that move a value between placements.

| function | value and gradient in -> out | forward | backward |
| --- | --- | --- | --- |
| `copy` | replicated / replicated -> replicated / partial | identity | all-reduce |
| `reduce` | partial / replicated -> replicated / replicated | all-reduce | identity |
| `gather` | sharded / sharded -> replicated / replicated | all-gather | own shard |
| `scatter` | replicated / replicated -> sharded / sharded | own shard | all-gather |

`copy` and `reduce` are each other's adjoint, and so are `gather` and `scatter`; each backward
is the other function, so second derivatives are right too. `gather`'s backward takes a shard and
does not sum: every rank computes the same from a replicated value, so its gradient
arrives replicated, and a sum would make it P times too large.

None of them writes to its argument, forward or backward. At P = 1 each returns its
input, without communication and without an autograd node. `copy` and `scatter` return views.

Source: the conjugate operators f and g of Megatron-LM (arXiv:1909.08053, section 3), and
`megatron/core/tensor_parallel/mappings.py` of that project.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_tp import collectives, debug
from torch_tp.group import Group, GroupLike, find_group, integer
from torch_tp.placements import Shard, own_slice


def copy(x: Tensor, group: GroupLike | None = None) -> Tensor:
    """Use a replicated value in a computation that differs from rank to rank.

    Forward: `x` itself, any shape (a view). Backward: the sum of the ranks' gradients.

    Raises:
        NoProcessGroupError: `group` is None and nothing is initialized.
    """
    where = _enter("copy", x, group, replicated=True)
    return x if where.size == 1 else copy_in(x, where)


def reduce(x: Tensor, group: GroupLike | None = None) -> Tensor:
    """The sum of the ranks' partial values, on every rank.

    Forward: a new tensor of the shape of `x`. Backward: the (replicated) gradient, copied.

    Raises:
        NoProcessGroupError: `group` is None and nothing is initialized.
    """
    where = _enter("reduce", x, group)
    return x if where.size == 1 else sum_over(x, where)


def gather(x: Tensor, dim: int = -1, group: GroupLike | None = None) -> Tensor:
    """Join the ranks' shards along `dim`, in rank order.

    Forward: `[..., n, ...]` -> `[..., P n, ...]`, new and contiguous. Backward: this rank's shard
    of the (replicated) gradient, copied.

    Raises:
        ValueError: `x` has no dimension `dim`.
        NoProcessGroupError: `group` is None and nothing is initialized.
    """
    where = _enter("gather", x, group, dim)
    dim = _dimension("gather", x, dim)
    return x if where.size == 1 else gather_along(x, dim, where)


def scatter(x: Tensor, dim: int = -1, group: GroupLike | None = None) -> Tensor:
    """This rank's shard of a replicated value, the r-th of P equal ones along `dim`.

    Forward: `[..., P n, ...]` -> `[..., n, ...]`, a view. Backward: the ranks' gradients, joined.

    Raises:
        ValueError: `x` has no dimension `dim`, or P does not divide it.
        NoProcessGroupError: `group` is None and nothing is initialized.
    """
    where = _enter("scatter", x, group, dim, replicated=True)
    dim = _dimension("scatter", x, dim)
    if x.shape[dim] % where.size:
        raise ValueError(
            f"torch_tp.scatter: dimension {dim} of an input of shape {list(x.shape)} has size {x.shape[dim]}, "
            f"which P = {where.size} does not divide; make it a multiple of {where.size}"
        )
    return x if where.size == 1 else scatter_along(x, dim, where)


def copy_in(x: Tensor, group: Group) -> Tensor:
    """`copy` for a known group of at least two ranks; no node where no gradient can flow."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x
    view: Tensor = _Copy.apply(x, group)
    return view


def sum_over(x: Tensor, group: Group) -> Tensor:
    """`reduce` for a known group of at least two ranks."""
    total: Tensor = _Reduce.apply(x, group)
    return total


def gather_along(x: Tensor, dim: int, group: Group) -> Tensor:
    """`gather` for a known group of at least two ranks; `dim` is not negative."""
    joined: Tensor = _Gather.apply(x, dim, group)
    return joined


def scatter_along(x: Tensor, dim: int, group: Group) -> Tensor:
    """`scatter` for a known group of at least two ranks; `dim` is not negative."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return own_slice(x, Shard(dim), group.size, group.rank)
    mine: Tensor = _Scatter.apply(x, dim, group)
    return mine


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_over(grad, ctx.group), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        # Always a copy: contiguous() would hand over the caller's own tensor to be overwritten.
        mine = x.clone(memory_format=torch.contiguous_format)
        return collectives.all_reduce(mine, group, "torch_tp.reduce, or the backward of torch_tp.copy")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # A copy, so that the gradient that is returned is not the caller's own tensor.
        return copy_in(grad, ctx.group).clone(), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return collectives.all_gather(x, dim, group, "torch_tp.gather, or the backward of torch_tp.scatter")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # A copy, so that a shard's gradient neither shares the unsharded one's storage nor keeps it alive.
        mine = scatter_along(grad, ctx.dim, ctx.group)
        return mine.clone(memory_format=torch.contiguous_format), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return own_slice(x, Shard(dim), group.size, group.rank)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return gather_along(grad, ctx.dim, ctx.group), None, None


def _enter(name: str, x: object, group: GroupLike | None, dim: object = None, replicated: bool = False) -> Group:
    owner = f"torch_tp.{name}"
    where = find_group(owner, group)
    if where.size > 1 and debug.checking():
        # Before anything that one rank alone could refuse, and because a disagreement about
        # requires_grad would only show as a hang in the backward.
        facts: dict[str, object] = {
            "dim": dim,
            "requires_grad": isinstance(x, Tensor) and x.requires_grad,
            "grad mode": torch.is_grad_enabled(),
        }
        if replicated and isinstance(x, Tensor):
            facts["checksum of the replicated input"] = debug.fingerprint(x)
        debug.check(owner, where, x, facts)
    require_tensor(owner, x)
    return where


def require_tensor(owner: str, x: object) -> None:
    """Refuse what is no tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: the input is a {type(x).__name__}; it must be a torch.Tensor")


def _dimension(name: str, x: Tensor, dim: int) -> int:
    owner = f"torch_tp.{name}"
    index = integer(owner, "dim", dim)
    if -x.dim() <= index < x.dim():
        return index % x.dim()
    raise ValueError(
        f"{owner}: dim = {index}, but the input of shape {list(x.shape)} has {x.dim()} dimensions; "
        + (f"give one from {-x.dim()} to {x.dim() - 1}" if x.dim() else "give it at least one")
    )
