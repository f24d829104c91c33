"""The base of all parallel linear layers: its arguments, its parameters and their placements, its checks.

A subclass's constructor makes the placements. Everything that depends on them asks the values, so that a further layer
needs no method of its own for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_tp import checks, debug
from torch_tp.autocast import autocast_dtype
from torch_tp.group import Group, GroupLike, find_or_detach
from torch_tp.internals import transforms_active
from torch_tp.placements import Placement, Replicate, own_slice


class LayerOptions(TypedDict, total=False):
    """The keyword arguments that every parallel layer takes; `ColumnParallelLinear` says what they mean."""

    master_bias: Tensor | None
    skip_bias_add: bool
    group: GroupLike | None
    rank: int | None
    world_size: int | None
    device: torch.device | str | int | None
    dtype: torch.dtype | None


class ShardedLinear(nn.Module):
    """A linear layer whose parameters are sharded over the ranks.

    A constructor calls three methods in this order: `__init__` takes the arguments, `_find_group` the group, and
    `_make_parameters` the placements. Between them it refuses what these cannot know to be wrong.
    """

    size_names: ClassVar[tuple[str, ...]] = ("in_features", "out_features")
    flag_names: ClassVar[tuple[str, ...]]

    in_features: int
    out_features: int
    weight: nn.Parameter
    bias: nn.Parameter | None
    skip_bias_add: bool
    weight_placement: Placement
    bias_placement: Placement

    def __init__(self, in_features: Any, out_features: Any, bias: Any, options: LayerOptions, **flags: Any) -> None:
        super().__init__()
        owner = self._name()
        unknown = next((name for name in options if name not in LayerOptions.__annotations__), None)
        if unknown is not None:
            raise TypeError(f"{owner}.__init__() got an unexpected keyword argument {unknown!r}")
        for name, value in {**flags, "skip_bias_add": options.get("skip_bias_add", False)}.items():
            setattr(self, name, value)
        self.in_features = checks.feature_size(owner, "in_features", in_features)
        self.out_features = checks.feature_size(owner, "out_features", out_features)
        checks.check_flags(owner, {"bias": bias, **self._flags()})

    def _find_group(self, options: LayerOptions) -> None:
        where = options.get("group"), options.get("rank"), options.get("world_size")
        self._group = find_or_detach(self._name(), *where)

    def _make_parameters(
        self, bias: bool, master_weight: Any, options: LayerOptions, placements: tuple[Placement, Placement]
    ) -> None:
        """Make weight and bias as their two placements say, and give them their values."""
        self.weight_placement, self.bias_placement = placements
        owner, master_bias = self._name(), options.get("master_bias")
        device, dtype = options.get("device"), options.get("dtype")
        if dtype is not None:
            checks.refuse(owner, checks.float_dtype("dtype", dtype), TypeError)
        checks.check_master(owner, "master_weight", master_weight, (self.out_features, self.in_features))
        if master_bias is not None and not bias:
            checks.refuse(owner, "master_bias was given with bias=False; leave it out, or set bias=True")
        checks.check_master(owner, "master_bias", master_bias, (self.out_features,))
        like = master_weight if master_weight is not None else master_bias
        if like is not None:
            device, dtype = like.device if device is None else device, dtype or like.dtype

        def empty(shape: tuple[int, ...], placement: Placement) -> nn.Parameter:
            return nn.Parameter(torch.empty(self._local(shape, placement), device=device, dtype=dtype))

        self.weight = empty((self.out_features, self.in_features), self.weight_placement)
        self.register_parameter("bias", empty((self.out_features,), self.bias_placement) if bias else None)
        self._fill(master_weight, master_bias)

    @torch.no_grad()
    def _fill(self, master_weight: Tensor | None, master_bias: Tensor | None) -> None:
        if master_weight is None:
            self.reset_parameters()
        else:
            self.weight.copy_(self._own_shard(master_weight, self.weight_placement))
        if self.bias is not None and master_bias is not None:
            self.bias.copy_(self._own_shard(master_bias, self.bias_placement))
        elif self.bias is not None:
            self.bias.zero_()

    @classmethod
    def _from_dense(cls, linear: Any, sizes: Sequence[Any] | None, options: Mapping[str, Any]) -> Self:
        """The layer with the values, dtype, device, requires_grad and mode of a dense one.

        `sizes` are the constructor's arguments between `in_features` and `bias`; None is `out_features`.
        """
        if not isinstance(linear, nn.Linear):
            text = f"from_linear got a {type(linear).__name__}; it must be a torch.nn.Linear"
            checks.refuse(cls.__name__, text, TypeError)
        make: Callable[..., Self] = cls
        further = (linear.out_features,) if sizes is None else sizes
        biased = linear.bias is not None
        layer = make(linear.in_features, *further, biased, linear.weight, master_bias=linear.bias, **options)
        layer.weight.requires_grad_(linear.weight.requires_grad)
        if layer.bias is not None:
            layer.bias.requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    @property
    def rank(self) -> int:
        """This rank in the layer's group."""
        return self._resolved().rank

    @property
    def world_size(self) -> int:
        """P, the number of ranks that share the layer."""
        return self._group.size

    @property
    def placements(self) -> dict[str, Placement]:
        """How each parameter lies on the ranks, by name. Each parameter has its own as `placement`."""
        both = {"weight": self.weight_placement, "bias": self.bias_placement}
        return {name: both[name] for name, _ in self.named_parameters(recurse=False) if name in both}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight anew and set the bias to zero.

        On ranks with equal random state the weight is the shard of the one that
        `torch.nn.Linear(in_features, out_features)` would draw, whatever P is, and the random
        state afterwards is the one it leaves. Needs room for the unsharded weight while it runs.
        """
        device, dtype = self.weight.device, self.weight.dtype
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=device, dtype=dtype)
        self.weight.copy_(self._own_shard(dense.weight, self.weight_placement))
        if self.bias is not None:
            self.bias.zero_()

    def extra_repr(self) -> str:
        """The constructor's arguments; sizes are those of the unsharded layer."""
        arguments = {
            **self._sizes(),
            "bias": self.bias is not None,
            **self._flags(),
            "rank": "?" if self._group.pending else self._group.rank,
            "world_size": self._group.size,
        }
        return ", ".join(f"{name}={value}" for name, value in arguments.items())

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter as `nn.Module` does, and give it its placement."""
        super().register_parameter(name, param)
        self._mark()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # to_empty and conversions may put new parameters in place of the old.
        super()._apply(fn, recurse)
        self._mark()
        return self

    def _mark(self) -> None:
        for name, placement in self.placements.items():
            setattr(self.get_parameter(name), "placement", placement)  # noqa: B010 - Parameter declares no such field

    def _name(self) -> str:
        return type(self).__name__

    def _sizes(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.size_names}

    def _flags(self) -> dict[str, bool]:
        return {name: getattr(self, name) for name in self.flag_names}

    def _check_divisible(self, name: str, size: int) -> None:
        checks.refuse(self._name(), checks.divisibility(name, size, self._group.size))

    def _local(self, shape: tuple[int, ...], placement: Placement) -> tuple[int, ...]:
        if isinstance(placement, Replicate):
            return shape
        width = sum(placement.widths(shape[placement.dim], self._group.size))
        return tuple(width if dim == placement.dim else n for dim, n in enumerate(shape))

    def _own_shard(self, x: Tensor, placement: Placement) -> Tensor:
        return own_slice(x, placement, self._group.size, self.rank)

    def _resolved(self) -> Group:
        group = self._group
        if group.saved_ranks is not None:
            group = self._group = group.resolved()
        return group

    def _single(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer at P = 1. No other rank waits for this one, so the input is checked only if torch has refused it.

        Code that torch.compile traces cannot catch that error, and torch does not look at a meta tensor's dtype.
        """
        if weight.is_meta or torch.compiler.is_compiling():
            checks.check_input(self, x, weight, self.in_features, "in_features", 1)
        try:
            return F.linear(x, weight, bias)
        except (RuntimeError, TypeError):
            checks.check_input(self, x, weight, self.in_features, "in_features", 1)
            raise

    def _enter(self, x: object, replicated: bool) -> Group:
        """The group; under TP_DEBUG=check the ranks are compared before one of them alone could refuse."""
        if transforms_active() and not torch.compiler.is_compiling():
            text = "a transform of torch.func (grad, vmap, jvp ...) runs, which its collectives do not follow; "
            checks.refuse(self._name(), text + "use autograd, or transform a layer with P = 1", RuntimeError)
        group = self._resolved()
        if group.attached and debug.checking():
            self._compare_ranks(group, x, replicated)
        return group

    def _compare_ranks(self, group: Group, x: object, replicated: bool) -> None:
        facts: dict[str, object] = {
            **self._sizes(),
            **self._flags(),
            "dtype of the weight": str(self.weight.dtype).removeprefix("torch."),
            "requires_grad of the input": isinstance(x, Tensor) and x.requires_grad,
            **{f"requires_grad of {name}": p.requires_grad for name, p in self.named_parameters(recurse=False)},
            "grad mode": torch.is_grad_enabled(),
            "autocast": str(autocast_dtype(self.weight)).removeprefix("torch."),
        }
        if replicated and isinstance(x, Tensor):
            facts["checksum of the replicated input"] = debug.fingerprint(x)
        if self.bias is not None and isinstance(self.bias_placement, Replicate):
            facts["checksum of the replicated bias"] = debug.fingerprint(self.bias)
        debug.check(f"{self._name()} forward", group, x, facts)
