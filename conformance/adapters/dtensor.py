"""The adapter of torch's DTensor styles: nn.Linear through `parallelize_module`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import torch
import torch._dynamo  # the first DTensor would import it, for seconds that count as its case's
import torch.distributed as dist
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from conformance.adapters.pytorch import Layer, TorchAdapter
from spec import Case, Semantics

# What a user gets wrong before there is a DTensor, or cannot say to one.
_FAULTS_ELSEWHERE: Final = {
    "master-shape": "cuts an nn.Linear, and takes no masters",
    "master-bias-shape": "cuts an nn.Linear, and takes no masters",
    "master-integer": "cuts an nn.Linear, and takes no masters",
    "gathered-and-skipped": "has no skip_bias_add",
}


class DTensorStyles(TorchAdapter):
    """ColwiseParallel and RowwiseParallel; layouts of the input and output stand for the flags."""

    name = "DTensor styles"
    layers = ("column", "row", "pair")
    flags = ("bias", "gather_output", "input_is_parallel", "reduce_output")
    procedures_declined: Mapping[str, str] = {"pickle": "the hooks of distribute_module are local functions"}
    accepts: Mapping[str, str] = {"unreduced-bias": "each partial output has b / P in it, and their sum has b"}
    semantics = Semantics(row_bias="divided")

    def build(self, layer: Layer, group: dist.ProcessGroup) -> torch.nn.Module:
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
        plain = cast(Any, tensor).to_local() if isinstance(tensor, DTensor) else tensor
        return plain.wait() if isinstance(plain, AsyncCollectiveTensor) else plain

    def unsupported(self, case: Case) -> str:
        if case.layer == "column" and case.fault in ("indivisible", "zero-size"):
            return "shards a column layer unevenly, down to nothing, as torch.chunk does"
        return _FAULTS_ELSEWHERE.get(case.fault, "")
