"""A module of whose result each rank computes a part or a term, as it is, with its communication at its edges.

For modules that no parallel layer can stand for: their own code runs on slices of their parameters. What is whole on
the way in gets the sum of the ranks' gradients, and what is a term on the way out is summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torch_tp.functions import copy_in, sum_over
from torch_tp.group import Group
from torch_tp.internals import pytree
from torch_tp.layers.gradients import shared_gradient
from torch_tp.models.signatures import positional_names
from torch_tp.placements import Shard


@dataclass
class Boundary:
    """What happens at the edges of one module, as two hooks of it that are copied and pickled with it.

    Attributes:
        owner: the module's path, for errors.
        group: the ranks that share it.
        copied: names of arguments that are replicated: identity, and in the backward the sum of the gradients.
        reduced: results, by index among the tensors and other leaves of what is returned, that are terms of a sum.
        slices: its parameters of which a rank holds a slice.
        summed: its whole parameters of whose gradient each rank has a term.
        once: its whole parameters that are added to a sum over the ranks: on rank 0 alone.
    """

    owner: str
    group: Group
    copied: tuple[str, ...] = ()
    reduced: tuple[int, ...] = ()
    slices: Mapping[str, Shard] = field(default_factory=dict[str, Shard])
    summed: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    _depth: int = field(default=0, init=False, repr=False, compare=False)  # how often the module is inside of itself

    def attach(self, module: nn.Module) -> None:
        """Hook this into its module: next to the module's own code, inside of all hooks that are there."""
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self.leave, prepend=True, always_call=True)
        self.mark(module)

    def mark(self, module: nn.Module) -> None:
        """Give the parameters their placement."""
        for name, placement in self.slices.items():
            setattr(module._parameters[name], "placement", placement)  # noqa: B010 - Parameter declares no such field

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Before the module's forward."""
        self._depth += 1
        self.group = group = self.group.resolved()
        if any(not hasattr(module._parameters[name], "placement") for name in self.slices):
            self.mark(module)  # which copies and conversions of a module lose
        for name in self._changed() if self._depth == 1 else ():
            vars(module)[name] = self._used(module, name, group)  # found before the parameter of that name
        if not (self.copied and torch.is_grad_enabled()):
            return None
        names = positional_names(module, len(args))
        copies: dict[int, Tensor] = {}  # one for each tensor, under whatever names it is given
        taken = [self._copied(x, group, copies) if k in self.copied else x for k, x in zip(names, args, strict=True)]
        named = {k: self._copied(x, group, copies) if k in self.copied else x for k, x in kwargs.items()}
        return tuple(taken), named

    def leave(self, module: nn.Module, args: Any, out: Any) -> Any:
        """After the module's forward, even where that raised."""
        self._depth = max(0, self._depth - 1)
        for name in () if self._depth else self._changed():
            vars(module).pop(name, None)
        if not self.reduced or out is None:
            return None
        self.group.require(self.owner, "its result is a sum over the ranks, which needs an all-reduce")
        leaves, shape = pytree.tree_flatten(out)
        return pytree.tree_unflatten(
            [sum_over(leaf, self.group) if k in self.reduced else leaf for k, leaf in enumerate(leaves)], shape
        )

    def _changed(self) -> list[str]:
        """The parameters that the module does not use as they are held."""
        return [
            *self.summed,
            *self.once,
            *(name for name, cut in self.slices.items() if max(cut.copies, default=1) > 1),
        ]

    def _used(self, module: nn.Module, name: str, group: Group) -> Tensor:
        parameter = module._parameters[name]
        assert parameter is not None
        if name in self.once:
            return once(parameter, group)
        if not (torch.is_grad_enabled() and parameter.requires_grad):
            return parameter
        group.require(self.owner, f"the gradient of {name} is a sum over the ranks, which needs an all-reduce")
        return (
            copy_in(parameter, group) if name in self.summed else shared_gradient(parameter, self.slices[name], group)
        )

    def _copied(self, value: Any, group: Group, copies: dict[int, Tensor]) -> Any:
        if type(value) is tuple:
            return tuple(self._copied(each, group, copies) for each in value)
        if not (isinstance(value, Tensor) and value.requires_grad):
            return value
        group.require(self.owner, "the gradient of its input is a sum over the ranks, which needs an all-reduce")
        if id(value) not in copies:
            copies[id(value)] = copy_in(value, group)
        return copies[id(value)]


def once(x: Tensor, group: Group) -> Tensor:
    """A whole value that is added to a sum over the ranks: itself on rank 0, zeros elsewhere.

    The gradient of the sum is replicated, so every rank has the whole gradient of the value without asking the others.
    """
    term: Tensor = _Once.apply(x, group)
    return term


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return x.view_as(x) if group.rank == 0 else torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
