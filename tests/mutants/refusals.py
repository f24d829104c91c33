"""Mistakes about bad arguments: taken without a word, refused by some, too late, or in a way that helps nobody.

Implementations for `--impl tests/mutants/refusals.py:<class>`; what is to be said of each is in `refusals.toml`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer
from conformance.adapters.simulated import Simulated
from conformance.adapters.torch_tp import TorchTp
from spec import Array, Case, Observation, Step
from spec.numerics import encode
from torch_tp import checks
from torch_tp.collectives import all_gather
from torch_tp.functions import scatter_along
from torch_tp.group import attached_group
from torch_tp.layers import column, linear
from torch_tp.placements import Shard

check_divisible, enter = linear.ShardedLinear._check_divisible, linear.ShardedLinear._enter
forward, refuse = column.ColumnParallelLinear.forward, checks.refuse


class RemainderDropped(TorchTp):
    """Sizes that P does not divide are rounded down, and the last features lost: huggingface/transformers#37051."""

    def set_up(self, group: Group) -> None:
        checks.divisibility = lambda name, size, world_size: ""


class LastShardShort(TorchTp):
    """The column layer's last ranks get fewer rows than the first: huggingface/text-generation-inference#1463."""

    def set_up(self, group: Group) -> None:
        def divisible(layer: Any, name: str, size: int) -> None:
            # Where slices are joined afterwards unequal ones would make the ranks wait for each other.
            if getattr(layer, "gather_output", True):
                check_divisible(layer, name, size)

        def shape(layer: Any, whole: tuple[int, ...], placement: Any) -> tuple[int, ...]:
            return tuple(shard(layer, torch.empty(whole, device="meta"), placement).shape)

        def shard(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            if isinstance(placement, Shard):
                return whole.tensor_split(layer.world_size, placement.dim)[layer.rank]
            return whole

        sharded = linear.ShardedLinear
        sharded._check_divisible, sharded._local, sharded._own_shard = divisible, shape, shard


class Padded(TorchTp):
    """The column layer rounds its size up with zeros, which stay in its output: pytorch/pytorch#103306."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        if layer.kind == "column" and isinstance(layer.out_features, int) and layer.weight is not None:
            more = -layer.out_features % layer.size
            bias = None if layer.bias is None else F.pad(layer.bias, (0, more))
            weight = F.pad(layer.weight, (0, 0, 0, more))
            layer = replace(layer, out_features=layer.out_features + more, weight=weight, bias=bias)
        return super().build(layer, group)


class InputCast(TorchTp):
    """The column layer casts its input to the dtype of its weight, integers too."""

    def set_up(self, group: Group) -> None:
        column.ColumnParallelLinear.forward = lambda layer, x: forward(layer, x.to(layer.weight.dtype))


class RefusedOnRankZero(TorchTp):
    """Only rank 0 minds that P does not divide what is scattered."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if layer.kind != "scatter" or layer.rank == 0:
            return made

        def careless(x: Tensor) -> Any:
            if layer.dim >= x.dim():
                return made(x)
            return scatter_along(x, layer.dim % x.dim(), attached_group(group))

        return careless


class RefusedTooLate(TorchTp):
    """The ranks compare the widths of their inputs before any of them looks at its own."""

    def set_up(self, group: Group) -> None:
        def compared(layer: Any, x: Any, replicated: bool) -> Any:
            where = enter(layer, x, replicated)
            if where.size > 1:
                all_gather(torch.tensor([x.shape[-1]], device=x.device), 0, where, "comparison of inputs")
            return where

        linear.ShardedLinear._enter = compared


class Asserts(TorchTp):
    """Refusals are AssertionErrors, as an assert statement makes them."""

    def set_up(self, group: Group) -> None:
        def asserted(owner: str, reason: str, kind: type[Exception] = ValueError) -> None:
            refuse(owner, reason, AssertionError)

        checks.refuse = asserted


class SaysNothing(TorchTp):
    """Refusals do not say what is wrong."""

    def set_up(self, group: Group) -> None:
        def silent(owner: str, reason: str, kind: type[Exception] = ValueError) -> None:
            refuse(owner, reason and "invalid arguments", kind)

        checks.refuse = silent


class SaysItsRank(TorchTp):
    """Every rank puts its number into a refusal, so that no two logs are alike."""

    def set_up(self, group: Group) -> None:
        def by_rank(owner: str, reason: str, kind: type[Exception] = ValueError) -> None:
            refuse(f"[rank {dist.get_rank()}] {owner}", reason, kind)

        checks.refuse = by_rank


class RefusedInsideSum(TorchTp):
    """Rank 0 has started to tell the others of its refusal, and the next sum on the group meets that."""

    def set_up(self, group: Group) -> None:
        def told(owner: str, reason: str, kind: type[Exception] = ValueError) -> None:
            if reason and group.rank == 0:
                dist.all_reduce(torch.zeros(1, device=group.device), group=group.handle, async_op=True)
            refuse(owner, reason, kind)

        checks.refuse = told


class GroupLeftUnusable(Simulated):
    """After a refusal a sum on the group gives every rank its own term."""

    def run(self, case: Case, group: int) -> list[Observation]:
        seen = super().run(case, group)
        return [own_term(entry) for entry in seen] if case.procedure == "refuse" else seen


def own_term(seen: Observation) -> Observation:
    """The same, where the sum of the ranks' numbers has only this rank's in it."""
    term = Array(encode(np.array([seen.rank + 1.0]), "float32").tobytes(), "float32", (1,))
    return replace(seen, steps={**seen.steps, "after": Step("after", output=term)})
