"""What the suite asks of a PyTorch adapter: a layer's arguments, and the few methods that build and call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist

from conformance.adapters.protocol import Group
from spec import Semantics


@dataclass(frozen=True)
class Layer:
    """What an adapter is asked to build: the arguments of one layer, or of one of the four functions.

    Attributes:
        kind: column, row, copy, reduce, gather, scatter, merged or qkv.
        in_features, out_features: of the whole layer (a bad argument may be anything here).
        weight, bias: the master tensors, whole, on `device`: `[out_features, in_features]` and `[out_features]` or
            None. Both None where the layer is to draw its own (`wants_bias` says whether it has a bias).
        flags: column, merged: gather_output, skip_bias_add; row: input_is_parallel, reduce_output, skip_bias_add; qkv:
            skip_bias_add.
        dim: of gather and scatter.
        rank, size: in the group.
        parts: of merged the sizes of its parts, whose sum is out_features.
        heads, kv_heads, head_size: of qkv, whose out_features is (heads + 2 kv_heads) head_size.
    """

    kind: str
    in_features: Any
    out_features: Any
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    wants_bias: bool
    dtype: torch.dtype
    device: torch.device
    rank: int
    size: int
    flags: Mapping[str, bool] = field(default_factory=dict[str, bool])
    dim: int = -1
    parts: tuple[Any, ...] = ()
    heads: Any = 0
    kv_heads: Any = 0
    head_size: Any = 0


class BuildsLayers(Protocol):
    """The part of `TorchAdapter` that sessions use; its docstrings are there."""

    @property
    def observable(self) -> bool: ...

    @property
    def semantics(self) -> Semantics: ...

    def build(
        self, layer: Layer, group: dist.ProcessGroup
    ) -> torch.nn.Module | Callable[[torch.Tensor], torch.Tensor]: ...

    def parameters(self, module: Any) -> dict[str, torch.nn.Parameter | None]: ...

    def call(self, module: Any, x: torch.Tensor) -> Any: ...

    def local(self, tensor: torch.Tensor) -> torch.Tensor: ...

    def set_up(self, group: Group) -> None: ...

    def tear_down(self) -> None: ...
