"""Mistakes about slices: parameters cut wrongly, shards joined wrongly, slices of gradients that nobody joins.

Implementations for `--impl tests/mutants/slices.py:<class>`; what is to be said of each is in `slices.toml`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives, functions
from torch_tp.collectives import all_gather
from torch_tp.functions import scatter_along
from torch_tp.layers import column, linear, row
from torch_tp.placements import Shard

cut = linear.ShardedLinear._own_shard


def sharded_matrix(whole: Tensor, placement: Any) -> bool:
    """Whether this is a weight that is to be cut; the mistakes below leave biases alone."""
    return whole.dim() == 2 and isinstance(placement, Shard)


class TransposedSquares(TorchTp):
    """A square weight is transposed before it is cut, which no shape gives away: predibase/lorax#47."""

    def set_up(self, group: Group) -> None:
        def transposed(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            square = whole.dim() == 2 and whole.shape[0] == whole.shape[1]
            return cut(layer, whole.t() if square else whole, placement)

        linear.ShardedLinear._own_shard = transposed


class StridedColumns(TorchTp):
    """Rank r of a row layer takes every P-th column from the r-th on."""

    def set_up(self, group: Group) -> None:
        def strided(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            if sharded_matrix(whole, placement) and placement.dim == 1:
                return whole[:, layer.rank :: layer.world_size]
            return cut(layer, whole, placement)

        linear.ShardedLinear._own_shard = strided


class OffByOneRows(TorchTp):
    """Shards of two and more rows begin one row too late, as far as there is another row."""

    def set_up(self, group: Group) -> None:
        def late(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            size = whole.shape[0] // layer.world_size
            if sharded_matrix(whole, placement) and placement.dim == 0 and size > 1:
                return whole.narrow(0, min(layer.rank * size + 1, whole.shape[0] - size), size)
            return cut(layer, whole, placement)

        linear.ShardedLinear._own_shard = late


class FirstShardEverywhere(TorchTp):
    """The loader is not told its rank, and takes shard 0: vllm-project/vllm-gguf-plugin#103."""

    def set_up(self, group: Group) -> None:
        def first(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            if sharded_matrix(whole, placement):
                return whole.chunk(layer.world_size, placement.dim)[0]
            return cut(layer, whole, placement)

        linear.ShardedLinear._own_shard = first


class ShardsOfNextRank(TorchTp):
    """Ranks are counted from 1 where the weight is cut, and the last one takes the first shard."""

    def set_up(self, group: Group) -> None:
        def following(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            if sharded_matrix(whole, placement):
                return whole.chunk(layer.world_size, placement.dim)[(layer.rank + 1) % layer.world_size]
            return cut(layer, whole, placement)

        linear.ShardedLinear._own_shard = following


class GatherReversed(TorchTp):
    """The ranks' slices are joined from the last rank to the first: pytorch/xla#5264."""

    def set_up(self, group: Group) -> None:
        def backwards(local: Tensor, dim: int, group: Any, what: str) -> Tensor:
            return torch.cat(all_gather(local, dim, group, what).chunk(group.size, dim)[::-1], dim)

        collectives.all_gather = backwards


class PairGatherReversed(GatherReversed):
    """The same between the two layers of a pair, of which the second takes another rank's hidden features."""


class GatherInGrayOrder(TorchTp):
    """Slices are joined in the order of a hypercube, 0 1 3 2, which is the ranks' own for two."""

    def set_up(self, group: Group) -> None:
        def gray(local: Tensor, dim: int, group: Any, what: str) -> Tensor:
            parts = all_gather(local, dim, group, what).chunk(group.size, dim)
            return torch.cat([parts[r ^ (r >> 1)] for r in range(group.size)], dim)

        collectives.all_gather = gray


class GatherAlongOne(TorchTp):
    """The last dimension is taken for dimension 1, which it is for matrices: tenstorrent/tt-metal#19433."""

    def set_up(self, group: Group) -> None:
        def along_one(local: Tensor, dim: int, group: Any, what: str) -> Tensor:
            return all_gather(local, min(dim, 1), group, what)

        collectives.all_gather = along_one


class GatherViewed(TorchTp):
    """What was joined along dimension 0 is viewed as if along another: NVIDIA/TransformerEngine#530."""

    def set_up(self, group: Group) -> None:
        def viewed(local: Tensor, dim: int, group: Any, what: str) -> Tensor:
            shape = list(local.shape)
            shape[dim] *= group.size
            return all_gather(local, 0, group, what).view(shape)

        collectives.all_gather = viewed


class GatherInterleaved(TorchTp):
    """The dimension of the ranks is moved behind the one that is joined, not before it."""

    def set_up(self, group: Group) -> None:
        def interleaved(local: Tensor, dim: int, group: Any, what: str) -> Tensor:
            whole = all_gather(local, dim, group, what)
            return torch.stack(whole.chunk(group.size, dim), dim + 1).reshape(whole.shape)

        collectives.all_gather = interleaved


class ColumnNotGathered(TorchTp):
    """gather_output=True is ignored."""

    def set_up(self, group: Group) -> None:
        column.gather_along = lambda y, dim, group: y


class ScatterAlongLast(TorchTp):
    """scatter cuts the last dimension, whatever it is asked for, where P divides that."""

    def set_up(self, group: Group) -> None:
        def along_last(x: Tensor, dim: int, group: Any) -> Tensor:
            return scatter_along(x, dim if x.shape[-1] % group.size else x.dim() - 1, group)

        functions.scatter_along = along_last


class ScatterWhole(TorchTp):
    """scatter hands over the whole tensor."""

    def set_up(self, group: Group) -> None:
        functions.scatter_along = lambda x, dim, group: x.clone()


def padded_narrow(x: Tensor, dim: int, group: Any) -> Tensor:
    """The rank's own slice, whose backward fills up with zeros what the other ranks would have to give."""
    size = x.shape[dim] // group.size
    return x.narrow(dim, group.rank * size, size)


class ScatterBackwardPads(TorchTp):
    """scatter leaves its backward to that of a slice, which knows no other rank's gradient."""

    def set_up(self, group: Group) -> None:
        functions.scatter_along = padded_narrow


class RowInputGradientPads(TorchTp):
    """So does the row layer for a replicated input: the gradients of the other ranks' slices are zero."""

    def set_up(self, group: Group) -> None:
        row.scatter_along = padded_narrow
