"""Calls that were proven, and a warning, once, at a call of another kind."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torch_tp.errors import UnprovenCallError, UnprovenCallWarning
from torch_tp.models.signatures import positional_names

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
Key = tuple[bool, tuple[str, ...], tuple[Any, ...]]


@dataclass
class Guard:
    """A hook of a model that compares each call with those that were proven.

    Two calls are of one kind if they are in the same mode, give the same arguments and have equal values in all that
    is neither a tensor nor a container.

    Attributes:
        owner: for messages.
        proven: the kinds of calls that were proven.
        shapes: those of the tensors in the proven calls.
        decided: lines of the model's code that decide by a size; other shapes are of another kind if there are any.
        strict: raise at another kind, in place of a warning.
    """

    owner: str
    proven: Sequence[Key]
    shapes: Sequence[Shapes] = ()
    decided: Sequence[str] = ()
    strict: bool = False
    _seen: set[Key] = field(default_factory=set[Key], repr=False)
    _shapes: set[Shapes] = field(default_factory=set[Shapes], repr=False)
    _said: set[str] = field(default_factory=set[str], repr=False)

    def attach(self, module: nn.Module) -> None:
        """Hook this into the model."""
        self._seen, self._shapes = set(self.proven), set(self.shapes)
        module.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before the model's forward."""
        if torch.compiler.is_compiling():
            return
        key = kind_of(module, args, kwargs)
        if key not in self._seen:
            self._say(self._difference(key))
            self._seen.add(key)
        if self.decided and (shapes := shapes_of(module, args, kwargs)) not in self._shapes:
            new = next((each for each in shapes if not any(each in known for known in self._shapes)), shapes[0])
            lines = ", ".join(self.decided[:3])
            self._shapes.add(shapes)
            self._say(f"the argument {new[0]} has other sizes, {list(new[1])}, and the code decides by sizes ({lines})")

    def _say(self, what: str) -> None:
        kind = what.partition(",")[0]
        if kind in self._said:
            return
        text = f"{self.owner}: this call was not proven: {what}; give parallelize an example= of it, in a list"
        if self.strict:
            raise UnprovenCallError(text)
        self._said.add(kind)
        warnings.warn(text, UnprovenCallWarning, stacklevel=4)

    def _difference(self, key: Key) -> str:
        """What is new about a call, beside the proven one that is most like it."""
        return min((_differences(key, other) for other in self.proven), key=len)[0]


def _differences(key: Key, other: Key) -> list[str]:
    found = []
    mine, theirs = (dict(zip(each[1], each[2], strict=True)) for each in (key, other))
    found += [f"the argument {name} was not given" for name in mine.keys() - theirs.keys()]
    found += [f"the argument {name} was given" for name in theirs.keys() - mine.keys()]
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            found.append(f"the argument {name} was {theirs[name]!r}, and is {mine[name]!r}")
    if key[0] != other[0]:
        found.append(f"it is in {'training' if key[0] else 'evaluation'} mode")
    return sorted(found)


def kind_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Key:
    """The kind of a call: mode, names of arguments, and values of what is neither a tensor nor a container."""
    names = (*positional_names(module, len(args)), *kwargs)
    given = {name: _plain(value) for name, value in zip(names, (*args, *kwargs.values()), strict=True)}
    there = sorted(name for name, value in given.items() if value is not None)
    return module.training, tuple(there), tuple(given[name] for name in there)


def shapes_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shapes:
    """The shapes of the tensors that a call is given."""
    names = (*positional_names(module, len(args)), *kwargs)
    given = zip(names, (*args, *kwargs.values()), strict=True)
    return tuple((name, tuple(value.shape)) for name, value in given if isinstance(value, Tensor))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    if type(value) in (list, tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a dict of {sorted(map(str, value))}" if type(value) is dict else f"a {type(value).__name__}"


def described(keys: Iterable[Key]) -> list[str]:
    """Kinds of calls in words."""
    found = []
    for training, names, values in keys:
        given = (n if str(v).startswith("a ") else f"{n}={v!r}" for n, v in zip(names, values, strict=True))
        found.append(f"({', '.join(given)}) in {'training' if training else 'evaluation'} mode")
    return found
