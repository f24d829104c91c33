"""What one operation is given besides values with notes of a run: numbers, memory, and backwards of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from torch_tp.models.rules import Call

aten = torch.ops.aten

# What is given sizes -> how many of its arguments may be or have such.
_SIZED = {
    **dict.fromkeys((aten.zeros, aten.ones, aten.full, aten.empty, aten.rand, aten.randn), 1),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.repeat), 2),
    **dict.fromkeys((aten.split, aten.split_with_sizes, aten.chunk, aten.constant_pad_nd), 2),
    **{aten.slice: 4, aten.as_strided: 4, aten.convolution: 9},
}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, also in plain data that torch does not look into.

    What has methods of its own, such as a cache of keys and values, is the model's own: it gets slices and gives them.
    """
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        for leaf in pytree.tree_leaves(waiting.pop()):
            if isinstance(leaf, Tensor):
                yield leaf
            elif (is_dataclass(leaf) or isinstance(leaf, SimpleNamespace)) and id(leaf) not in seen:
                seen.add(id(leaf))
                waiting.append(list(vars(leaf).values()))


def memory_of(tensor: Tensor) -> int:
    """The same for all tensors that share their memory."""
    where: int = tensor.untyped_storage()._cdata
    return where


def written(call: Call) -> list[Tensor]:
    """The arguments that an operation writes to."""
    given = call.func._schema.arguments
    values = [*call.args, *(call.kwargs.get(each.name) for each in given[len(call.args) :])]
    pairs = zip(given, values, strict=False)
    return [v for each, v in pairs if each.alias_info and each.alias_info.is_write and isinstance(v, Tensor)]


def numbers_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The numbers that an operation computes with: all that it is given, but sizes."""
    if func.overloadpacket is aten.lift_fresh:
        with _disable_current_modes():
            return (str(args[0].tolist()),)
    values = args[_SIZED.get(func.overloadpacket, 0) :]
    return tuple(repr(each) for each in pytree.tree_leaves((values, kwargs)) if isinstance(each, (int, float, complex)))


class _Context:
    """What a Function keeps for its backward."""

    saved_tensors: tuple[Any, ...] = ()
    needs_input_grad = (True,)

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors


def backward_of(kind: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """What the backward of a Function of one tensor makes of a gradient that is cut as its result; None: not known."""
    if kwargs or len(args) != 1 or not isinstance(out, Tensor):
        return None
    context = _Context()
    try:
        kind.forward(context, *args)
        back = kind.backward(context, out.clone())
    except Exception:  # whatever else it asks of its context
        return None
    return back if isinstance(back, Tensor) else None
