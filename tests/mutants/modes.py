"""Mistakes that show in one mode only: autocast, no gradients, some tensors frozen, checkpointed, compiled.

Implementations for `--impl tests/mutants/modes.py:<class>`; what is to be said of each is in `modes.toml`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from conformance.adapters.protocol import Group
from conformance.adapters.pytorch import Layer
from conformance.adapters.torch_tp import TorchTp
from torch_tp import collectives
from torch_tp.autocast import without_autocast
from torch_tp.collectives import all_reduce, start_all_reduce
from torch_tp.layers import column, products, row
from torch_tp.layers.products import column_product, row_product


class AutocastIgnored(TorchTp):
    """Under autocast the column layer computes in the dtype of its parameters."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            with without_autocast(x):
                return column_product(x, weight, bias, group)

        column.autocast = lambda x, weight, bias: (x, weight, bias)
        column.column_product = product


class AutocastReducesWide(TorchTp):
    """Under autocast the row layer sums in float32, which doubles what it sends."""

    def set_up(self, group: Group) -> None:
        def wide(buffer: Tensor, group: Any, what: str) -> Tensor:
            return all_reduce(buffer.float(), group, what).to(buffer.dtype)

        collectives.all_reduce = wide


class GradientsInBfloat16(TorchTp):
    """The row layer's weight keeps its gradient in bfloat16."""

    def build(self, layer: Layer, group: dist.ProcessGroup) -> Any:
        made = super().build(layer, group)
        if layer.kind == "row":
            made.weight.grad_dtype = torch.bfloat16
        return made


class GraphWithoutGrad(TorchTp):
    """The row layer records a graph under no_grad."""

    def set_up(self, group: Group) -> None:
        row.row_product = torch.enable_grad()(row_product)


class PlainUnderInference(TorchTp):
    """Under inference_mode the column layer makes plain tensors."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            if not torch.is_inference_mode_enabled():
                return column_product(x, weight, bias, group)
            with torch.inference_mode(False), torch.no_grad():
                return column_product(x, weight, bias, group)

        column.column_product = product


class WithoutGradWithoutBias(TorchTp):
    """The column layer forgets its bias where nothing is recorded, as in the first pass of a checkpoint."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return column_product(x, weight, bias if torch.is_grad_enabled() else None, group)

        column.column_product = product


class FrozenWeightStopsInput(TorchTp):
    """With a frozen weight the row layer's input gets no gradient either: NVIDIA/Megatron-LM#548."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return row_product(x if weight.requires_grad else x.detach(), weight, bias, group)

        row.row_product = product


class FrozenLosesBias(TorchTp):
    """The column layer's bias gets its gradient in a branch for layers of which nothing is frozen."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            whole = bias is None or (x.requires_grad and weight.requires_grad)
            return column_product(x, weight, bias if whole else bias.detach(), group)

        column.column_product = product


class _AlwaysReduces(products._ColumnProduct):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        result = products._ColumnProduct.backward(ctx, grad)
        if not ctx.needs_input_grad[0]:
            all_reduce(grad.sum().reshape(1), ctx.group, "ColumnParallelLinear backward")
        return result


class FrozenInputReduced(TorchTp):
    """The column layer sums in its backward though nobody wants the input's gradient."""

    def set_up(self, group: Group) -> None:
        column.column_product = _AlwaysReduces.apply


class FrozenGetsGradient(TorchTp):
    """The row layer's forward makes its weight trainable."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            return row_product(x, weight.requires_grad_(), bias, group)

        row.row_product = product


class BreaksGraph(TorchTp):
    """The row layer looks at the values of its input, which a compiler cannot."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            if x.isnan().any():
                raise ValueError("the input has a NaN")
            return row_product(x, weight, bias, group)

        row.row_product = product


class CompiledNotReduced(TorchTp):
    """Compiled, a reduction returns what it was given: vllm-project/vllm#39844."""

    def set_up(self, group: Group) -> None:
        def start(buffer: Tensor, group: Any, what: str) -> Callable[[], Tensor]:
            return (lambda: buffer) if torch.compiler.is_compiling() else start_all_reduce(buffer, group, what)

        collectives.start_all_reduce = start


class CompiledInputGradientNotReduced(TorchTp):
    """Compiled, the column layer is a plain product, whose backward sums nothing."""

    def set_up(self, group: Group) -> None:
        def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
            if torch.compiler.is_compiling():
                return F.linear(x, weight, bias)
            return column_product(x, weight, bias, group)

        column.column_product = product
