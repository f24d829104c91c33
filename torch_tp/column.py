"""The linear layer whose output features are cut over the ranks."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torch_tp import checks
from torch_tp.autocast import autocast
from torch_tp.functions import gather_along
from torch_tp.group import Group, GroupLike
from torch_tp.linear import Options, ShardedLinear, from_dense
from torch_tp.placements import Placement, Shard
from torch_tp.products import column_product


class ColumnParallelLinear(ShardedLinear):
    """`Y = X W^T + b` with `W` cut along dim 0, its output features.

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
    | backward | one all-reduce of the input's gradient, only if the input needs one |

    At P = 1 this is `torch.nn.Linear`: same bits, no communication, no autograd node of its own.

    Args:
        in_features: I, at least 1.
        out_features: O, a multiple of P.
        bias: whether there is a bias; it starts at zero.
        master_weight: the whole `[O, I]` weight, the same on all ranks, of which this rank's shard is copied. None
            draws what `torch.nn.Linear` would draw, see `reset_parameters`.
        master_bias: the whole `[O]` bias, likewise. None is zero.
        gather_output: give every rank the whole output.
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

    weight_placement: Placement = Shard(0)
    bias_placement: Placement = Shard(0)
    flag_names: ClassVar[tuple[str, ...]] = ("gather_output", "skip_bias_add")

    gather_output: bool
    skip_bias_add: bool

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        master_weight: Tensor | None = None,
        *,
        master_bias: Tensor | None = None,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        group: GroupLike | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            Options(
                in_features, out_features, bias, master_weight, master_bias, group, rank, world_size, device, dtype
            ),
            {"gather_output": gather_output, "skip_bias_add": skip_bias_add},
        )

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        group: GroupLike | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> ColumnParallelLinear:
        """This rank's part of a dense layer that all ranks hold alike.

        Copies; keeps values, dtype, device, requires_grad and training mode. Raises what the constructor does, and a
        TypeError if `linear` is no `torch.nn.Linear`.
        """
        options: dict[str, Any] = {"gather_output": gather_output, "skip_bias_add": skip_bias_add}
        options |= {"group": group, "rank": rank, "world_size": world_size}
        made: ColumnParallelLinear = from_dense(cls, cls.__name__, linear, ("in_features", "out_features"), (), options)
        return made

    @property
    def out_features_per_rank(self) -> int:
        """O / P, the output features of this rank."""
        return self.out_features // self._group.size

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
        if torch.is_grad_enabled() and x.requires_grad:
            group.require(self._name(), "the gradient of an input that requires one needs an all-reduce")
        if self.gather_output:
            group.require(self._name(), "gather_output=True needs an all-gather")
        y = column_product(*autocast(x, weight, bias), group)
        return self._gathered(y, group) if self.gather_output else y

    def _gathered(self, y: Tensor, group: Group) -> Tensor:
        return gather_along(y, y.dim() - 1, group)

    def _flag_conflict(self, bias: bool) -> str:
        if bias and self.gather_output and self.skip_bias_add:
            return (
                "gather_output=True and skip_bias_add=True with bias=True would return a whole output and a sharded "
                "bias; set one of the three to False"
            )
        return ""
