"""The adapter of DeepSpeed: the layers of its automatic tensor parallelism, in training mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from conformance.adapters.protocol import Group, Requirement
from conformance.adapters.pytorch import Layer, TorchAdapter

_MADE_FROM = "it takes no masters: it is made from an nn.Linear"


class DeepSpeed(TorchAdapter):
    """LinearLayer, LinearAllreduce and LinearAllreduceWithReplicatedInput, made from an nn.Linear each."""

    name = "DeepSpeed"
    layers = ("column", "row", "pair")
    flags = ("bias", "gather_output", "input_is_parallel")
    accepts: Mapping[str, str] = {
        **dict.fromkeys(("master-shape", "master-integer", "master-bias-shape"), _MADE_FROM),
        "indivisible": "shards may differ in size",
        "zero-size": "as nn.Linear does, from which it is made",
    }
    procedures_declined: Mapping[str, str] = {"pickle": "keeps its ProcessGroup, which cannot be pickled"}
    # Its build needs torch, and compiles kernels unless it is told not to.
    requires = (
        Requirement("deepspeed", "0.19.8", "deepspeed.module_inject.layers", "--no-build-isolation deepspeed==0.19.8"),
    )

    def set_up(self, group: Group) -> None:
        from deepspeed import comm
        from deepspeed.module_inject.layers import set_autotp_mode

        comm.init_distributed(dist.get_backend(), verbose=False)
        set_autotp_mode(training=True)

    def build(self, layer: Layer, group: dist.ProcessGroup) -> torch.nn.Module:
        from deepspeed.module_inject import layers

        assert layer.weight is not None
        whole = torch.nn.Linear(
            layer.in_features, layer.out_features, layer.wants_bias, device=layer.device, dtype=layer.dtype
        )
        with torch.no_grad():
            whole.weight.copy_(layer.weight)
            if layer.bias is not None:
                whole.bias.copy_(layer.bias)
        if layer.kind == "column":
            return layers.LinearLayer(whole, group, gather_output=layer.flags["gather_output"])
        parallel = layer.flags["input_is_parallel"]
        cls: Any = layers.LinearAllreduce if parallel else layers.LinearAllreduceWithReplicatedInput
        module: torch.nn.Module = cls(whole, group)
        return module
