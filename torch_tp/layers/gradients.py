"""The rule for gradients of a parameter some of whose shards lie on several ranks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from torch_tp.functions import sum_over
from torch_tp.group import Group, neighbours
from torch_tp.placements import Shard


def shared_gradient(parameter: Tensor, placement: Shard, group: Group) -> Tensor:
    """A parameter as it is used in a product, so that equal shards of it get equal gradients.

    Forward: the parameter (a view). Backward: the gradient of each shard is all-reduced over the ranks that have
    it. Every rank of the group must call this, because it makes process groups at first use.
    """
    return SharedGradient.of(placement, group)(parameter)


@dataclass(frozen=True)
class SharedGradient:
    """`shared_gradient` with the process groups made.

    The parameter is split along `dim`: a piece of `widths[i]` elements lies on the ranks of `groups[i]` too, or on no
    other rank if that is None.
    """

    dim: int
    widths: tuple[int, ...]
    groups: tuple[Group | None, ...]

    @classmethod
    def of(cls, placement: Shard, group: Group) -> SharedGradient:
        """The rule of one placement: neighbouring parts with equally many copies are one piece, and one all-reduce."""
        widths = placement.widths(sum(placement.sizes), group.size)
        runs = groupby(zip(placement.copies, widths, strict=True), key=lambda part: part[0])
        pieces = [(neighbours(group, n) if n > 1 else None, sum(width for _, width in run)) for n, run in runs]
        return cls(placement.dim, tuple(width for _, width in pieces), tuple(ranks for ranks, _ in pieces))

    def require(self, owner: str, why: str) -> None:
        """Refuse a parameter whose gradient could not be reduced; see `Group.require`."""
        for group in self.groups:
            if group is not None:
                group.require(owner, why)

    def __call__(self, parameter: Tensor) -> Tensor:
        """The parameter as it is used in a product."""
        used: Tensor = _Shared.apply(parameter, self)
        return used


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, rule: SharedGradient) -> Tensor:
        ctx.rule = rule
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        dim, groups = ctx.rule.dim, ctx.rule.groups
        pieces = zip(grad.split(ctx.rule.widths, dim), groups, strict=True)
        return torch.cat([piece if group is None else sum_over(piece, group) for piece, group in pieces], dim), None
