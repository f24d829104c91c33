"""The linear layer whose output features are sharded over the ranks, and inputs that several such layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from torch_tp import checks
from torch_tp.autocast import autocast
from torch_tp.functions import gather_along
from torch_tp.group import Group
from torch_tp.layers.gradients import SharedGradient
from torch_tp.layers.linear import LayerOptions, ShardedLinear
from torch_tp.layers.products import column_product
from torch_tp.layers.shared_input import SharedInput
from torch_tp.placements import Shard


class ColumnParallelLinear(ShardedLinear):
    """`Y = X W^T + b` with `W` sharded along dim 0, its output features.

    O = `out_features`, I = `in_features`, P ranks in the group, r this rank in it; `...` is any number of
    batch dimensions, none and empty ones included.

    | | on rank r | shape |
    | --- | --- | --- |
    | weight | `W_r = W[r O/P : (r+1) O/P, :]` | `[O/P, I]` |
    | bias | `b_r = b[r O/P : (r+1) O/P]` | `[O/P]` |
    | input | `X`, replicated | `[..., I]` |
    | output | `Y_r = X W_r^T + b_r`, sharded | `[..., O/P]` |
    | output, `gather_output=True` | `Y`, replicated | `[..., O]` |
    | gradient of the input | `sum_r G_r W_r`, replicated | `[..., I]` |
    | gradient of the weight | `G_r^T X`, over the flattened batch | `[O/P, I]` |
    | gradient of the bias | `G_r` summed over the batch | `[O/P]` |

    | collectives at P > 1 | |
    | --- | --- |
    | forward | none; `gather_output=True`: one all-gather of `Y_r` |
    | backward | one all-reduce of the input's gradient, only if the input needs one; see `share_input` |

    At P = 1 this is `torch.nn.Linear`: same bits, no communication, no autograd node of its own.

    Args:
        in_features: I, at least 1.
        out_features: O, a multiple of P.
        bias: whether there is a bias; it starts at zero.
        master_weight: the unsharded `[O, I]` weight, the same on all ranks, of which this rank's shard is copied. None
            draws what `torch.nn.Linear` would draw, see `reset_parameters`.
        master_bias: the unsharded `[O]` bias, likewise. None is zero.
        gather_output: give every rank the unsharded output.
        skip_bias_add: return `(Y without bias, bias)`, the bias being this rank's parameter or None.
        group: a ProcessGroup or one-dimensional DeviceMesh. None: the group of `init_tensor_parallel`, else the world.
        rank, world_size: in place of a group, build the shard of this rank without any process group. Its forward
            raises NoProcessGroupError where it, or the backward it could start, would communicate.
        device, dtype: of the parameters; by default those of the master weight (else of the master bias), or torch's.

    Raises:
        ValueError: a size that is no positive integer, or that P does not divide; a master of another shape;
            `gather_output` and `skip_bias_add` together with a bias.
        TypeError: a dtype that is not floating-point; in the forward, an input whose dtype is not the weight's
            (outside autocast).
        RuntimeError: this process is not in `group`. NoProcessGroupError, a subclass: there is no process group.

    Source: Megatron-LM (arXiv:1909.08053), section 3; `ColumnParallelLinear` in
    `megatron/core/tensor_parallel/layers.py` of that project.
    """

    flag_names: ClassVar[tuple[str, ...]] = ("gather_output", "skip_bias_add")

    weight_placement: Shard
    bias_placement: Shard
    gather_output: bool = False
    # What the layer has in common with others that are called with the same input; `share_input` sets it.
    shared_input: SharedInput | None = None
    _gradient_rule: SharedGradient | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        master_weight: Tensor | None = None,
        *,
        gather_output: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(in_features, out_features, bias, options, gather_output=gather_output)
        self._check_flags(bias)
        self._find_group(options)
        self._check_divisible("out_features", self.out_features)
        self._make_parameters(bias, master_weight, options, (Shard(0), Shard(0)))

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, gather_output: bool = False, **options: Unpack[LayerOptions]) -> Self:
        """This rank's part of a dense layer that is the same on all ranks.

        Copies values, requires_grad and training mode; dtype and device are those of `linear` unless `options` say
        otherwise. Raises what the constructor does, and a TypeError if `linear` is no `torch.nn.Linear`.
        """
        return cls._from_dense(linear, None, {"gather_output": gather_output, **options})

    @property
    def out_features_per_rank(self) -> int:
        """The output features of this rank: O / P, and more where several ranks have the same ones."""
        return sum(self.weight_placement.widths(self.out_features, self._group.size))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, nn.Parameter | None]:
        """Apply the layer to a replicated `[..., in_features]`; shapes and errors as in the class's tables."""
        weight = self.weight  # once: a module looks its parameters up slowly
        bias = None if self.skip_bias_add else self.bias
        if self._group.size == 1:
            y = self._single(x, weight, bias)
        else:
            group = self._enter(x, replicated=True)
            checks.check_input(self, x, weight, self.in_features, "in_features", group.size)
            y = self._parallel(x, weight, bias, group)
        return (y, self.bias) if self.skip_bias_add else y

    def _parallel(self, x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
        reduced_by: Group | None = group
        if torch.is_grad_enabled() and x.requires_grad:
            group.require(self._name(), "the gradient of an input that requires one needs an all-reduce")
            if self.shared_input is not None and not torch.compiler.is_compiling():
                x, reduced_by = self.shared_input.copy(x, group, self), None
        if self.gather_output:
            group.require(self._name(), "gather_output=True needs an all-gather")
        x, weight, bias = autocast(x, weight, bias)
        if self.weight_placement.copies:
            weight = self._with_shared_gradient(weight)
            bias = None if bias is None else self._with_shared_gradient(bias)
        y = column_product(x, weight, bias, reduced_by)
        return self._gathered(y, group) if self.gather_output else y

    def _gathered(self, y: Tensor, group: Group) -> Tensor:
        """All ranks' outputs, `[..., O]`, with the ranks' shards of each part next to each other."""
        by_rank = gather_along(y, y.dim() - 1, group)
        if not self.weight_placement.sizes:
            return by_rank
        widths = self.weight_placement.widths(self.out_features, group.size)
        parts = by_rank.unflatten(-1, (group.size, y.shape[-1])).split(widths, dim=-1)
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)

    def _with_shared_gradient(self, parameter: Tensor) -> Tensor:
        if not (self.weight_placement.copied and torch.is_grad_enabled() and parameter.requires_grad):
            return parameter
        if self._gradient_rule is None:
            self._gradient_rule = SharedGradient.of(self.weight_placement, self._resolved())
        self._gradient_rule.require(self._name(), "the gradient of a key or value head with copies needs an all-reduce")
        return self._gradient_rule(parameter)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_gradient_rule": None})  # its process groups are made anew

    def _check_flags(self, bias: bool) -> None:
        if bias and self.gather_output and self.skip_bias_add:
            text = "gather_output=True and skip_bias_add=True with bias=True would return a whole output and a sharded "
            checks.refuse(self._name(), text + "bias; set one of the three to False")


