"""What can be reached from an object: the tensors in it, and where they lie."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, torch.Size, torch.dtype)
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def reachable(value: Any, where: str, seen: set[int] | None = None, modules: bool = False) -> Iterator[tuple[Any, str]]:
    """The tensors in containers and plain objects, each with where it lies, and modules if asked for.

    Modules are not entered.
    """
    seen = set() if seen is None else seen
    waiting: deque[tuple[Any, str]] = deque([(value, where)])
    while waiting:
        each, path = waiting.popleft()
        if isinstance(each, Tensor) or (modules and isinstance(each, nn.Module)):
            yield each, path
        elif not isinstance(each, (*_LEAVES, *_CODE, nn.Module)) and id(each) not in seen:
            seen.add(id(each))
            waiting.extend(_inside(each, path))


def _inside(value: Any, where: str) -> Iterator[tuple[Any, str]]:
    if isinstance(value, Mapping):
        yield from ((each, f"{where}[{key!r}]") for key, each in list(value.items()))
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from ((each, f"{where}[{k}]") for k, each in enumerate(list(value)))
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        yield from ((each, f"{where}.{name}") for name, each in list(held.items()))
    for name in _slots(type(value)):
        if hasattr(value, name):
            yield getattr(value, name), f"{where}.{name}"


def _slots(kind: type) -> Iterator[str]:
    for each in kind.__mro__:
        declared = each.__dict__.get("__slots__", ())
        yield from (declared,) if isinstance(declared, str) else declared


def is_cache(value: Any) -> bool:
    """Whether an object is the model's own memory of keys and values, which goes on holding shards.

    Such are instances of a class whose name, or that of a class it derives from, has "cache" in it.
    """
    if isinstance(value, (Tensor, nn.Module, type)):
        return False
    return any("cache" in kind.__name__.lower() for kind in type(value).__mro__)


def caches_in(value: Any) -> Iterator[Any]:
    """The caches in containers and in the attributes of plain objects."""
    seen: set[int] = set()
    waiting = deque([value])
    while waiting:
        each = waiting.popleft()
        if isinstance(each, (*_LEAVES, *_CODE, Tensor, nn.Module)) or id(each) in seen:
            continue
        seen.add(id(each))
        if is_cache(each):
            yield each
        else:
            waiting.extend(inner for inner, _ in _inside(each, ""))
