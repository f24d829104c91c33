"""Everything of torch that this package uses and torch does not promise: one name each, and what it is for.

A torch without one of them fails here, by that name; a test looks for each of them. `docs/` of torch has no page for
these, so a new release of torch is tried before it is allowed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils import checkpoint as checkpoints
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "CHECKPOINT_GENERATOR",
    "FAKE_TENSOR_LOGGER",
    "LINEAR",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "WeakTensorKeyDictionary",
    "checkpoints",
    "memory_of",
    "pytree",
    "transforms_active",
    "without_modes",
]

# What F.linear is to a TorchFunctionMode: linears are one operation for the planner.
LINEAR: Any = torch._C._nn.linear
# The function of torch.utils.checkpoint that every checkpoint without reentrance calls: its code runs twice.
CHECKPOINT_GENERATOR = "_checkpoint_without_reentrant_generator"
getattr(checkpoints, CHECKPOINT_GENERATOR)
# Where torch logs what a stand-in for an operation refuses, which is raised besides.
FAKE_TENSOR_LOGGER = "torch._subclasses.fake_tensor"


def without_modes() -> Any:
    """A context in which no mode sees torch's operations: constants are looked at while a run is followed."""
    return _disable_current_modes()


def memory_of(tensor: Tensor) -> int:
    """The same for all tensors that share their memory, while one of them is alive."""
    found: int = tensor.untyped_storage()._cdata
    return found


def transforms_active() -> bool:
    """Whether a transform of torch.func runs, which the collectives of a layer do not follow."""
    return bool(torch._C._are_functorch_transforms_active())
