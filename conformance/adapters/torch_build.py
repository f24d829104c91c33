"""Building the layer of a case with an adapter: its arguments, its masters, its parameters by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from conformance.adapters.layer import BuildsLayers, Layer
from conformance.adapters.protocol import Group
from conformance.adapters.torch_run import Owned, owned
from spec import Case, Inputs
from spec.contract import needs_gradient
from spec.faults import Arguments, arguments


@dataclass(frozen=True)
class Built:
    """A layer and what belongs to it.

    Attributes:
        module: an nn.Module, or for the four functions a callable.
        parameters: its parameters as the contract names them.
        masters: the whole tensors it was cut from, still the caller's.
    """

    module: Any
    parameters: Mapping[str, torch.Tensor | None]
    masters: Mapping[str, Owned]


class Pair(nn.Module):
    """Column, relu, row."""

    def __init__(self, adapter: BuildsLayers, column: nn.Module, row: nn.Module) -> None:
        super().__init__()
        self._adapter, self.column, self.row = adapter, column, row

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        between = torch.relu(self._output(self.column, x))
        return self._output(self.row, between)

    def _output(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        result = self._adapter.call(module, x)
        output: torch.Tensor = result[0] if self._adapter.semantics.always_pair else result
        return output


def build(adapter: BuildsLayers, group: Group, case: Case, data: Inputs) -> Built:
    """The layer of a case, holding its shards of the masters, frozen as the case says."""
    device = group.device or torch.device("cpu")
    masters = {f"master_{name}": owned(value, case.dtype, device) for name, value in data.parameters.items()}
    whole = {name.removeprefix("master_"): master.tensor for name, master in masters.items()}
    if case.layer == "pair":
        module, parameters = _pair(adapter, group, case, whole)
    else:
        module = adapter.build(layer(case, group, arguments(case), **whole), group.handle)
        parameters = named(adapter, case, module)
    needed = needs_gradient(case)
    for name, parameter in parameters.items():
        if parameter is not None and name not in needed:
            parameter.requires_grad_(False)
    return Built(module, parameters, masters)


def named(adapter: BuildsLayers, case: Case, module: Any) -> dict[str, torch.Tensor | None]:
    """The parameters of a module as the contract names them; none for the four functions."""
    if case.layer == "pair":
        first, second = adapter.parameters(module.column), adapter.parameters(module.row)
        return {**first, **{f"{name}2": parameter for name, parameter in second.items()}}
    return dict(adapter.parameters(module)) if case.linear else {}


def layer(case: Case, group: Group, args: Arguments, weight: Any = None, bias: Any = None, **changes: Any) -> Layer:
    """What the adapter is asked to build."""
    asked = Layer(
        kind=case.layer,
        in_features=args.in_features,
        out_features=args.out_features,
        weight=weight,
        bias=bias,
        wants_bias=case.bias,
        dtype=getattr(torch, case.dtype),
        device=group.device or torch.device("cpu"),
        rank=group.rank,
        size=group.size,
        flags=args.flags,
        dim=args.dim if args.dim is not None else case.dim,
        parts=args.parts,
        heads=args.heads,
        kv_heads=args.kv_heads,
        head_size=args.head_size,
    )
    return replace(asked, **changes)


def _pair(adapter: BuildsLayers, group: Group, case: Case, whole: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    middle = case.hidden_features
    column_flags = {"gather_output": case.gather_output, "skip_bias_add": False}
    row_flags = {"input_is_parallel": case.input_is_parallel, "reduce_output": True, "skip_bias_add": False}
    args = arguments(case)
    first = layer(case, group, args, whole["weight"], whole.get("bias"), kind="column", out_features=middle)
    second = layer(case, group, args, whole["weight2"], whole.get("bias2"), kind="row", in_features=middle)
    column = adapter.build(replace(first, flags=column_flags), group.handle)
    row = adapter.build(replace(second, flags=row_flags), group.handle)
    assert isinstance(column, nn.Module)
    assert isinstance(row, nn.Module)
    module = Pair(adapter, column, row)
    return module, named(adapter, case, module)
