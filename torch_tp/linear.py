"""What the two parallel linear layers share: shards of a master, initial values, checks.

Private: the layers are `torch_tp.ColumnParallelLinear` and `torch_tp.RowParallelLinear`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_tp import checks, debug
from torch_tp.autocast import autocast_dtype
from torch_tp.group import Group, GroupLike, find_or_detach
from torch_tp.placements import Placement, Shard


@dataclass(frozen=True)
class Options:
    """The arguments that every parallel layer takes, as they were given."""

    in_features: Any
    out_features: Any
    bias: Any
    master_weight: Any
    master_bias: Any
    group: GroupLike | None
    rank: Any
    world_size: Any
    device: torch.device | str | int | None
    dtype: torch.dtype | None


class ShardedLinear(nn.Module):
    """A linear layer of which each rank holds a shard; the subclasses say which."""

    weight_placement: Placement
    bias_placement: Placement
    flag_names: ClassVar[tuple[str, ...]]

    in_features: int
    out_features: int
    weight: nn.Parameter
    bias: nn.Parameter | None
    skip_bias_add: bool

    def __init__(self, options: Options, flags: Mapping[str, Any]) -> None:
        super().__init__()
        for name, value in flags.items():
            setattr(self, name, value)
        owner = self._name()
        self.in_features = checks.feature_size(owner, "in_features", options.in_features)
        self.out_features = checks.feature_size(owner, "out_features", options.out_features)
        self._check_flags(options.bias)
        self._group = find_or_detach(owner, options.group, options.rank, options.world_size)
        self._check_sizes()
        self._check_masters(options)
        self._make_parameters(options)

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
        """How each parameter lies on the ranks, by name; on each parameter as `placement` too."""
        both = {"weight": self.weight_placement, "bias": self.bias_placement}
        return {name: both[name] for name, _ in self.named_parameters(recurse=False) if name in both}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight anew and set the bias to zero.

        On ranks with equal random state the weight is the shard of the one that
        `torch.nn.Linear(in_features, out_features)` would draw, whatever P is, and the random
        state afterwards is the one it leaves. Needs room for the whole weight while it runs.
        """
        whole = nn.Linear(
            self.in_features,
            self.out_features,
            self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        self.weight.copy_(self._own_shard(whole.weight, self.weight_placement))
        if self.bias is not None:
            self.bias.zero_()

    def extra_repr(self) -> str:
        """The constructor's arguments; sizes are those of the whole layer."""
        given = {
            **self._sizes(),
            "bias": self.bias is not None,
            **self._flags(),
            "rank": "?" if self._group.pending else self._group.rank,
            "world_size": self._group.size,
        }
        return ", ".join(f"{name}={value}" for name, value in given.items())

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Take a parameter, whoever sets it, and give it its placement."""
        super().register_parameter(name, param)
        self._mark()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ShardedLinear:
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
        return {"in_features": self.in_features, "out_features": self.out_features}

    def _flags(self) -> dict[str, bool]:
        return {name: getattr(self, name) for name in self.flag_names}

    def _check_flags(self, bias: Any) -> None:
        checks.check_flags(self._name(), {"bias": bias, **self._flags()})
        checks.refuse(self._name(), self._flag_conflict(bias))

    def _flag_conflict(self, bias: bool) -> str:
        raise NotImplementedError

    def _check_sizes(self) -> None:
        assert isinstance(self.weight_placement, Shard)
        name = ("out_features", "in_features")[self.weight_placement.dim]
        checks.refuse(self._name(), checks.divisibility(name, getattr(self, name), self._group.size))

    def _check_masters(self, options: Options) -> None:
        owner = self._name()
        if options.dtype is not None:
            checks.refuse(owner, checks.float_dtype("dtype", options.dtype), TypeError)
        checks.check_master(owner, "master_weight", options.master_weight, (self.out_features, self.in_features))
        if options.master_bias is not None and not options.bias:
            checks.refuse(owner, "master_bias was given with bias=False; leave it out, or set bias=True")
        checks.check_master(owner, "master_bias", options.master_bias, (self.out_features,))

    def _make_parameters(self, options: Options) -> None:
        master = options.master_weight if options.master_weight is not None else options.master_bias
        device = options.device if options.device is not None or master is None else master.device
        dtype = options.dtype if options.dtype is not None or master is None else master.dtype

        def empty(shape: tuple[int, ...], placement: Placement) -> nn.Parameter:
            return nn.Parameter(torch.empty(self._local(shape, placement), device=device, dtype=dtype))

        self.weight = empty((self.out_features, self.in_features), self.weight_placement)
        self.register_parameter("bias", empty((self.out_features,), self.bias_placement) if options.bias else None)
        self._fill(options.master_weight, options.master_bias)

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

    def _local(self, shape: tuple[int, ...], placement: Placement) -> tuple[int, ...]:
        if not isinstance(placement, Shard):
            return shape
        held = sum(map(len, placement.ranges(shape[placement.dim], self._group.size, 0)))
        return tuple(held if dim == placement.dim else n for dim, n in enumerate(shape))

    def _own_shard(self, whole: Tensor, placement: Placement) -> Tensor:
        return own_slice(whole, placement, self._group.size, self.rank)

    def _resolved(self) -> Group:
        group = self._group
        if group.saved_ranks is not None:
            group = self._group = group.resolved()
        return group

    def _single(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer at P = 1. Nobody waits for this rank, so the input is looked at only once torch has refused it.

        Where torch.compile traces there is no catching that, and a meta tensor's dtype torch does not look at.
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
        if self.bias is not None and not isinstance(self.bias_placement, Shard):
            facts["checksum of the replicated bias"] = debug.fingerprint(self.bias)
        debug.check(f"{self._name()} forward", group, x, facts)


def own_slice(whole: Tensor, placement: Placement, world_size: int, rank: int) -> Tensor:
    """What one rank holds of a whole tensor; a view where that is possible."""
    if not isinstance(placement, Shard):
        return whole
    ranges = placement.ranges(whole.shape[placement.dim], world_size, rank)
    parts = [whole.narrow(placement.dim, held.start, len(held)) for held in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, placement.dim)


def from_dense(
    layer: Callable[..., Any],
    owner: str,
    linear: Any,
    own: Sequence[str],
    further: Sequence[Any],
    options: Mapping[str, Any],
) -> Any:
    """A parallel layer with the values, dtype, device, requires_grad and mode of a dense one.

    Its first arguments are the attributes `own` of the dense layer, and then `further`.
    """
    if not isinstance(linear, nn.Linear):
        checks.refuse(owner, f"from_linear got a {type(linear).__name__}; it must be a torch.nn.Linear", TypeError)
    made = layer(
        *(getattr(linear, name) for name in own),
        *further,
        linear.bias is not None,
        linear.weight,
        master_bias=linear.bias,
        **options,
    )
    made.weight.requires_grad_(linear.weight.requires_grad)
    if linear.bias is not None:
        made.bias.requires_grad_(linear.bias.requires_grad)
    return made.train(linear.training)
