"""The linear layer whose input features are sharded over the ranks."""

from __future__ import annotations

from typing import ClassVar, Self, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_tp import checks
from torch_tp.autocast import autocast
from torch_tp.functions import scatter_along
from torch_tp.group import Group
from torch_tp.layers.linear import LayerOptions, ShardedLinear
from torch_tp.layers.products import row_product
from torch_tp.placements import Replicate, Shard


class RowParallelLinear(ShardedLinear):
    """`Y = X W^T + b` with `W` sharded along dim 1, its input features.

    O = `out_features`, I = `in_features`, P ranks in the group, r this rank in it; `...` is any number of
    batch dimensions, none and empty ones included.

    | | on rank r | shape |
    | --- | --- | --- |
    | weight | `W_r = W[:, r I/P : (r+1) I/P]` | `[O, I/P]` |
    | bias | `b`, replicated | `[O]` |
    | input | `X_r`, sharded along its last dimension | `[..., I/P]` |
    | input, `input_is_parallel=False` | `X`, replicated; the layer takes its shard `X_r` | `[..., I]` |
    | output | `Y = sum_r X_r W_r^T + b`, replicated, the bias in it once | `[..., O]` |
    | output, `reduce_output=False` | `X_r W_r^T`, partial, no bias | `[..., O]` |
    | upstream gradient | `G`, replicated, in either case | `[..., O]` |
    | gradient of the input | `G W_r`, sharded | `[..., I/P]` |
    | gradient of the input, `input_is_parallel=False` | `G W`, replicated | `[..., I]` |
    | gradient of the weight | `G^T X_r`, over the flattened batch | `[O, I/P]` |
    | gradient of the bias | `G` summed over the batch, replicated | `[O]` |

    | collectives at P > 1 | |
    | --- | --- |
    | forward | one all-reduce of `Y`; `reduce_output=False`: none |
    | backward | none; `input_is_parallel=False`: one all-gather, only if the input needs a gradient |

    At P = 1 this is `torch.nn.Linear`: same bits, no communication, no autograd node of its own.

    Args:
        in_features: I, a multiple of P.
        out_features: O, at least 1.
        bias: whether there is a bias; it starts at zero.
        master_weight: the unsharded `[O, I]` weight, the same on all ranks, of which this rank's shard is copied. None
            draws what `torch.nn.Linear` would draw, see `reset_parameters`.
        master_bias: the `[O]` bias, the same on all ranks, copied. None is zero.
        input_is_parallel: the input is already sharded; False: it is replicated.
        reduce_output: all-reduce the output; False leaves it partial, and needs `bias=False` or `skip_bias_add=True`.
        skip_bias_add: return `(Y without bias, bias)`, the bias being the replicated parameter or None.
        group: a ProcessGroup or one-dimensional DeviceMesh. None: the group of `init_tensor_parallel`, else the world.
        rank, world_size: in place of a group, build the shard of this rank without any process group. Its forward
            raises NoProcessGroupError where it, or the backward it could start, would communicate.
        device, dtype: of the parameters; by default those of the master weight (else of the master bias), or torch's.

    Raises:
        ValueError: a size that is no positive integer, or that P does not divide; a master of another shape;
            `reduce_output=False` with a bias that is added.
        TypeError: a dtype that is not floating-point; in the forward, an input whose dtype is not the weight's
            (outside autocast).
        RuntimeError: this process is not in `group`. NoProcessGroupError, a subclass: there is no process group.

    Source: Megatron-LM (arXiv:1909.08053), section 3; `RowParallelLinear` in
    `megatron/core/tensor_parallel/layers.py` of that project.
    """

    flag_names: ClassVar[tuple[str, ...]] = ("input_is_parallel", "reduce_output", "skip_bias_add")

    input_is_parallel: bool
    reduce_output: bool

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        master_weight: Tensor | None = None,
        *,
        input_is_parallel: bool = True,
        reduce_output: bool = True,
        **options: Unpack[LayerOptions],
    ) -> None:
        flags = {"input_is_parallel": input_is_parallel, "reduce_output": reduce_output}
        super().__init__(in_features, out_features, bias, options, **flags)
        if bias and not self.reduce_output and not self.skip_bias_add:
            text = "reduce_output=False with bias=True would add the bias to every term of the sum; "
            checks.refuse(self._name(), text + "set bias=False or skip_bias_add=True")
        self._find_group(options)
        self._check_divisible("in_features", self.in_features)
        self._make_parameters(bias, master_weight, options, (Shard(1), Replicate()))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        input_is_parallel: bool = True,
        reduce_output: bool = True,
        **options: Unpack[LayerOptions],
    ) -> Self:
        """This rank's part of a dense layer that is the same on all ranks.

        Copies values, requires_grad and training mode; dtype and device are those of `linear` unless `options` say
        otherwise. Raises what the constructor does, and a TypeError if `linear` is no `torch.nn.Linear`.
        """
        flags = {"input_is_parallel": input_is_parallel, "reduce_output": reduce_output}
        return cls._from_dense(linear, None, {**flags, **options})

    @property
    def in_features_per_rank(self) -> int:
        """I / P, the input features of this rank."""
        return self.in_features // self._group.size

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, nn.Parameter | None]:
        """Apply the layer to this rank's `[..., in_features / P]`, or to a replicated `[..., in_features]`.

        Shapes and errors as in the class's tables.
        """
        weight = self.weight  # once: a module looks its parameters up slowly
        bias = None if self.skip_bias_add else self.bias
        if self._group.size == 1:
            y = self._single(x, weight, bias)
        else:
            group = self._enter(x, replicated=not self.input_is_parallel)
            if self.input_is_parallel:
                width, means = self.in_features_per_rank, "in_features / P"
            else:
                width, means = self.in_features, "in_features"
            checks.check_input(self, x, weight, width, means, group.size)
            y = self._parallel(x, weight, bias, group)
        return (y, self.bias) if self.skip_bias_add else y

    def _parallel(self, x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
        if self.reduce_output:
            group.require(self._name(), "reduce_output=True needs an all-reduce")
        if not self.input_is_parallel and torch.is_grad_enabled() and x.requires_grad:
            group.require(self._name(), "the gradient of a replicated input needs an all-gather")
        # Cast before the shard is taken, so that the all-gather of the gradient is in the narrow dtype.
        x, weight, bias = autocast(x, weight, bias)
        if not self.input_is_parallel:
            x = scatter_along(x, x.dim() - 1, group)
        return row_product(x, weight, bias, group) if self.reduce_output else F.linear(x, weight)
