"""How each kind of object is restored.

Only what differs is written. A function that was interrupted can be called again and completes its work.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from torch_tp.internals import memory_of


def is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def restore_class(module: nn.Module, kind: type) -> None:
    if type(module) is not kind:
        module.__class__ = kind


def restore_attributes(owner: Any, attributes: dict[str, Any]) -> None:
    if vars(owner) is not attributes:
        object.__setattr__(owner, "__dict__", attributes)


def restore_slots(owner: Any, values: Mapping[Any, Any]) -> None:
    for slot, value in values.items():
        slot.__set__(owner, value)


def restore_dict(now: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    kind = OrderedDict if isinstance(now, OrderedDict) else dict
    if _same(list(kind.keys(now)), keys) and _same(list(kind.values(now)), values):
        return
    kind.clear(now)
    for key, value in zip(keys, values, strict=True):
        kind.__setitem__(now, key, value)


def restore_sequence(now: list[Any] | deque[Any], items: list[Any]) -> None:
    if _same(list(now), items):
        return
    if isinstance(now, list):
        list.clear(now)
        list.extend(now, items)
    else:
        deque.clear(now)
        deque.extend(now, items)


def restore_set(now: set[Any], items: list[Any]) -> None:
    if {id(each) for each in now} != {id(each) for each in items}:
        set.clear(now)
        set.update(now, items)


def _same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def restore_names(
    now: Mapping[str, Any], was: Mapping[str, Any], put: Callable[[str, Any], None], drop: Callable[[str], None]
) -> None:
    for name in [name for name in now if name not in was and not is_special(name)]:
        drop(name)
    for name, value in was.items():
        if name not in now or now[name] is not value:
            put(name, value)


def set_global(names: dict[str, Any], name: str, value: Any) -> None:
    names[name] = value


def delete_global(names: dict[str, Any], name: str) -> None:
    """Delete a global, unless an import made it: Python imports a module only once."""
    if not isinstance(names[name], (ModuleType, FunctionType, type)):
        del names[name]


def restore_tensor(
    tensor: Tensor, memory: Tensor | None, leaf: bool, requires_grad: bool, gradient: Tensor | None
) -> None:
    if leaf and not tensor.is_leaf and not tensor._is_view():
        tensor.detach_()  # an operation wrote a value with a gradient into a buffer
    if memory is not None and not _same_memory(tensor, memory):
        tensor.data = memory
    if leaf and tensor.is_leaf and tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)
    if leaf and tensor.is_leaf and tensor.grad is not gradient:
        tensor.grad = gradient


def restore_hooks(tensor: Tensor, hooks: Mapping[str, Any]) -> None:
    for name, was in hooks.items():
        now = getattr(tensor, name, None)
        if now is not was and now is not None:
            now.clear()  # of some kinds of hooks, autograd holds the dict itself
        if now is not was:
            setattr(tensor, name, was)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    layouts = [(each.data_ptr(), each.shape, each.stride(), each.dtype, each.device) for each in (one, other)]
    return layouts[0] == layouts[1] and memory_of(one) == memory_of(other)


def restore_storage(storage: torch.UntypedStorage, values: torch.UntypedStorage) -> None:
    if storage.nbytes() != values.nbytes():
        storage.resize_(values.nbytes())
    now, was = (torch.empty(0, dtype=torch.uint8, device=each.device).set_(each) for each in (storage, values))
    if not torch.equal(now, was):  # memory that only can be read is not written
        storage.copy_(values)
