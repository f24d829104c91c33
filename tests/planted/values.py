"""Wrong numbers: torch_tp with one function put out for a faulty one, in the rank's process that runs nothing else.

Each class is an implementation for `--impl tests/planted/values.py:<class>` and names the public thread it comes from.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives, column, functions, linear, row
from torch_tp.collectives import all_gather, all_reduce
from torch_tp.functions import sum_over
from torch_tp.group import attached_group

cut = linear.ShardedLinear._own_shard


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


class BiasOnRankZero(TorchTp):
    """Only rank 0 adds the bias, so only rank 0 has a gradient for it: huggingface/text-generation-inference#1036."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return sum_over(F.linear(x, weight, bias if group.rank == 0 else None), group)

        row.row_product = product


class InputGradientNotReduced(TorchTp):
    """The column layer leaves the ranks' terms of the input's gradient as they are: pytorch/torchtitan#1805."""

    def set_up(self, group: Group) -> None:
        column.column_product = lambda x, weight, bias, group: F.linear(x, weight, bias)


class GatherReversed(TorchTp):
    """The ranks' slices are joined from the last rank to the first: pytorch/xla#5264."""

    def set_up(self, group: Group) -> None:
        def reversed_gather(local: Tensor, dim: int, group: Any, what: str) -> Tensor:
            return torch.cat(all_gather(local, dim, group, what).chunk(group.size, dim)[::-1], dim)

        collectives.all_gather = reversed_gather


class WrongCutOfSquares(TorchTp):
    """A weight is cut along the other dimension, which only square sizes survive: predibase/lorax#47."""

    def set_up(self, group: Group) -> None:
        def transposed(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            square = whole.dim() == 2 and whole.shape[0] == whole.shape[1]
            return cut(layer, whole.t() if square else whole, placement)

        linear.ShardedLinear._own_shard = transposed


class _SummingGather(functions._Gather):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return functions._Gather.backward(ctx, sum_over(grad, ctx.group))


class GatherBackwardSums(TorchTp):
    """The gradient of a gathered value, equal on all ranks, is summed before it is cut: pytorch/pytorch#120386."""

    def set_up(self, group: Group) -> None:
        functions.gather_along = _SummingGather.apply


class WorldForGroup(TorchTp):
    """Sums run over the whole world, not over the group that the layer was given: NVIDIA/Megatron-LM#7452."""

    def set_up(self, group: Group) -> None:
        def everywhere(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_reduce(buffer, attached_group(dist.group.WORLD), what)

        collectives.all_reduce = everywhere


class UpstreamReducedInPlace(TorchTp):
    """copy's backward sums in the tensor that it was given: Lightning-AI/pytorch-lightning#18228."""

    def set_up(self, group: Group) -> None:
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return all_reduce(grad.contiguous(), ctx.group, "copy"), None

        functions._Copy.backward = staticmethod(backward)


class TemporaryReduced(TorchTp):
    """What is reduced is a contiguous copy, what is returned is the original: NVIDIA/Megatron-LM#5337."""

    def set_up(self, group: Group) -> None:
        def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
            ctx.group = group
            mine = x.clone()
            all_reduce(mine.contiguous(), group, "reduce")
            return mine

        functions._Reduce.forward = staticmethod(forward)


class ShardIsView(TorchTp):
    """The shard is a view that keeps the whole master alive: ModelTC/LightX2V#1390."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if layer.kind == "column" and layer.weight is not None:
            made.weight.data = layer.weight.chunk(layer.size)[layer.rank].contiguous()
        return made
