"""The adapter of torch_tp itself."""

from __future__ import annotations

from typing import Any

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
