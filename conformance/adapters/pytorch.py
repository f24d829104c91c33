"""The base class for PyTorch layers: everything but building the layer.

    from conformance.adapters.pytorch import Layer, TorchAdapter

    class Mine(TorchAdapter):
        layers = ("column", "row")

        def build(self, layer: Layer, group):
            cls = MyColumnLinear if layer.kind == "column" else MyRowLinear
            module = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, process_group=group)
            module.load_full(layer.weight, layer.bias)
            return module

and `pytest conformance --impl mine.py:Mine`. This module is imported inside ranks only.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from conformance.adapters.layer import Layer
from conformance.adapters.models import ParallelisesModels
from conformance.adapters.protocol import Declaration, Group, Requirement
from conformance.adapters.torch_procedures import Procedures
from conformance.adapters.torch_session import TorchSession
from spec import STANDARD, Case
from spec.case import FUSED
from spec.faults import arguments


def pin_numerics() -> dict[str, str]:
    """Switch off what lets products round or accumulate below their dtype, and say how the switches stand."""
    torch.set_float32_matmul_precision("highest")
    matmul = torch.backends.cuda.matmul
    torch.backends.cudnn.allow_tf32 = False
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": str(matmul.allow_tf32),
        "bf16_reduced_precision_reduction": str(matmul.allow_bf16_reduced_precision_reduction),
        "fp16_reduced_precision_reduction": str(matmul.allow_fp16_reduced_precision_reduction),
    }


class TorchAdapter:
    """An implementation in PyTorch, one process per rank.

    A subclass sets `layers` and writes `build`; the rest has defaults for a module with parameters `weight` and `bias`.

    Attributes:
        name: for the header.
        layers: which of column, row, copy, reduce, gather, scatter it has, and of merged and qkv, which it may lack.
        flags: the layers' flags that it has; cases that need another are declined.
        procedures_declined: procedure -> reason.
        accepts: faults that it accepts on purpose -> reason (other semantics; never a failure).
        strict: SHOULD clauses count as MUST.
        deadline: seconds that a case may take before its ranks count as hanging; 0 is what the suite gives.
        draws_initial_values: `build` works with weight None and the module has `reset_parameters`.
        observable: False where the layer's transport is not torch.distributed.
        semantics: what it defines otherwise (see `spec.semantics`); it is judged by that.
        requires: the packages that it comes from.
    """

    controller = False
    name = ""
    layers: Sequence[str] = ("column", "row")
    flags: Sequence[str] = ("bias",)
    procedures_declined: Mapping[str, str] = {}
    accepts: Mapping[str, str] = {}
    strict = False
    deadline = 0.0
    draws_initial_values = False
    observable = True
    semantics = STANDARD
    requires: Sequence[Requirement] = ()

    def build(self, layer: Layer, group: dist.ProcessGroup) -> torch.nn.Module | Callable[[torch.Tensor], torch.Tensor]:
        """The layer, holding its shard of the masters; for the four functions a callable of one tensor."""
        raise NotImplementedError(f"{type(self).__name__}.build: return the layer for a Layer and a process group")

    def parameters(self, module: torch.nn.Module) -> dict[str, torch.nn.Parameter | None]:
        """The module's parameters under the names weight and bias; None where it has no bias."""
        return {"weight": module.weight, "bias": module.bias}

    def call(self, module: Any, x: torch.Tensor) -> Any:
        """One forward; what it returns is a tensor, or a pair (output, bias) for skip_bias_add."""
        return module(x)

    def local(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part of a parameter, gradient or output, where the implementation has tensors of its own type."""
        return tensor

    def set_up(self, group: Group) -> None:
        """Once per group, before the first build."""

    def tear_down(self) -> None:
        """Once per group, at its end."""

    def versions(self) -> dict[str, str]:
        """Further versions for the header."""
        return {requirement.distribution: requirement.version for requirement in self.requires}

    def unsupported(self, case: Case) -> str:
        """A further reason to decline a case, or an empty string."""
        return ""

    def declare(self) -> Declaration:
        """What the implementation says of itself, and the numerics switches of this process."""
        versions = {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__}
        flags = pin_numerics()
        name = self.name or type(self).__name__
        versions |= self.versions()
        notes = tuple(note for requirement in self.requires if (note := requirement.note()))
        return Declaration(
            name,
            versions,
            self.strict,
            flags=flags,
            semantics=self.semantics,
            notes=notes,
            deadline=self.deadline,
            models=isinstance(self, ParallelisesModels),
            fused=[layer for layer in FUSED if layer in self.layers],
        )

    def declines(self, case: Case) -> str:
        """Why this implementation does not have this case, or an empty string."""
        for kind in ("column", "row") if case.layer == "pair" else (case.layer,):
            if kind not in self.layers:
                return f"has no {kind}"
        asked = {**vars(case), **arguments(case).flags}  # a fault may ask for flags that its case has not
        wanted = [name for name in ("bias", "gather_output", "skip_bias_add") if asked[name]]
        wanted += [name for name in ("input_is_parallel", "reduce_output") if not asked[name]]
        for name in wanted:
            if name not in self.flags:
                return f"has no {name}"
        if case.procedure in self.procedures_declined:
            return self.procedures_declined[case.procedure]
        if case.procedure == "init" and not self.draws_initial_values:
            return "draws no initial values"
        if case.fault in self.accepts:
            return f"accepts it on purpose: {self.accepts[case.fault]}"
        return self.unsupported(case)

    def open(self, group: Group) -> Any:
        """A session that runs cases on one group."""
        pin_numerics()
        return Procedures(TorchSession(self, group))
