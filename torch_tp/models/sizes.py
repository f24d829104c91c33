"""Sizes that code gives to views: where these are the dense model's, a rank's are put in their place.

Attention that is written by hand often takes its width from its input, which is replicated, and views a shard with it.
No attribute holds that size. So the calls are known by their line, and while the module runs they get a rank's sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FOREIGN = tuple(f"{Path(module.__file__ or '').parent}/" for module in (torch, sys.modules["torch_tp"]))
_ALL = frozenset({"view", "reshape", "expand", "repeat"})  # sizes behind the tensor
_MADE = frozenset({"zeros", "ones", "empty", "rand", "randn"})  # sizes alone
_NEW = frozenset({"new_zeros", "new_ones", "new_empty"})
NAMES = _ALL | _MADE | _NEW | {"split", "unflatten"}

# File and line, and the function that is called there.
Site = tuple[str, str]
# For each position among the sizes: a size of the dense model -> that of a rank; 0 -> what others are divided by.
Rule = tuple[Mapping[int, int], ...]


@dataclass(frozen=True)
class Sized:
    """A call with sizes, as it was recorded.

    Attributes:
        site: where it stands in the code.
        call: the number of the module call that it ran in.
        sizes: as they were given, in order.
        results: numbers of the values that it gave.
        first: the dimension of the results that the first size is of; -1 of a split, of which sizes are of results.
        along: the dimension of a split.
    """

    site: Site
    call: int
    sizes: tuple[int, ...]
    results: tuple[int, ...]
    first: int = 0
    along: int = 0


def calling_line() -> str:
    """File and line of the innermost code that is neither torch's nor this library's."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_FOREIGN):
        frame = frame.f_back
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def sizes_in(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, tuple[int, ...]] | None:
    """The position of the first size among the arguments, and all sizes; None where they are given otherwise."""
    at = 0 if name in _MADE else 2 if name == "unflatten" else 1
    given = args[at:] if name in _ALL | _MADE | _NEW else args[at : at + 1]
    if len(given) and isinstance(given[0], (tuple, list)):
        given = given[0]
    if not given or any(isinstance(each, bool) or not isinstance(each, int) for each in given):
        return None
    return at, tuple(map(int, given))


def with_sizes(name: str, args: Sequence[Any], at: int, sizes: Sequence[int]) -> tuple[Any, ...]:
    """The arguments with other sizes."""
    listed = isinstance(args[at], (tuple, list))
    if listed or name == "unflatten":
        return (*args[:at], tuple(sizes), *args[at + 1 :])
    return (*args[:at], *sizes, *args[at + len(sizes) :])


def local_rules(
    calls: Sequence[tuple[Sized, str]],
    local: Callable[[int, int], int],
    size: Callable[[int, int], int],
    folded: Callable[[int, int], bool],
) -> dict[str, dict[Site, Rule]]:
    """Module -> the calls in it whose sizes a rank has smaller, and these.

    Args:
        calls: recorded calls, each with the path of the module that it ran in.
        local, size: of a value's dimension, on a rank and in the dense model.
        folded: whether a dimension has others in it besides the sharded one, such as a batch, which another call may
            have otherwise: then the rule is a ratio, at the key 0.
    """
    found: dict[tuple[str, Site], list[dict[int, int]]] = {}
    unclear: set[tuple[str, Site]] = set()
    for each, path in calls:
        positions = found.setdefault((path, each.site), [{} for _ in each.sizes])
        for k, given in enumerate(each.sizes[: len(positions)]):
            value, dim = _place(each, k)
            if given == size(value, dim):
                own = local(value, dim)
                key, meant = (0, given // own) if folded(value, dim) and own != given else (given, own)
                if positions[k].setdefault(key, meant) != meant or (0 in positions[k] and key):
                    unclear.add((path, each.site))  # one line that means two things
    rules: dict[str, dict[Site, Rule]] = {}
    sites = {(path, site) for path, site in found}
    for (path, site), positions in found.items():
        inside = f"{path}." if path else ""
        if (path, site) in unclear or any(
            site == other and within != path and within.startswith(inside) for within, other in sites
        ):
            continue  # a module inside runs the same code, and is not to be told from this one
        changed = tuple({a: b for a, b in position.items() if a != b} for position in positions)
        if any(changed):
            rules.setdefault(path, {})[site] = changed
    return rules


def _place(sized: Sized, position: int) -> tuple[int, int]:
    """The value and the dimension that a size is of."""
    if sized.first < 0:
        return sized.results[min(position, len(sized.results) - 1)], sized.along
    return sized.results[0], sized.first + position


class LocalSizes(TorchFunctionMode):
    """While it lasts, calls at known lines get the sizes of a rank."""

    def __init__(self, rules: Mapping[Site, Rule]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in NAMES:
            args = replaced(self.rules, name, args, kwargs)
        return func(*args, **kwargs)


def replaced(rules: Mapping[Site, Rule], name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The arguments of a call, with the sizes of a rank where a rule has them."""
    rule = rules.get((calling_line(), name))
    given = sizes_in(name, args, kwargs) if rule is not None else None
    if rule is None or given is None or len(given[1]) != len(rule):
        return args
    return with_sizes(name, args, given[0], [_local(size, by) for size, by in zip(given[1], rule, strict=True)])


def _local(size: int, by: Mapping[int, int]) -> int:
    """The size on a rank of what the code gives as a size of the dense model."""
    ratio = by.get(0, 1)
    return size // ratio if size > 0 and ratio > 1 and size % ratio == 0 else by.get(size, size)


@dataclass
class ResizedForward:
    """The forward of a module whose calls of views get the sizes of a rank."""

    module: nn.Module
    rules: Mapping[Site, Rule]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with LocalSizes(self.rules):
            return type(self.module).forward(self.module, *args, **kwargs)


def sized(name: str, call: int, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, numbers: Any) -> Sized | None:
    """The record of a call with sizes; `numbers` gives the number of a tensor's value."""
    given = sizes_in(name, args, kwargs)
    if given is None:
        return None
    made = [out] if isinstance(out, Tensor) else [each for each in out if isinstance(each, Tensor)]
    first, along = 0, 0
    if name == "split":
        first, along = -1, int(args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    elif name == "unflatten":
        first = int(args[1]) % args[0].dim()
    elif len(given[1]) != made[0].dim():
        return None
    return Sized((calling_line(), name), call, given[1], tuple(map(numbers, made)), first, along)
