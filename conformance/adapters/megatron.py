"""The adapter of Megatron-core: its two linear layers and its four mappings."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from conformance.adapters.protocol import Requirement
from conformance.adapters.pytorch import Layer, TorchAdapter
from spec import Case, Semantics

_GROUP = "its modules hold their ProcessGroup, which torch neither copies nor pickles"
_INITIALISER = "it takes no masters: an init_method fills a tensor that the layer made"


class Megatron(TorchAdapter):
    """Initialised on the CPU, from the master: its own code cuts the shards."""

    name = "Megatron-core"
    layers = ("column", "row", "pair", "copy", "reduce", "gather", "scatter")
    flags = ("bias", "gather_output", "input_is_parallel", "skip_bias_add")
    procedures_declined = dict.fromkeys(("deepcopy", "pickle"), _GROUP)
    accepts = dict.fromkeys(("master-shape", "master-integer", "master-bias-shape"), _INITIALISER)
    requires = (Requirement("megatron-core", "0.16.1", "megatron.core.tensor_parallel"),)
    # Its documentation has inputs [sequence, batch, hidden]; its code also takes two dimensions. Whatever gathers
    # allocates on torch.cuda.current_device(), and its autograd functions restore CUDA's autocast alone.
    semantics = Semantics(
        always_pair=True,
        needs_cuda=("gather_output", "input_is_parallel=False", "gather", "scatter", "autocast"),
        batch_dims=(1, 2),
    )

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        from megatron.core import ModelParallelConfig, tensor_parallel

        mappings = {
            "copy": tensor_parallel.copy_to_tensor_model_parallel_region,
            "reduce": tensor_parallel.reduce_from_tensor_model_parallel_region,
            "gather": tensor_parallel.gather_from_tensor_model_parallel_region,
            "scatter": tensor_parallel.scatter_to_tensor_model_parallel_region,
        }
        if layer.kind in mappings:
            return lambda x: mappings[layer.kind](x, group=group)
        options: dict[str, Any] = {
            "config": ModelParallelConfig(
                tensor_model_parallel_size=layer.size,
                use_cpu_initialization=layer.device.type == "cpu",
                params_dtype=layer.dtype,
            ),
            "init_method": lambda weight: weight.copy_(layer.weight),
            "bias": layer.wants_bias,
            "tp_group": group,
        } | {name: value for name, value in layer.flags.items() if name in self.flags}
        column = layer.kind == "column"
        cls = tensor_parallel.ColumnParallelLinear if column else tensor_parallel.RowParallelLinear
        with torch.no_grad():
            module = cls(layer.in_features, layer.out_features, **options)
            if layer.dtype == torch.float64 and layer.weight is not None:
                # It initialises in float32; weights in float64 come from elsewhere, as a checkpoint's shards do.
                module.weight.copy_(layer.weight.chunk(layer.size, 0 if column else 1)[layer.rank])
            if layer.bias is not None:
                module.bias.copy_(layer.bias.chunk(layer.size)[layer.rank] if column else layer.bias)
        return module

    def unsupported(self, case: Case) -> str:
        if case.layer in ("gather", "scatter") and _other_dim(case):
            return "its mappings work along the last dimension alone"
        if case.procedure.startswith("compile") and case.layer in ("column", "pair") and case.P > 1:
            return "torch.compile makes no single graph of the asynchronous all-reduce in its column layer's backward"
        return ""


def _other_dim(case: Case) -> bool:
    return case.dim not in (-1, len(case.batch)) or case.fault == "dim-out-of-range"