def share_input(layers: Sequence[ColumnParallelLinear]) -> None:
    """Let layers that a model calls with one and the same tensor all-reduce that tensor's gradient once.

    Without it each layer all-reduces its own part of the gradient. The layers recognise the tensor by identity and
    version: a layer that is called with another one, or not at all, takes nothing from the others, and one that is
    called twice adds its gradient twice. Under torch.compile each layer reduces for itself. Copies and pickles of a
    model share inputs as the model does. Called with fewer than two layers, this ends their sharing.

    Must be called alike on all ranks.

    Raises:
        TypeError: a layer is none of the column-parallel ones.
        ValueError: the layers differ in their group or in `in_features`.
    """
    owner = "torch_tp.share_input"
    for layer in layers:
        if not isinstance(layer, ColumnParallelLinear):
            checks.refuse(owner, f"got a {type(layer).__name__}; it must be a column-parallel layer", TypeError)
    facts: dict[str, list[object]] = {
        "in_features": [layer.in_features for layer in layers],
        "ranks": [layer._group.global_ranks or (layer.rank, layer.world_size) for layer in layers],
    }
    for name, values in facts.items():
        checks.refuse(owner, "" if len(set(values)) < 2 else f"the layers differ in {name}: {values}")
    members = {id(layer) for layer in layers}
    shared = SharedInput(len(members)) if len(members) > 1 else None
    for layer in layers:
        layer.shared_input = shared
