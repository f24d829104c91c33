"""Mistakes about memory: what is the caller's written to, or kept, or handed back.

Implementations for `--impl tests/mutants/storage.py:<class>`; what is to be said of each is in `storage.toml`.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer
from conformance.adapters.torch_tp import TorchTp
from torch_tp import functions
from torch_tp.collectives import all_reduce
from torch_tp.layers import linear

cut = linear.ShardedLinear._own_shard


class UpstreamReducedInPlace(TorchTp):
    """copy's backward sums in the tensor that it was given."""

    def set_up(self, group: Group) -> None:
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return all_reduce(grad.contiguous(), ctx.group, "torch_tp.copy"), None

        functions._Copy.backward = staticmethod(backward)


class InputReducedInPlace(TorchTp):
    """reduce sums in its input, and returns that: Lightning-AI/pytorch-lightning#18228."""

    def set_up(self, group: Group) -> None:
        def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
            ctx.group = group
            return all_reduce(x.contiguous(), group, "torch_tp.reduce")

        functions._Reduce.forward = staticmethod(forward)


class MasterCleared(TorchTp):
    """A shard is moved out of the master weight, which is left with zeros in its place."""

    def set_up(self, group: Group) -> None:
        def moved(layer: Any, whole: Tensor, placement: Any) -> Tensor:
            theirs = cut(layer, whole, placement)
            mine = theirs.clone()
            theirs.zero_()
            return mine

        linear.ShardedLinear._own_shard = moved


class ShardIsView(TorchTp):
    """The column layer's shard is a view of the master weight: ModelTC/LightX2V#1390."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if layer.kind == "column" and layer.weight is not None:
            made.weight.data = layer.weight.chunk(layer.size)[layer.rank].contiguous()
        return made


class ShardOfWholeStorage(TorchTp):
    """The column layer copies the master weight, and its shard keeps all of the copy alive: pytorch/pytorch#79400."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if layer.kind == "column" and layer.weight is not None:
            made.weight.data = layer.weight.clone().chunk(layer.size)[layer.rank]
        return made


class GradientIsUpstream(TorchTp):
    """The gradient that reduce hands on is the caller's own tensor under another name."""

    def set_up(self, group: Group) -> None:
        functions._Reduce.backward = staticmethod(lambda ctx, grad: (grad.view_as(grad), None))
