"""The adapter of torch's DTensor styles: nn.Linear through `parallelize_module`."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist

from conformance.adapters.pytorch import Layer, TorchAdapter
from spec import Semantics


class DTensorStyles(TorchAdapter):
    """ColwiseParallel and RowwiseParallel; layouts of the input and output stand for the flags."""

    name = "DTensor styles"
    layers = ("column", "row", "pair")
    flags = ("bias", "gather_output", "input_is_parallel", "reduce_output")
    semantics = Semantics(row_bias="divided")

    def build(self, layer: Layer, group: dist.ProcessGroup) -> torch.nn.Module:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import Partial, Placement, Replicate, Shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        linear = torch.nn.Linear(
            layer.in_features, layer.out_features, layer.wants_bias, device=layer.device, dtype=layer.dtype
        )
        with torch.no_grad():
            for parameter, master in ((linear.weight, layer.weight), (linear.bias, layer.bias)):
                if parameter is not None and master is not None:
                    parameter.copy_(master)
        mesh = DeviceMesh.from_group(group, layer.device.type)
        last: Placement = Shard(-1)
        if layer.kind == "column":
            whole = layer.flags.get("gather_output", False)
            return parallelize_module(linear, mesh, ColwiseParallel(output_layouts=Replicate() if whole else last))
        style = RowwiseParallel(
            input_layouts=last if layer.flags.get("input_is_parallel", True) else Replicate(),
            output_layouts=Replicate() if layer.flags.get("reduce_output", True) else Partial(),
        )
        return parallelize_module(linear, mesh, style)

    def local(self, tensor: torch.Tensor) -> torch.Tensor:
        from torch.distributed._functional_collectives import AsyncCollectiveTensor
        from torch.distributed.tensor import DTensor

        plain = cast(Any, tensor).to_local() if isinstance(tensor, DTensor) else tensor
        return plain.wait() if isinstance(plain, AsyncCollectiveTensor) else plain
