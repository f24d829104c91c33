"""Mistakes about layers of several parts: parts cut or joined as one, heads of other ranks, copies that part.

Implementations for `--impl tests/mutants/fused.py:<class>`; what is to be said of each is in `fused.toml`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer
from conformance.adapters.torch_tp import TorchTp
from torch_tp import MergedColumnParallelLinear, QKVParallelLinear
from torch_tp.functions import gather_along, sum_over
from torch_tp.group import attached_group
from torch_tp.layers import column, gradients, linear
from torch_tp.layers.products import column_product
from torch_tp.placements import Shard

cut = linear.ShardedLinear._own_shard
Ranges = Callable[[Shard, int, int, int], tuple[range, ...]]


def hold(ranges: Ranges) -> None:
    """Have fused layers hold other rows: (placement, size, P, rank) -> ranges."""

    def own_shard(layer: Any, whole: Tensor, placement: Any) -> Tensor:
        if not placement.sizes:
            return cut(layer, whole, placement)
        held = ranges(placement, whole.shape[0], layer.world_size, layer.rank)
        return torch.cat([whole[mine.start : mine.stop] for mine in held])

    linear.ShardedLinear._own_shard = own_shard


def share(summed: Callable[[Tensor, int, Any], Tensor]) -> None:
    """Have the gradient of rows with copies another sum: (gradient, first shared row, the group that holds them)."""

    def other(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return summed(grad, ctx.rule.widths[0], ctx.rule.groups[1]), None

    gradients._Shared.backward = staticmethod(other)


class CutAsOneBlock(TorchTp):
    """The rows of all parts are cut as one matrix, so that rank 0 has most of the first part."""

    def set_up(self, group: Group) -> None:
        hold(lambda placement, size, P, r: (range(r * size // P, (r + 1) * size // P),))


class PartsSwapped(TorchTp):
    """The second part's rows stand before the first's."""

    def set_up(self, group: Group) -> None:
        hold(lambda placement, size, P, r: placement.ranges(size, P, r)[::-1])


class GatheredByRank(TorchTp):
    """The gathered output is what an all-gather gives: rank by rank, gate and up of each."""

    def set_up(self, group: Group) -> None:
        MergedColumnParallelLinear._gathered = lambda layer, y, group: gather_along(y, y.dim() - 1, group)


class GatheredPartsSwapped(TorchTp):
    """The gathered parts are joined in the wrong order."""

    def set_up(self, group: Group) -> None:
        def swapped(layer: Any, y: Tensor, group: Any) -> Tensor:
            by_rank = gather_along(y, y.dim() - 1, group).unflatten(-1, (group.size, y.shape[-1]))
            parts = by_rank.split(layer.output_sizes_per_rank, dim=-1)
            return torch.cat([part.flatten(-2) for part in parts[::-1]], dim=-1)

        MergedColumnParallelLinear._gathered = swapped


class BiasCutAsOneBlock(TorchTp):
    """The weight is cut by parts, the bias like that of a column layer."""

    def set_up(self, group: Group) -> None:
        def own_shard(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            if whole.dim() == 2 or not placement.sizes:
                return cut(layer, whole, placement)
            return whole.chunk(layer.world_size)[layer.rank]

        linear.ShardedLinear._own_shard = own_shard


class SecondPartOfNextRank(TorchTp):
    """The first part is cut by the rank, the second by the next rank's."""

    def set_up(self, group: Group) -> None:
        def ranges(placement: Shard, size: int, P: int, r: int) -> tuple[range, ...]:
            own, after = placement.ranges(size, P, r), placement.ranges(size, P, (r + 1) % P)
            return own[0], *after[1:]

        hold(ranges)


class PartsNotDivided(TorchTp):
    """Only the sum of the parts is divided by P, so that parts are cut where no slice ends."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        uneven = [size for size in layer.parts if isinstance(size, int) and size > 0 and size % layer.size]
        if layer.kind == "merged" and uneven and layer.weight is not None:
            layer = replace(layer, kind="column", out_features=layer.out_features // layer.size * layer.size)
            bias = None if layer.bias is None else layer.bias[: layer.out_features]
            layer = replace(layer, weight=layer.weight[: layer.out_features], bias=bias)
        return super().build(layer, group)


class HeadsNotCompared(TorchTp):
    """A number of key heads that fits neither P nor the query heads is set to one that does."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        if layer.kind == "qkv" and layer.weight is not None and self.misfit(layer):
            rows = (layer.heads + 2) * layer.head_size
            bias = None if layer.bias is None else layer.bias[:rows]
            layer = replace(layer, kv_heads=1, out_features=rows, weight=layer.weight[:rows], bias=bias)
        return super().build(layer, group)

    def misfit(self, layer: Layer) -> bool:
        K, P = layer.kv_heads, layer.size
        return layer.heads in range(1, 1000) and (layer.heads % K != 0 or (K % P != 0 and P % K != 0))


