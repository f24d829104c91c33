"""Clipping of gradients of sharded parameters."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import torch
from torch import Tensor, nn

from torch_tp import collectives
from torch_tp.group import Group, GroupLike, find_group
from torch_tp.layers.linear import ShardedLinear
from torch_tp.models.boundary import Boundary
from torch_tp.placements import Shard

_OWNER = "torch_tp.clip_grad_norm_"


@torch.no_grad()
def clip_grad_norm_(
    parameters: nn.Module | Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *,
    group: GroupLike | None = None,
) -> Tensor:
    """Scale gradients so that the norm of all of them, as the dense model has them, is at most `max_norm`.

    `torch.nn.utils.clip_grad_norm_` on a rank knows that rank's shards alone, and would scale each rank differently.
    Here the shards of all ranks count. A replicated parameter, a shard with copies, and a parameter that occurs twice
    count once. One all-reduce of one number; to be called on every rank.

    Args:
        parameters: a module, whose group is known; or parameters of layers in one group. What has no placement is
            replicated.
        max_norm, norm_type, error_if_nonfinite: as of `torch.nn.utils.clip_grad_norm_`; `norm_type` is positive.
        group: whose ranks share the parameters. None: that of the module's layers, else as of the layers themselves.

    Returns:
        The norm before, a tensor without dimensions, the same on all ranks.

    Raises:
        TypeError: a gradient is a DTensor, as `fully_shard` makes them.
        ValueError: `norm_type` is not positive; the module's layers are in several groups.
        RuntimeError: the norm is not finite, and `error_if_nonfinite`.
        NoProcessGroupError: sharded parameters are among them, and there is no group.
    """
    if not norm_type > 0:
        raise ValueError(f"{_OWNER}: norm_type = {norm_type!r}; it must be positive, or infinite")
    different = list({id(each): each for each in _tensors(parameters)}.values())
    trained = [each for each in different if each.grad is not None]
    strange = next((type(each.grad).__name__ for each in trained if hasattr(each.grad, "device_mesh")), "")
    if strange:
        raise TypeError(
            f"{_OWNER}: a gradient is a {strange}, cut over another mesh besides; it must be a plain tensor"
        )
    where = _group(parameters, group) if any(map(_placement, different)) else None
    norm = _norm(different, trained, norm_type, where)
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(
            f"{_OWNER}: the norm of the gradients is {norm.item()}; it must be finite to scale them by it"
        )
    torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm


def _norm(parameters: list[Tensor], trained: list[Tensor], norm_type: float, group: Group | None) -> Tensor:
    """The norm of all gradients; the group is that of the sharded parameters, of which each rank has a part."""
    wide = any(each.dtype == torch.float64 for each in parameters)
    device, dtype = parameters[0].device if parameters else None, torch.float64 if wide else torch.float32
    total = torch.zeros((), device=device, dtype=dtype)
    if group is not None:
        total = _sum([total, *(_power(each, norm_type, group.size) for each in trained if _placement(each))], norm_type)
        total = _over_ranks(total, norm_type, group)
    total = _sum([total, *(_power(each, norm_type, 1) for each in trained if not _placement(each))], norm_type)
    return total if norm_type == inf else total.pow(1 / norm_type)


def _tensors(parameters: nn.Module | Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, nn.Module):
        return list(parameters.parameters())
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _group(parameters: object, group: GroupLike | None) -> Group:
    if group is None and isinstance(parameters, nn.Module):
        groups = {id(each.process_group): each for each in _groups(parameters)}
        if len(groups) > 1:
            raise ValueError(f"{_OWNER}: the module's layers are in {len(groups)} groups; clip those of one at a time")
        if groups:
            return next(iter(groups.values()))
    return find_group(_OWNER, group)


def _groups(module: nn.Module) -> list[Group]:
    layers = [each._resolved() for each in module.modules() if isinstance(each, ShardedLinear)]
    hooks = [hook for each in module.modules() for hook in each._forward_pre_hooks.values()]
    edges = [owner for hook in hooks if isinstance(owner := getattr(hook, "__self__", None), Boundary)]
    return [*layers, *(edge.group.resolved() for edge in edges)]


def _placement(parameter: Tensor) -> Shard | None:
    placement = getattr(parameter, "placement", None)
    return placement if isinstance(placement, Shard) else None


def _power(parameter: Tensor, norm_type: float, P: int) -> Tensor:
    """The sum of the gradient's powers, or the largest element; what has copies counts by the share of one."""
    gradient, placement = parameter.grad, _placement(parameter)
    assert gradient is not None
    if placement is None or norm_type == inf or not placement.copied:
        return _of(gradient, norm_type)
    widths = placement.widths(sum(placement.sizes), P)
    parts = zip(gradient.split(widths, placement.dim), placement.copies, strict=True)
    return torch.stack([_of(part, norm_type) / c for part, c in parts]).sum()


def _of(gradient: Tensor, norm_type: float) -> Tensor:
    """Accumulate in float32: powers of bfloat16 and float16 overflow and lose precision."""
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    norm: Tensor = torch.linalg.vector_norm(gradient, norm_type, dtype=dtype)
    return norm if norm_type == inf else norm.pow(norm_type)


def _sum(parts: list[Tensor], norm_type: float) -> Tensor:
    together = torch.stack([each.to(parts[0].device, parts[0].dtype) for each in parts])
    return together.max() if norm_type == inf else together.sum()


def _over_ranks(part: Tensor, norm_type: float, group: Group) -> Tensor:
    if group.size == 1:
        return part
    if norm_type == inf:
        return collectives.all_gather(part[None], 0, group, _OWNER).max()
    return collectives.all_reduce(part, group, _OWNER)
