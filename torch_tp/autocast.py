"""What torch.autocast does to a linear layer, done by hand around our own autograd nodes.

The operands are cast before the node, where autograd sees it: the node then works and communicates in one dtype, and
each gradient is cast back to the dtype of the tensor it belongs to.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_AS_IT_IS = nullcontext()


def autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands in the dtypes in which `F.linear` would take them.

    Where no gradient is asked for, the weight is left to `F.linear`, which keeps its cast for the next use in the same
    region.
    """
    if not _active(x):
        return x, weight, bias
    return _cast(x), _cast(weight) if torch.is_grad_enabled() else weight, None if bias is None else _cast(bias)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which `F.linear` would take `x`: autocast leaves float64 and integers alone."""
    if not _active(x) or x.dtype == torch.float64 or not x.is_floating_point():
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """For backwards: they compute in the dtypes of the forward, whatever is on when backward() is called."""
    return torch.autocast(x.device.type, enabled=False) if _active(x) else _AS_IT_IS


def _active(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _cast(x: Tensor) -> Tensor:
    return x.to(autocast_dtype(x))
