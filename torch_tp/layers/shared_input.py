"""One all-reduce for the gradient of an input that several column-parallel layers are called with.

Query, key and value projections multiply one tensor. The gradient of that tensor is the sum over layers and ranks, so
the layers' partial gradients can be added first and all-reduced once. To that end the layers use one and the same
output of a `copy` node, at which autograd adds up their gradients.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_tp.autocast import autocast_dtype
from torch_tp.functions import sum_over
from torch_tp.group import Group


class SharedInput:
    """What the layers that share an input have in common: the copy of the input that they were last called with.

    The object refers to the input weakly. The copy, which has the input's storage, is dropped when all layers have used
    it, when another input comes, when a backward reaches the copy, and when the input is deleted. The first three
    happen alike on all ranks, and a deleted input cannot come again: the ranks agree about the number of all-reduces.
    Deepcopies and pickles of the object have the number of layers and no input.

    Args:
        layers: how many layers share their input.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._current: _Copied | None = None

    def copy(self, x: Tensor, group: Group, layer: object) -> Tensor:
        """`torch_tp.copy` of an input that needs a gradient, in the dtype in which autocast lets a layer compute.

        Every layer that calls this with the same unchanged tensor gets the same result.
        """
        dtype = autocast_dtype(x)
        current = self._current
        if current is None or not current.stands_for(x, dtype):
            me = weakref.ref(self)  # weakly, or the copy's autograd node would keep the copy alive
            copy: Tensor = _Copy.apply(x.to(dtype), group, me)
            current = self._current = _Copied(weakref.ref(x, partial(_forget, me)), x._version, dtype, copy)
        current.users.add(id(layer))
        if len(current.users) == self.layers:
            self._current = None
        return current.copy

    def drop(self) -> None:
        """Let go of the copy; the next layer makes another one."""
        self._current = None

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedInput, (self.layers,)


@dataclass(frozen=True)
class _Copied:
    """The copy of one input at one version of its values, and the layers that have used it, by `id`."""

    input: weakref.ref[Tensor]
    version: int
    dtype: torch.dtype
    copy: Tensor
    users: set[int] = field(default_factory=set[int])

    def stands_for(self, x: Tensor, dtype: torch.dtype) -> bool:
        return self.input() is x and self.version == x._version and self.dtype == dtype


def _forget(shared: weakref.ref[SharedInput], dead: weakref.ref[Tensor]) -> None:
    """Drop the copy of an input that nobody else refers to."""
    owner = shared()
    if owner is not None and owner._current is not None and owner._current.input is dead:
        owner.drop()


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, shared: weakref.ref[SharedInput]) -> Tensor:
        ctx.group, ctx.shared = group, shared
        return x.detach()  # no view, which would keep the input alive, but with the input's version counter

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        owner = ctx.shared()
        if owner is not None:
            owner.drop()
        return sum_over(grad, ctx.group), None, None
