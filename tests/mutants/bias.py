"""Mistakes about the bias: counted too often, lost, added on some ranks, or taken from another rank's slice.

Implementations for `--impl tests/mutants/bias.py:<class>`; what is to be said of each is in `bias.toml`.
As in the other families it is torch_tp with one function put out for a faulty one, in a process that runs nothing else.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer
from conformance.adapters.torch_tp import TorchTp
from torch_tp.functions import copy_in, sum_over
from torch_tp.layers import column, linear, row
from torch_tp.layers.products import column_product, row_product
from torch_tp.placements import Shard

cut, local_shape = linear.ShardedLinear._own_shard, linear.ShardedLinear._local
parallel = column.ColumnParallelLinear._parallel


class BiasBeforeReduction(TorchTp):
    """Every rank adds the bias before the sum, which then holds it P times: Wenyueh/MinivLLM#80."""

    def set_up(self, group: Group) -> None:
        row.row_product = lambda x, weight, bias, group: sum_over(F.linear(x, weight, bias), group)


class BiasDividedBeforeReduction(TorchTp):
    """Every rank adds b / P: the output is right, the bias's gradient is divided too: pytorch/torchtitan#4332."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return sum_over(F.linear(x, weight, None if bias is None else bias / group.size), group)

        row.row_product = product


class BiasGradientOnRankZero(TorchTp):
    """Only rank 0 adds the bias to its term, so only rank 0 has a gradient for it."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return sum_over(F.linear(x, weight, bias if group.rank == 0 else None), group)

        row.row_product = product


class BiasOfRankZero(TorchTp):
    """Only rank 0 has the row layer's bias, and adds it to its term: huggingface/text-generation-inference#1036."""

    def set_up(self, group: Group) -> None:
        row.row_product = lambda x, weight, bias, group: sum_over(F.linear(x, weight, bias), group)

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if layer.kind == "row" and layer.rank > 0:
            made.register_parameter("bias", None)
        return made


class BiasAfterReductionOnRankZero(TorchTp):
    """Only rank 0 adds the bias to the sum."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return row_product(x, weight, bias if group.rank == 0 else None, group)

        row.row_product = product


class BiasNeverAdded(TorchTp):
    """The row layer forgets its bias where it has something to reduce."""

    def set_up(self, group: Group) -> None:
        row.row_product = lambda x, weight, bias, group: row_product(x, weight, None, group)


class BiasGradientSummed(TorchTp):
    """The row layer sums the bias's gradient, which every rank has whole already: pytorch/torchtitan#2106."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return row_product(x, weight, None if bias is None else copy_in(bias, group), group)

        row.row_product = product


class ColumnBiasDivided(TorchTp):
    """The column layer adds b / P, as if there were a sum to come."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return column_product(x, weight, None if bias is None else bias / group.size, group)

        column.column_product = product


class ColumnBiasOfRankZero(TorchTp):
    """Every rank holds the first slice of the column layer's bias: vllm-project/vllm-gguf-plugin#103."""

    def set_up(self, group: Group) -> None:
        def first(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            sharded = whole.dim() == 1 and isinstance(placement, Shard)
            return whole.chunk(layer.world_size)[0] if sharded else cut(layer, whole, placement)

        linear.ShardedLinear._own_shard = first


class ColumnBiasNotCut(TorchTp):
    """What has fewer than two dimensions is never cut, and the whole bias fits no slice: ModelTC/LightX2V#1453."""

    def set_up(self, group: Group) -> None:
        def shard(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            return whole if whole.dim() == 1 else cut(layer, whole, placement)

        def shape(layer: Any, whole: tuple[int, ...], placement: Any) -> tuple[int, ...]:
            return whole if len(whole) == 1 else local_shape(layer, whole, placement)

        linear.ShardedLinear._own_shard, linear.ShardedLinear._local = shard, shape


class ColumnBiasOfNextRank(TorchTp):
    """Every rank holds its own slice of the column layer's bias, and adds the next rank's."""

    def set_up(self, group: Group) -> None:
        def with_next(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return parallel(layer, x, weight, None if bias is None else bias + layer.next_minus_own, group)

        column.ColumnParallelLinear._parallel = with_next

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if layer.kind == "column" and layer.bias is not None:
            slices = layer.bias.chunk(layer.size)
            made.next_minus_own = slices[(layer.rank + 1) % layer.size] - slices[layer.rank]
        return made
