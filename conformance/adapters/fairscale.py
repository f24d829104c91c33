"""The adapter of fairscale: its two linear layers and its four mappings."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from conformance.adapters.protocol import Group, Requirement
from conformance.adapters.pytorch import Layer, TorchAdapter
from spec import Case

_INITIALISER = "it takes no masters: an init_method fills a tensor that the layer made"


class Fairscale(TorchAdapter):
    """Initialised from the master: its own code cuts the shards. Its model-parallel group is a global one."""

    name = "fairscale"
    layers = ("column", "row", "pair", "copy", "reduce", "gather", "scatter")
    flags = ("bias", "gather_output", "input_is_parallel")
    accepts = dict.fromkeys(("master-shape", "master-integer", "master-bias-shape"), _INITIALISER)
    requires = (
        Requirement("fairscale", "0.4.13", "fairscale.nn.model_parallel", "--no-build-isolation fairscale==0.4.13"),
    )

    def set_up(self, group: Group) -> None:
        from fairscale.nn.model_parallel import initialize_model_parallel

        initialize_model_parallel(group.size)

    def tear_down(self) -> None:
        from fairscale.nn.model_parallel import destroy_model_parallel

        destroy_model_parallel()

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        from fairscale.nn.model_parallel import layers, mappings

        functions = {
            "copy": mappings.copy_to_model_parallel_region,
            "reduce": mappings.reduce_from_model_parallel_region,
            "gather": mappings.gather_from_model_parallel_region,
            "scatter": mappings.scatter_to_model_parallel_region,
        }
        if layer.kind in functions:
            return functions[layer.kind]
        column = layer.kind == "column"
        cls = layers.ColumnParallelLinear if column else layers.RowParallelLinear
        flags = {name: value for name, value in layer.flags.items() if name in self.flags}
        default = torch.get_default_dtype()
        torch.set_default_dtype(layer.dtype)  # the only way to choose it
        try:
            with torch.no_grad():
                module = cls(
                    layer.in_features,
                    layer.out_features,
                    bias=layer.wants_bias,
                    init_method=lambda weight: weight.copy_(layer.weight),
                    **flags,
                )
                if layer.bias is not None:
                    module.bias.copy_(layer.bias.chunk(layer.size)[layer.rank] if column else layer.bias)
        finally:
            torch.set_default_dtype(default)
        return module

    def unsupported(self, case: Case) -> str:
        if case.groups == "interleaved":
            return "its groups are neighbouring ranks"
        if case.layer in ("gather", "scatter") and _other_dim(case):
            return "its mappings work along the last dimension alone"
        if case.P > 1 and {"copy": case.g, "reduce": case.x}.get(case.layer) == "expanded":
            return "it all-reduces an expanded tensor as it is, and gloo writes past its end: ranks die of it"
        return ""


def _other_dim(case: Case) -> bool:
    return case.dim not in (-1, len(case.batch)) or case.fault == "dim-out-of-range"
