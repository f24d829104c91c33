"""The adapter of torch_tp itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from conformance.adapters.pytorch import Layer, TorchAdapter
from spec.case import FUNCTIONS, LAYERS


class TorchTp(TorchAdapter):
    """torch_tp's layers and functions; SHOULD is MUST for them."""

    name = "torch_tp"
    layers = LAYERS
    flags = ("bias", "gather_output", "skip_bias_add", "input_is_parallel", "reduce_output")
    strict = True
    draws_initial_values = True

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        import torch_tp

        if layer.kind in FUNCTIONS:
            function = getattr(torch_tp, layer.kind)
            if layer.kind in ("gather", "scatter"):
                return lambda x: function(x, dim=layer.dim, group=group)
            return lambda x: function(x, group=group)
        classes: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "column": (torch_tp.ColumnParallelLinear, (layer.out_features,)),
            "row": (torch_tp.RowParallelLinear, (layer.out_features,)),
            "merged": (torch_tp.MergedColumnParallelLinear, (layer.parts,)),
            "qkv": (torch_tp.QKVParallelLinear, (layer.head_size, layer.heads, layer.kv_heads)),
        }
        cls, sizes = classes[layer.kind]
        return cls(
            layer.in_features,
            *sizes,
            layer.wants_bias,
            layer.weight,
            master_bias=layer.bias,
            group=group,
            device=layer.device,
            dtype=layer.dtype,
            **layer.flags,
        )

    def parallelize(self, model: torch.nn.Module, group: dist.ProcessGroup, example: Mapping[str, Any]) -> Any:
        """A whole model, see `conformance.adapters.models`."""
        import torch_tp

        return torch_tp.parallelize(model, group, example=example)

    def part(self, parameter: Any, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """What a rank holds of a tensor that lies as this parameter lies."""
        import torch_tp

        placement = getattr(parameter, "placement", None)
        if not isinstance(placement, torch_tp.Shard):
            return whole
        held = placement.ranges(whole.shape[placement.dim], size, rank)
        return torch.cat([whole.narrow(placement.dim, each.start, len(each)) for each in held], placement.dim)

    def clip_grad_norm_(self, model: torch.nn.Module, max_norm: float) -> torch.Tensor:
        """The norm of the dense model's gradient, by which all gradients were scaled."""
        import torch_tp

        return torch_tp.clip_grad_norm_(model, max_norm)
