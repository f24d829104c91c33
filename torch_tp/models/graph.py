"""The graph that one run of a model leaves: values, operations, and calls of modules, as frozen data.

A value is one tensor at one time. An operation that writes into a tensor makes a new value of the same memory. Values,
calls and nodes refer to one another by number, so that two graphs can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_tp.internals import pytree
from torch_tp.models.sizes import Sized


@dataclass(frozen=True)
class Ref:
    """A tensor among the arguments of an operation, by the number of its value."""

    value: int


@dataclass(frozen=True)
class Value:
    """One tensor at one time.

    Attributes:
        shape, dtype: of the tensor.
        memory: the same number for all values that share their memory.
        parameter: the name of the parameter or buffer that this is, or that it is an alias of inside of its module.
        identity: of a tensor that is neither a parameter, a buffer nor an argument, and was there before the run.
        given: the value was there before the run and is no parameter or buffer.
        entries: the entries of a small tensor that the code itself writes down, such as an index.
        requires_grad: autograd followed it during the run.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    memory: int
    parameter: str = ""
    given: bool = False
    identity: int = 0
    entries: tuple[Any, ...] | None = None
    requires_grad: bool = False

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def floating(self) -> bool:
        """Whether a gradient can flow into it."""
        return self.dtype.is_floating_point or self.dtype.is_complex


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        operator: an overload of `torch.ops`, or a word: "linear" (a linear that a parallel layer can replace),
            "attention" (an `nn.MultiheadAttention` likewise), "enter" and "leave" (a module's argument or result),
            "function" (an `autograd.Function`, after the operations inside of it).
        args, kwargs: what it was called with; tensors are `Ref`.
        results: numbers of the values that it made.
        writes: numbers of the values that it overwrote.
        call: the number of the module call that it ran in.
        line: file and line of the model's code.
    """

    operator: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[int, ...]
    call: int
    line: str
    writes: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The operator in words."""
        return str(self.operator)


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module.

    Attributes:
        path: the module's path in the model.
        parent: the number of the call that it was made in; -1 for the model itself.
        replayed: some of its code runs again in the backward, after the module has returned (a checkpoint).
    """

    path: str
    parent: int
    replayed: bool = False


@dataclass(frozen=True)
class Exit:
    """A value that is reachable after the run.

    Attributes:
        value: its number.
        where: what holds it, in words.
    """

    value: int
    where: str


@dataclass(frozen=True)
class Graph:
    """One run.

    Attributes:
        label: which call and mode this was, in words.
        values, nodes, calls: by number; `calls[0]` is the model itself.
        exits: values that others can see afterwards: what the model returned, attributes, containers.
        decided, by_chance: lines of the model's code that decide by a size, and by a random number.
        leaked: parameters that code used by a reference of its own, such as a closure's.
        plain: what others can see afterwards and is no tensor: numbers and texts.
        sized: calls of views, and of what makes new tensors, with the sizes that the code gave.
        hooked: values whose gradient a hook of the user sees.
    """

    label: str
    values: Sequence[Value]
    nodes: Sequence[Node]
    calls: Sequence[ModuleCall]
    exits: Sequence[Exit] = ()
    hooked: Mapping[int, str] = field(default_factory=dict[int, str])
    sized: Sequence[Sized] = ()
    decided: Sequence[str] = ()
    by_chance: Sequence[str] = ()
    leaked: Sequence[str] = ()
    plain: Sequence[str] = ()

    def path(self, call: int) -> tuple[str, ...]:
        """The paths of the modules that run during a call, the innermost last."""
        found: list[str] = []
        while call >= 0:
            found.append(self.calls[call].path)
            call = self.calls[call].parent
        return tuple(reversed(found))

    def shapes(self, numbers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The shapes of values."""
        return tuple(self.values[number].shape for number in numbers)


def refs(tree: Any) -> Iterator[int]:
    """The numbers of the values in arguments, in order."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Ref):
            yield leaf.value
