"""Column-parallel layers that are several projections in one: gate and up, and query, key and value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torch_tp import checks
from torch_tp.autocast import autocast
from torch_tp.column import ColumnParallelLinear
from torch_tp.functions import sum_over
from torch_tp.group import Group, GroupLike, neighbours
from torch_tp.linear import from_dense
from torch_tp.placements import Shard
from torch_tp.products import column_product


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several column-parallel layers of one input in one product, each cut by itself.

    O_0, O_1, ... = `output_sizes`, O their sum, I = `in_features`, P ranks in the group, r this rank in it. The whole
    weight is the parts' weights one below the other, as checkpoints have them; rank r holds its slice of **each** part.

    | | on rank r | shape |
    | --- | --- | --- |
    | weight | `W_i[r O_i/P : (r+1) O_i/P, :]` for each i, one below the other | `[O/P, I]` |
    | bias | `b_i[r O_i/P : (r+1) O_i/P]` for each i, joined | `[O/P]` |
    | input | `X`, replicated | `[..., I]` |
    | output | the parts' own slices side by side; `split` takes them apart | `[..., O/P]` |
    | output, `gather_output=True` | `[Y_0, Y_1, ...]`, whole parts side by side, replicated | `[..., O]` |

    Gradients and collectives are those of `ColumnParallelLinear`: one all-reduce of the input's gradient for all parts.
    Every part is what the column layer would give that holds it alone, up to rounding: a kernel may add in another
    order for another shape.

    Args:
        in_features: I, at least 1.
        output_sizes: O_0, O_1, ..., each a multiple of P.
        master_weight, master_bias: the whole `[O, I]` weight and `[O]` bias, parts in order.
        bias, gather_output, skip_bias_add, group, rank, world_size, device, dtype: as of `ColumnParallelLinear`.

    Raises:
        ValueError: no sizes, a size that is no positive integer, or that P does not divide; else as of
            `ColumnParallelLinear`.

    Source: `MergedColumnParallelLinear` in `vllm/model_executor/layers/linear.py` of vLLM.
    """

    output_sizes: tuple[int, ...]

    def __init__(
        self,
        in_features: int,
        output_sizes: Sequence[int],
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
        self.output_sizes = _positive(self._name(), output_sizes)
        super().__init__(
            in_features,
            sum(self.output_sizes),
            bias,
            master_weight,
            master_bias=master_bias,
            gather_output=gather_output,
            skip_bias_add=skip_bias_add,
            group=group,
            rank=rank,
            world_size=world_size,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_linear(  # type: ignore[override]  # a dense layer does not say what its parts are
        cls, linear: nn.Linear, output_sizes: Sequence[int], **options: Any
    ) -> MergedColumnParallelLinear:
        """This rank's part of a dense layer that is several parts already; `options` as of `from_linears`.

        Raises what the constructor does, and a TypeError if `linear` is no `torch.nn.Linear`.
        """
        made: MergedColumnParallelLinear = from_dense(
            cls, cls.__name__, linear, ("in_features",), (output_sizes,), options
        )
        return made

    @classmethod
    def from_linears(cls, linears: Sequence[nn.Linear], **options: Any) -> MergedColumnParallelLinear:
        """This rank's part of dense layers of one input that all ranks hold alike, the first part first.

        Copies; keeps values, dtype, device, requires_grad and training mode. `options` are `gather_output`,
        `skip_bias_add`, `group`, `rank` and `world_size`.

        Raises:
            TypeError: one of them is no `torch.nn.Linear`.
            ValueError: there is none, or they differ in in_features, in having a bias, or in requires_grad.
        """
        whole = _joined(cls.__name__, linears)
        made = cls(
            linears[0].in_features,
            [linear.out_features for linear in linears],
            linears[0].bias is not None,
            whole["weight"],
            master_bias=whole.get("bias"),
            **options,
        )
        for name in whole:
            made.get_parameter(name).requires_grad_(getattr(linears[0], name).requires_grad)
        return made.train(linears[0].training)

    @property
    def output_sizes_per_rank(self) -> tuple[int, ...]:
        """O_i / P, how wide each part is in this rank's output."""
        return tuple(size // self._group.size for size in self.output_sizes)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The parts of an output, as views: this rank's slices, or whole ones of a gathered output."""
        sizes = self.output_sizes if self.gather_output else self.output_sizes_per_rank
        parts: tuple[Tensor, ...] = y.split(sizes, dim=-1)
        return parts

    def _sizes(self) -> dict[str, object]:
        return {"in_features": self.in_features, "output_sizes": self.output_sizes}

    def _check_sizes(self) -> None:
        for number, size in enumerate(self.output_sizes):
            checks.refuse(self._name(), checks.divisibility(f"output_sizes[{number}]", size, self._group.size))
        self.weight_placement = self.bias_placement = Shard(0, self.output_sizes)

    def _gathered(self, y: Tensor, group: Group) -> Tensor:
        by_rank = super()._gathered(y, group).unflatten(-1, (group.size, y.shape[-1]))
        return torch.cat([part.flatten(-2) for part in by_rank.split(self.output_sizes_per_rank, dim=-1)], dim=-1)


class QKVParallelLinear(ColumnParallelLinear):
    """Query, key and value projections in one product, cut by heads.

    H = `total_num_heads`, K = `total_num_kv_heads`, D = `head_size`, I = `in_features`, P ranks in the group, r this
    rank in it. The whole weight is `[W_q; W_k; W_v]`, heads in order. Up to P = K every rank holds K / P key and as
    many value heads. Above, each is held by c = P / K neighbouring ranks, head r // c by rank r; their copies stay
    equal, because the gradient of each is summed over them.

    | | on rank r | shape |
    | --- | --- | --- |
    | weight, P <= K | its slice of `W_q`, of `W_k` and of `W_v`, one below the other | `[(H + 2 K) D / P, I]` |
    | weight, P > K | its slice of `W_q`, and head r // c of `W_k` and of `W_v` | `[(H / P + 2) D, I]` |
    | bias | alike | as the weight's first dimension |
    | input | `X`, replicated | `[..., I]` |
    | output | `[Q_r, K_r, V_r]` side by side; `split` takes them apart | `[..., rows of the weight]` |
    | gradient of the input | `sum_r G_r W_r`, replicated | `[..., I]` |
    | gradient of weight, bias | those of its rows; of a head with copies the sum over its c ranks | as the parameter |

    | collectives at P > 1 | |
    | --- | --- |
    | forward | none |
    | backward | one all-reduce of the input's gradient, only if the input needs one |
    | backward, P > K | besides, for each trained parameter one all-reduce of its key and value rows among c ranks |

    Args:
        in_features: I, at least 1.
        head_size: D, at least 1.
        total_num_heads: H, a multiple of P and of K.
        total_num_kv_heads: K; None is H. P is a multiple of it, or it of P.
        master_weight, master_bias: the whole `[(H + 2 K) D, I]` weight and `[(H + 2 K) D]` bias.
        bias, skip_bias_add, group, rank, world_size, device, dtype: as of `ColumnParallelLinear`.

    Raises:
        ValueError: a number that is no positive integer, or that does not divide as said above; else as of
            `ColumnParallelLinear`.

    Source: `QKVParallelLinear` in `vllm/model_executor/layers/linear.py` of vLLM; grouped-query attention:
    arXiv:2305.13245. That copies need their gradients summed: NVIDIA/Megatron-LM, where P > K is refused.
    """

    flag_names: ClassVar[tuple[str, ...]] = ("skip_bias_add",)

    head_size: int
    total_num_heads: int
    total_num_kv_heads: int

    def __init__(
        self,
        in_features: int,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        bias: bool = True,
        master_weight: Tensor | None = None,
        *,
        master_bias: Tensor | None = None,
        skip_bias_add: bool = False,
        group: GroupLike | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        owner = self._name()
        self.head_size = checks.feature_size(owner, "head_size", head_size)
        self.total_num_heads = checks.feature_size(owner, "total_num_heads", total_num_heads)
        kv_heads = self.total_num_heads if total_num_kv_heads is None else total_num_kv_heads
        self.total_num_kv_heads = checks.feature_size(owner, "total_num_kv_heads", kv_heads)
        self._sharers: Group | None = None
        super().__init__(
            in_features,
            (self.total_num_heads + 2 * self.total_num_kv_heads) * self.head_size,
            bias,
            master_weight,
            master_bias=master_bias,
            skip_bias_add=skip_bias_add,
            group=group,
            rank=rank,
            world_size=world_size,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_linear(  # type: ignore[override]  # a dense layer does not say what its heads are
        cls,
        linear: nn.Linear,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        **options: Any,
    ) -> QKVParallelLinear:
        """This rank's part of a dense layer `[W_q; W_k; W_v]` that all ranks hold alike.

        Copies; keeps values, dtype, device, requires_grad and training mode. `options` are `skip_bias_add`, `group`,
        `rank` and `world_size`. Raises what the constructor does, and a TypeError if `linear` is no `torch.nn.Linear`.
        """
        sizes = (head_size, total_num_heads, total_num_kv_heads)
        made: QKVParallelLinear = from_dense(cls, cls.__name__, linear, ("in_features",), sizes, options)
        return made

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
        """c, how many ranks hold each key and value head."""
        return max(1, self._group.size // self.total_num_kv_heads)

    @property
    def output_sizes_per_rank(self) -> tuple[int, int, int]:
        """How wide query, key and value are in this rank's output."""
        kv = self.num_kv_heads * self.head_size
        return self.num_heads * self.head_size, kv, kv

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value of an output, as views."""
        parts: tuple[Tensor, ...] = y.split(self.output_sizes_per_rank, dim=-1)
        return parts

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_sharers": None})

    def _sizes(self) -> dict[str, object]:
        names = ("in_features", "head_size", "total_num_heads", "total_num_kv_heads")
        return {name: getattr(self, name) for name in names}

    def _check_sizes(self) -> None:
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
        queries, kv = H * self.head_size, K * self.head_size
        copies = (1, self.num_kv_head_replicas, self.num_kv_head_replicas)
        self.weight_placement = self.bias_placement = Shard(0, (queries, kv, kv), copies)

    def _parallel(self, x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            group.require(self._name(), "the gradient of an input that requires one needs an all-reduce")
        x, weight, bias = autocast(x, weight, bias)
        if self.num_kv_head_replicas > 1:
            weight, bias = self._with_shared_gradient(weight), self._with_shared_gradient(bias)
        return column_product(x, weight, bias, group)

    def _with_shared_gradient(self, parameter: Tensor | None) -> Any:
        if parameter is None or not (torch.is_grad_enabled() and parameter.requires_grad):
            return parameter
        if self._sharers is None:
            self._sharers = neighbours(self._resolved(), self.num_kv_head_replicas)
        self._sharers.require(self._name(), "the gradient of a key or value head with copies needs an all-reduce")
        return _SharedRows.apply(parameter, self.output_sizes_per_rank[0], self._sharers)


class _SharedRows(torch.autograd.Function):
    """A parameter whose rows from `first` on other ranks hold too: their gradient is the sum over those ranks."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, first: int, group: Group) -> Tensor:
        ctx.first, ctx.group = first, group
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        own, shared = grad.split([ctx.first, grad.shape[0] - ctx.first])
        return torch.cat([own, sum_over(shared, ctx.group)]), None, None


def _positive(owner: str, sizes: Any) -> tuple[int, ...]:
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Sequence):
        checks.refuse(owner, f"output_sizes is a {type(sizes).__name__}; it must be a sequence of sizes", TypeError)
    checks.refuse(owner, "" if len(sizes) else "output_sizes is empty; give the size of at least one part")
    return tuple(checks.feature_size(owner, f"output_sizes[{number}]", size) for number, size in enumerate(sizes))


def _joined(owner: str, linears: Sequence[nn.Linear]) -> dict[str, Tensor]:
    """The whole weight of all parts, and the whole bias if they have one."""
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
    whole = {"weight": torch.cat([linear.weight.detach() for linear in linears])}
    if linears[0].bias is not None:
        whole["bias"] = torch.cat([linear.bias.detach() for linear in linears])
    return whole