class QKVCutAsOneBlock(TorchTp):
    """Query, key and value are cut as one matrix, as a column layer cuts it."""

    def set_up(self, group: Group) -> None:
        def own_shard(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            if placement.sizes and max(placement.copies) == 1:
                return whole.chunk(layer.world_size)[layer.rank]
            return cut(layer, whole, placement)

        linear.ShardedLinear._own_shard = own_shard


class HeadByRemainder(TorchTp):
    """Rank r holds key head r % K, as if every K-th rank held the same: the rows of other ranks' query heads."""

    def set_up(self, group: Group) -> None:
        def ranges(placement: Shard, size: int, P: int, r: int) -> tuple[range, ...]:
            copies = max(placement.copies)
            heads = P // copies
            return placement.ranges(size, P, r)[0], *placement.ranges(size, P, r % heads * copies)[1:]

        hold(ranges)


class FirstHeadEverywhere(TorchTp):
    """Where there are more ranks than key heads, every rank holds the first."""

    def set_up(self, group: Group) -> None:
        def ranges(placement: Shard, size: int, P: int, r: int) -> tuple[range, ...]:
            shared = 0 if max(placement.copies) > 1 else r
            return placement.ranges(size, P, r)[0], *placement.ranges(size, P, shared)[1:]

        hold(ranges)


class KeyAndValueSwapped(TorchTp):
    """The key's rows are taken for the value's."""

    def set_up(self, group: Group) -> None:
        def ranges(placement: Shard, size: int, P: int, r: int) -> tuple[range, ...]:
            query, key, value = placement.ranges(size, P, r)
            return query, value, key

        hold(ranges)


class HeadsInterleaved(TorchTp):
    """A master of [W_q; W_k; W_v] is taken for one of [query heads, key head, value head] for each key head."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        if layer.kind == "qkv" and layer.weight is not None and not layer.out_features % (layer.kv_heads or 1):
            groups, D = layer.kv_heads, layer.head_size
            widths = [layer.heads // groups * D, D, D]

            def sorted_by_part(whole: Tensor) -> Tensor:
                by_group = whole.unflatten(0, (groups, sum(widths)))
                return torch.cat([part.flatten(0, 1) for part in by_group.split(widths, dim=1)])

            bias = None if layer.bias is None else sorted_by_part(layer.bias)
            layer = replace(layer, weight=sorted_by_part(layer.weight), bias=bias)
        return super().build(layer, group)


class CopiesNotSummed(TorchTp):
    """The gradient of a head with copies is the rank's own term, so that copies part with the first step."""

    def set_up(self, group: Group) -> None:
        share(lambda grad, first, group: grad.clone())


class CopiesSummedOverAll(TorchTp):
    """It is summed over the whole tensor-parallel group, other heads' gradients among it."""

    def set_up(self, group: Group) -> None:
        gradients.neighbours = lambda group, size: group


class CopiesAveraged(TorchTp):
    """It is the mean over the copies, as data-parallel ranks would have it."""

    def set_up(self, group: Group) -> None:
        def mean(grad: Tensor, first: int, group: Any) -> Tensor:
            return torch.cat([grad[:first], sum_over(grad[first:], group) / group.size])

        share(mean)


class CopiesSummedTwice(TorchTp):
    """It is reduced a second time, once the sum is there."""

    def set_up(self, group: Group) -> None:
        def twice(grad: Tensor, first: int, group: Any) -> Tensor:
            return torch.cat([grad[:first], sum_over(sum_over(grad[first:], group), group)])

        share(twice)


class QueriesSummedToo(TorchTp):
    """All rows are summed over the ranks that hold the same key head, their different query heads too."""

    def set_up(self, group: Group) -> None:
        share(lambda grad, first, group: sum_over(grad, group))


class KeysSummedAlone(TorchTp):
    """The key heads' gradient is summed, the value heads' is not."""

    def set_up(self, group: Group) -> None:
        def keys(grad: Tensor, first: int, group: Any) -> Tensor:
            query, key, value = grad.tensor_split([first, (first + len(grad)) // 2])
            return torch.cat([query, sum_over(key, group), value])

        share(keys)


class BiasCopiesNotSummed(TorchTp):
    """Only the weight's gradient is summed over copies, the bias's is forgotten."""

    def set_up(self, group: Group) -> None:
        shared = QKVParallelLinear._with_shared_gradient
        QKVParallelLinear._with_shared_gradient = lambda layer, parameter: (
            parameter if parameter.dim() == 1 else shared(layer, parameter)
        )


class CopiesOfEveryKthRank(TorchTp):
    """Copies are looked for on every K-th rank, which hold other heads; the ranks' own are cut rightly."""

    def set_up(self, group: Group) -> None:
        made: dict[int, Any] = {}

        def strided(group: Any, size: int) -> Any:
            if size == group.size:
                return group
            if size not in made:
                ranks = dist.get_process_group_ranks(group.process_group)
                count = group.size // size
                members = ranks[group.rank % count :: count]
                made[size] = attached_group(dist.new_group(members, use_local_synchronization=True))
            return made[size]

        gradients.neighbours = strided


class InputSummedAmongSharers(TorchTp):
    """The input's gradient is summed over the ranks that share a head, not over all."""

    def set_up(self, group: Group) -> None:
        parallel = QKVParallelLinear._parallel

        def among_sharers(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return column_product(x, weight, bias, gradients.neighbours(group, max(1, group.size // 2)))

        def computed(layer: Any, *operands: Any) -> Tensor:
            column.column_product = among_sharers
            try:
                return parallel(layer, *operands)
            finally:
                column.column_product = column_product

        QKVParallelLinear._parallel = computed
