"""Refusals: what is wrong with an argument, in one sentence that says what would be right.

A check returns the reason, or `""`; one function raises. All are made before any collective.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_tp.autocast import autocast_dtype
from torch_tp.group import integer


def refuse(owner: str, reason: str, kind: type[Exception] = ValueError) -> None:
    """Raise `kind` with the owner's name and the reason, if there is one."""
    if reason:
        raise kind(f"{owner}: {reason}")


def feature_size(owner: str, name: str, value: Any) -> int:
    """A number of features: an integer of at least 1."""
    size = integer(owner, name, value)
    refuse(owner, "" if size > 0 else f"{name} = {size}; it must be at least 1")
    return size


def flag(name: str, value: Any) -> str:
    """A flag is True or False; anything else is often a misplaced positional argument."""
    return "" if isinstance(value, bool) else f"{name} is of type {type(value).__name__}; it must be True or False"


def divisibility(name: str, size: int, world_size: int) -> str:
    """P equal shards need a multiple of P."""
    if size % world_size == 0:
        return ""
    above = (size // world_size + 1) * world_size
    return (
        f"{name} = {size} cannot be cut into P = {world_size} equal shards; "
        f"make it a multiple of {world_size}, such as {above}"
    )


def float_dtype(name: str, dtype: Any) -> str:
    """Parameters are real floating-point numbers."""
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return ""
    return f"{name} is {dtype!r}; it must be a floating-point dtype, such as torch.float32"


def check_master(owner: str, name: str, master: Any, shape: tuple[int, ...]) -> None:
    """Refuse a master weight or bias that is not a floating-point tensor of the whole shape."""
    if master is None:
        return
    if not isinstance(master, Tensor):
        refuse(owner, f"{name} is a {type(master).__name__}; it must be a torch.Tensor or None", TypeError)
    refuse(owner, float_dtype(f"the dtype of {name}", master.dtype), TypeError)
    if tuple(master.shape) != shape:
        refuse(
            owner,
            f"{name} has shape {list(master.shape)}; it must be the whole, unsharded one, {list(shape)}",
        )


def check_input(layer: nn.Module, x: Any, weight: Tensor, width: int, width_means: str, world_size: int) -> None:
    """Refuse an input that the weight cannot be applied to.

    `width` is the last dimension that is right, `width_means` says what it is.
    """
    if (
        isinstance(x, Tensor)
        and x.shape[-1:] == (width,)
        and x.dtype is weight.dtype
        and x.device == weight.device  # last, since it takes longest
    ):
        return
    owner = type(layer).__name__
    if not isinstance(x, Tensor):
        refuse(owner, f"the input is a {type(x).__name__}; it must be a torch.Tensor", TypeError)
    if x.dim() == 0 or x.shape[-1] != width:
        wanted = f"{width_means} = {width} (P = {world_size})"
        refuse(owner, f"the input has shape {list(x.shape)}; its last dimension must be {wanted}")
    if x.device != weight.device:
        refuse(owner, f"the input is on {x.device} and the weight on {weight.device}; move one of them", RuntimeError)
    if x.dtype != weight.dtype:
        _check_dtypes(owner, x, weight)


def _check_dtypes(owner: str, x: Tensor, weight: Tensor) -> None:
    reason = ""
    if not x.is_floating_point():
        reason = f"the input is {x.dtype}; it must be floating-point, {weight.dtype} like the weight"
    elif autocast_dtype(x) != autocast_dtype(weight):
        reason = (
            f"the input is {x.dtype} and the weight {weight.dtype}; convert one of them, "
            "or run the layer under torch.autocast"
        )
    refuse(owner, reason, TypeError)


def check_flags(owner: str, flags: Mapping[str, Any]) -> None:
    """Refuse the first flag that is no bool."""
    for name, value in flags.items():
        refuse(owner, flag(name, value))
