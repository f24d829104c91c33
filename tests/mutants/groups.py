"""Mistakes about the group: the world in its place, global ranks in place of its own, and a group of one rank.

Implementations for `--impl tests/mutants/groups.py:<class>`; what is to be said of each is in `groups.toml`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import linear as dense

from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives
from torch_tp.collectives import all_reduce
from torch_tp.group import attached_group
from torch_tp.layers import column, linear, row
from torch_tp.placements import Shard

cut = linear.ShardedLinear._own_shard
column_forward, row_forward = column.ColumnParallelLinear.forward, row.RowParallelLinear.forward


class WorldForGroup(TorchTp):
    """Sums run over the whole world, not over the group that the layer was given: NVIDIA/Megatron-LM#7452."""

    def set_up(self, group: Group) -> None:
        def everywhere(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_reduce(buffer, attached_group(dist.group.WORLD), what)

        collectives.all_reduce = everywhere


class GlobalRankForGroupRank(TorchTp):
    """Shards are chosen by the rank in the world, which for neighbouring ranks is as good: vllm-project/vllm#48025."""

    def set_up(self, group: Group) -> None:
        def by_global_rank(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            if not isinstance(placement, Shard):
                return cut(layer, whole, placement)
            return whole.chunk(layer.world_size, placement.dim)[dist.get_rank() % layer.world_size]

        linear.ShardedLinear._own_shard = by_global_rank


class BroadcastFromGlobalZero(TorchTp):
    """The row layer makes its biases equal by a broadcast from rank 0 of the world, which is in one group only."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if layer.kind == "row" and layer.bias is not None and layer.size > 1:
            dist.broadcast(made.bias.data, src=0, group=group)
        return made


class OneRankCommunicates(TorchTp):
    """A row layer on one rank asks that rank for a sum."""

    def set_up(self, group: Group) -> None:
        def forward(layer: Any, x: Tensor) -> Any:
            result = row_forward(layer, x)
            if layer.world_size == 1:
                all_reduce(torch.zeros(1, device=x.device), layer._resolved(), "RowParallelLinear forward")
            return result

        row.RowParallelLinear.forward = forward


class OneRankHasNode(TorchTp):
    """A column layer on one rank hands its output through an autograd node that does nothing."""

    def set_up(self, group: Group) -> None:
        def forward(layer: Any, x: Tensor) -> Any:
            result = column_forward(layer, x)
            return result.view_as(result) if layer.world_size == 1 and isinstance(result, Tensor) else result

        column.ColumnParallelLinear.forward = forward


class OneRankInFloat64(TorchTp):
    """A row layer on one rank computes in float64 and rounds: better numbers, and others than the plain layer's."""

    def set_up(self, group: Group) -> None:
        def wide(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return dense(x.double(), weight.double(), None if bias is None else bias.double()).to(x.dtype)

        row.RowParallelLinear._single = wide
