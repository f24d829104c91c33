"""Column-parallel layers that are several projections in one: gate and up, and query, key and value.

They differ from `ColumnParallelLinear` by their arguments and by the placement that their constructors make of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from torch_tp import checks
from torch_tp.layers.column import ColumnParallelLinear
from torch_tp.layers.linear import LayerOptions, ShardedLinear
from torch_tp.placements import Shard


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several column-parallel layers of one input in one product, each sharded by itself.

    O_0, O_1, ... = `output_sizes`, O their sum, I = `in_features`, P ranks in the group, r this rank in it. The
    unsharded weight is the parts' weights one below the other, as checkpoints have them; rank r has its shard of
    **each** part.

    | | on rank r | shape |
    | --- | --- | --- |
    | weight | `W_i[r O_i/P : (r+1) O_i/P, :]` for each i, one below the other | `[O/P, I]` |
    | bias | `b_i[r O_i/P : (r+1) O_i/P]` for each i, joined | `[O/P]` |
    | input | `X`, replicated | `[..., I]` |
    | output | the parts' shards side by side; `split` takes them apart | `[..., O/P]` |
    | output, `gather_output=True` | `[Y_0, Y_1, ...]`, unsharded parts side by side, replicated | `[..., O]` |

    Gradients and collectives are those of `ColumnParallelLinear`: one all-reduce of the input's gradient for all parts.
    Every part equals the output of a column layer with that part alone, up to rounding: for another shape a kernel may
    add in another order.

    Args:
        in_features: I, at least 1.
        output_sizes: O_0, O_1, ..., each a multiple of P.
        master_weight, master_bias: the unsharded `[O, I]` weight and `[O]` bias, parts in order.
        bias, gather_output, skip_bias_add, group, rank, world_size, device, dtype: as of `ColumnParallelLinear`.

    Raises:
        ValueError: no sizes, a size that is no positive integer, or that P does not divide; else as of
            `ColumnParallelLinear`.

    Source: `MergedColumnParallelLinear` in `vllm/model_executor/layers/linear.py` of vLLM.
    """

    size_names: ClassVar[tuple[str, ...]] = ("in_features", "output_sizes")

    output_sizes: tuple[int, ...]

    def __init__(
        self,
        in_features: int,
        output_sizes: Sequence[int],
        bias: bool = True,
        master_weight: Tensor | None = None,
        *,
        gather_output: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        self.output_sizes = sizes = _positive(self._name(), output_sizes)
        ShardedLinear.__init__(self, in_features, sum(sizes), bias, options, gather_output=gather_output)
        self._check_flags(bias)
        self._find_group(options)
        for number, size in enumerate(sizes):
            self._check_divisible(f"output_sizes[{number}]", size)
        self._make_parameters(bias, master_weight, options, (Shard(0, sizes), Shard(0, sizes)))

    @classmethod
    def from_linear(  # type: ignore[override]  # a dense layer does not say what its parts are
        cls,
        linear: nn.Linear,
        output_sizes: Sequence[int],
        *,
        gather_output: bool = False,
        **options: Unpack[LayerOptions],
    ) -> Self:
        """This rank's part of a dense layer that consists of several parts already.

        As `ColumnParallelLinear.from_linear`.
        """
        return cls._from_dense(linear, (output_sizes,), {"gather_output": gather_output, **options})

    @classmethod
    def from_linears(
        cls, linears: Sequence[nn.Linear], *, gather_output: bool = False, **options: Unpack[LayerOptions]
    ) -> Self:
        """This rank's part of dense layers of one input that are the same on all ranks, the first part first.

        As `ColumnParallelLinear.from_linear`.

        Raises:
            TypeError: one of them is no `torch.nn.Linear`.
            ValueError: there is none, or they differ in in_features, in having a bias, or in requires_grad.
        """
        return cls.from_linear(
            _joined(cls.__name__, linears),
            [linear.out_features for linear in linears],
            gather_output=gather_output,
            **options,
        )

    @property
    def output_sizes_per_rank(self) -> tuple[int, ...]:
        """O_i / P, how wide each part is in this rank's output."""
        return self.weight_placement.widths(self.out_features, self._group.size)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The parts of an output, as views: this rank's shards, or the unsharded parts of a gathered output."""
        sizes = self.output_sizes if self.gather_output else self.output_sizes_per_rank
        parts: tuple[Tensor, ...] = y.split(sizes, dim=-1)
        return parts


class QKVParallelLinear(ColumnParallelLinear):
    """Query, key and value projections in one product, sharded by heads.

    H = `total_num_heads`, K = `total_num_kv_heads`, D = `head_size`, E = `v_head_size`, I = `in_features`, P ranks in
    the group, r this rank in it. The unsharded weight is `[W_q; W_k; W_v]`, heads in order. Up to P = K every rank has
    K / P key heads and as many value heads. Above, each of them lies on c = P / K neighbouring ranks, head r // c on
    rank r; their copies stay equal, because the gradient of each is summed over them.

    | | on rank r | shape |
    | --- | --- | --- |
    | weight, P <= K | its shard of `W_q`, of `W_k` and of `W_v`, one below the other | `[(H D + K D + K E) / P, I]` |
    | weight, P > K | its shard of `W_q`, and head r // c of `W_k` and of `W_v` | `[H D / P + D + E, I]` |
    | bias | alike | as the weight's first dimension |
    | input | `X`, replicated | `[..., I]` |
    | output | `[Q_r, K_r, V_r]` side by side; `split` takes them apart | `[..., rows of the weight]` |
    | gradient of the input | `sum_r G_r W_r`, replicated | `[..., I]` |
    | gradient of weight, bias | those of its rows; of a head with copies the sum over its c ranks | as the parameter |

    | collectives at P > 1 | |
    | --- | --- |
    | forward | none |
    | backward | one all-reduce of the input's gradient, only if the input needs one; see `share_input` |
    | backward, P > K | besides, for each trained parameter one all-reduce of its key and value rows among c ranks |

    Args:
        in_features: I, at least 1.
        head_size: D, at least 1.
        total_num_heads: H, a multiple of P and of K.
        total_num_kv_heads: K; None is H. P is a multiple of it, or it of P.
        master_weight, master_bias: the unsharded `[H D + K D + K E, I]` weight and `[H D + K D + K E]` bias.
        v_head_size: E, the size of a value head; None is D.
        bias, skip_bias_add, group, rank, world_size, device, dtype: as of `ColumnParallelLinear`.

    Raises:
        ValueError: a number that is no positive integer, or that does not divide as said above; else as of
            `ColumnParallelLinear`.

    Source: `QKVParallelLinear` in `vllm/model_executor/layers/linear.py` of vLLM; grouped-query attention:
    arXiv:2305.13245. That copies need their gradients summed: NVIDIA/Megatron-LM, where P > K is refused.
    """

    size_names: ClassVar[tuple[str, ...]] = (
        "in_features",
        "head_size",
        "total_num_heads",
        "total_num_kv_heads",
        "v_head_size",
    )
    flag_names: ClassVar[tuple[str, ...]] = ("skip_bias_add",)

    head_size: int
    total_num_heads: int
    total_num_kv_heads: int
    v_head_size: int

    def __init__(
        self,
        in_features: int,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        bias: bool = True,
        master_weight: Tensor | None = None,
        *,
        v_head_size: int | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        owner = self._name()
        self.head_size = D = checks.feature_size(owner, "head_size", head_size)
        self.total_num_heads = H = checks.feature_size(owner, "total_num_heads", total_num_heads)
        kv_heads = H if total_num_kv_heads is None else total_num_kv_heads
        self.total_num_kv_heads = K = checks.feature_size(owner, "total_num_kv_heads", kv_heads)
        self.v_head_size = E = checks.feature_size(owner, "v_head_size", D if v_head_size is None else v_head_size)
        parts = (H * D, K * D, K * E)
        ShardedLinear.__init__(self, in_features, sum(parts), bias, options)
        self._find_group(options)
        self._check_heads()
        placement = Shard(0, parts, (1, self.num_kv_head_replicas, self.num_kv_head_replicas))
        self._make_parameters(bias, master_weight, options, (placement, placement))

    @classmethod
    def from_linear(  # type: ignore[override]  # a dense layer does not say what its heads are
        cls,
        linear: nn.Linear,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        *,
        v_head_size: int | None = None,
        **options: Unpack[LayerOptions],
    ) -> Self:
        """This rank's part of a dense layer `[W_q; W_k; W_v]` that is the same on all ranks.

        As `ColumnParallelLinear.from_linear`.
        """
        sizes = (head_size, total_num_heads, total_num_kv_heads)
        return cls._from_dense(linear, sizes, {"v_head_size": v_head_size, **options})

    @property
    def num_heads(self) -> int:
        """H / P, the query heads of this rank."""
        return self.total_num_heads // self._group.size

    @property
    def num_kv_heads(self) -> int:
        """The key heads of this rank, and as many value heads: K / P, and at least one."""
        return max(1, self.total_num_kv_heads // self._group.size)

    @property
    def num_kv_head_replicas(self) -> int:
        """c, how many ranks have each key and value head."""
        return max(1, self._group.size // self.total_num_kv_heads)

    @property
    def output_sizes_per_rank(self) -> tuple[int, ...]:
        """How wide query, key and value are in this rank's output."""
        return self.weight_placement.widths(self.out_features, self._group.size)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value of an output, as views."""
        parts: tuple[Tensor, ...] = y.split(self.output_sizes_per_rank, dim=-1)
        return parts

    def _check_heads(self) -> None:
        P, H, K = self._group.size, self.total_num_heads, self.total_num_kv_heads
        reason = checks.divisibility("total_num_heads", H, P)
        if not reason and H % K:
            reason = (
                f"total_num_heads = {H} is no multiple of total_num_kv_heads = {K}; each serves an equal number of them"
            )
        if not reason and K % P and P % K:
            reason = (
                f"total_num_kv_heads = {K} neither divides P = {P} nor is divided by it, so that ranks would hold "
                "different numbers of them"
            )
        checks.refuse(self._name(), reason)


def _positive(owner: str, sizes: Any) -> tuple[int, ...]:
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Sequence):
        checks.refuse(owner, f"output_sizes is a {type(sizes).__name__}; it must be a sequence of sizes", TypeError)
    checks.refuse(owner, "" if len(sizes) else "output_sizes is empty; give the size of at least one part")
    return tuple(checks.feature_size(owner, f"output_sizes[{number}]", size) for number, size in enumerate(sizes))


def _joined(owner: str, linears: Sequence[nn.Linear]) -> nn.Linear:
    """One dense layer that computes what several compute, side by side."""
    owner = f"{owner}.from_linears"
    checks.refuse(owner, "" if len(linears) else "there is no layer; give at least one")
    for linear in linears:
        if not isinstance(linear, nn.Linear):
            checks.refuse(owner, f"got a {type(linear).__name__}; it must be a torch.nn.Linear", TypeError)
    facts: dict[str, list[object]] = {
        "in_features": [linear.in_features for linear in linears],
        "bias": [linear.bias is not None for linear in linears],
        "weight.requires_grad": [linear.weight.requires_grad for linear in linears],
        "bias.requires_grad": [linear.bias is not None and linear.bias.requires_grad for linear in linears],
    }
    for name, values in facts.items():
        checks.refuse(owner, "" if len(set(values)) == 1 else f"the layers differ in {name}: {values}")
    first, rows = linears[0], sum(linear.out_features for linear in linears)
    joined = nn.Linear(first.in_features, rows, first.bias is not None, device="meta").train(first.training)
    for name, parameter in first.named_parameters():
        rows_of_all = torch.cat([linear.get_parameter(name).detach() for linear in linears])
        joined.register_parameter(name, nn.Parameter(rows_of_all, requires_grad=parameter.requires_grad))
    return joined
