"""The adapters of nanotron: its two linear layers in the mode that all-reduces, and its column layer that overlaps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from conformance.adapters.protocol import Group, Requirement
from conformance.adapters.pytorch import Layer, TorchAdapter
from spec import Semantics

_NO_MASTERS = "it takes no masters; its weights come from a checkpoint"
_KEEPS_GROUP = "keeps its ProcessGroup, which cannot be copied"


class Nanotron(TorchAdapter):
    """TensorParallelColumnLinear and TensorParallelRowLinear; the bias of the row layer lives on rank 0 alone."""

    name = "nanotron"
    layers: Sequence[str] = ("column", "row", "pair")
    # What the column layer is told; the row layer has no such variant in this mode.
    overlaps = False
    semantics = Semantics(row_bias="first-rank")
    accepts: Mapping[str, str] = {
        **dict.fromkeys(("master-shape", "master-integer", "master-bias-shape"), _NO_MASTERS),
        "zero-size": "as nn.Linear does, from which it is derived",
    }
    # The wheel of 0.4 cannot be imported: nanotron.logging and nanotron.config import each other.
    requires = (Requirement("nanotron", "0.2", "nanotron.parallel.tensor_parallel.nn"),)
    procedures_declined: Mapping[str, str] = {"deepcopy": _KEEPS_GROUP, "pickle": _KEEPS_GROUP}

    def build(self, layer: Layer, group: dist.ProcessGroup) -> torch.nn.Module:
        from nanotron.parallel.tensor_parallel.enum import TensorParallelLinearMode
        from nanotron.parallel.tensor_parallel.nn import TensorParallelColumnLinear, TensorParallelRowLinear

        column = layer.kind == "column"
        cls: Any = TensorParallelColumnLinear if column else TensorParallelRowLinear
        overlap = {"async_communication": True} if self.overlaps else {}
        module: torch.nn.Module = cls(
            layer.in_features,
            layer.out_features,
            group,
            TensorParallelLinearMode.ALL_REDUCE,
            bias=layer.wants_bias,
            device=layer.device,
            dtype=layer.dtype,
            **overlap,
        )
        own: dict[str, torch.Tensor | None] = {"weight": layer.weight, "bias": layer.bias}
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                master = own[name]
                assert master is not None
                # nanotron's own record of which slice of the master this rank holds.
                pairs = parameter.get_sharded_info().local_global_slices_pairs if parameter.is_sharded else ()
                for pair in pairs:
                    parameter[pair.local_slices] = master[pair.global_slices]
                if not pairs:
                    parameter.copy_(master)
        return module


class NanotronAsync(Nanotron):
    """TensorParallelColumnLinear with async_communication=True: its all-reduce runs under a product."""

    name = "nanotron async"
    layers = ("column",)
    overlaps = True
    procedures_declined: Mapping[str, str] = {
        **Nanotron.procedures_declined,
        **dict.fromkeys(
            ("compile", "compile-inductor"), "torch.compile makes no graph of a node that asserts a variable"
        ),
    }

    def set_up(self, group: Group) -> None:
        # What the node asserts before it runs, on a CPU too.
        os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
