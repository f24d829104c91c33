"""Sizes that notice when the model's code decides by them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor

Note = Callable[[], None]


class WatchedSize(int):
    """A size of a value without data; an ordering comparison with it, or an inequality, is noted."""

    note: Note

    def __new__(cls, value: int, note: Note) -> WatchedSize:
        """A size that calls `note` when it is compared."""
        made = super().__new__(cls, value)
        made.note = note
        return made

    def _compared(self, other: Any, outcome: Any) -> Any:
        if isinstance(other, (int, float)):
            self.note()
        return outcome

    def __lt__(self, other: Any) -> Any:
        return self._compared(other, super().__lt__(other))

    def __le__(self, other: Any) -> Any:
        return self._compared(other, super().__le__(other))

    def __gt__(self, other: Any) -> Any:
        return self._compared(other, super().__gt__(other))

    def __ge__(self, other: Any) -> Any:
        return self._compared(other, super().__ge__(other))

    def __eq__(self, other: Any) -> Any:
        outcome = super().__eq__(other)
        return outcome if _same_thing(other, outcome) else self._compared(other, outcome)

    def __ne__(self, other: Any) -> Any:
        outcome = super().__ne__(other)
        return outcome if _same_thing(other, outcome is False) else self._compared(other, outcome)

    __hash__ = int.__hash__

    def __add__(self, other: Any) -> Any:
        return self._same(super().__add__(other))

    def __sub__(self, other: Any) -> Any:
        return self._same(super().__sub__(other))

    def __mul__(self, other: Any) -> Any:
        return self._same(super().__mul__(other))

    def __floordiv__(self, other: Any) -> Any:
        return self._same(super().__floordiv__(other))

    def __mod__(self, other: Any) -> Any:
        return self._same(super().__mod__(other))

    def __truediv__(self, other: Any) -> Any:
        self.note()
        return super().__truediv__(other)

    def __bool__(self) -> bool:
        self.note()
        return int(self) != 0

    __radd__, __rmul__ = __add__, __mul__

    def _same(self, value: Any) -> Any:
        return WatchedSize(value, self.note) if isinstance(value, int) else value

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _same_thing(other: Any, equal: Any) -> bool:
    """Whether two sizes that are equal are sizes of one thing, which stay equal."""
    return isinstance(other, WatchedSize) and equal is True


def sizes_of_calls(tensors: Iterable[Tensor]) -> frozenset[int]:
    """The sizes that another call may have otherwise, and their products by twos: all but widths of features."""
    found = {size for t in tensors for size in (t.shape[:-1] if t.is_floating_point() else t.shape)}
    return frozenset(found | {a * b for a, b in product(found, repeat=2)} - {0, 1})


def watched(func: Any, out: Any, sizes: Collection[int], note: Note) -> Any:
    """What a look at a tensor's shape gives, with sizes that are watched."""
    name = getattr(func, "__name__", "")
    if name in ("size", "numel", "nelement") and isinstance(out, int) and out in sizes:
        return WatchedSize(out, note)
    looks = name == "size" or getattr(func, "__self__", None) is Tensor.shape
    if looks and isinstance(out, torch.Size) and any(size in sizes for size in out):
        return torch.Size([WatchedSize(size, note) if size in sizes else size for size in out])
    return out
