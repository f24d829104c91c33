"""Tensors that outlive the run that made them, because code remembers them outside of the model."""

from __future__ import annotations

import functools
import gc
import sys
from collections import deque
from collections.abc import Sequence
from types import CellType, FrameType, GeneratorType
from typing import Any

from torch import Tensor

_CACHE: Any = type(functools.lru_cache(len))
_CONTAINERS = (tuple, list, set, frozenset, deque, CellType)
_DEPTH = 8  # how many containers may lie between a cache and a tensor


def clear_caches_of(tensors: Sequence[Tensor]) -> list[str]:
    """Empty every `functools.lru_cache` that holds one of the tensors, also inside of containers.

    A run without data leaves tensors without data in such a cache, and the model's next forward would compute with
    them. A cache is emptied as a whole, because a single entry cannot be removed. References by local variables, and by
    `tensors` itself, do not count.

    Returns:
        One description for each other object that holds one of the tensors, such as "key 'x' of a dict, the global
        CACHE of package.module". The list is empty if nothing else holds them.
    """
    if not tensors:
        return []
    links = _Links(tensors)
    caches = [each for each in links.holders if isinstance(each, _CACHE)]
    for cache in caches:
        _CACHE.cache_clear(cache)
    if caches:
        del links
        links = _Links(tensors)
    return links.descriptions()


class _Links:
    """Which objects hold the tensors, which objects hold these, and so on up to caches, namespaces and other objects.

    Attributes:
        items, holders: the holder at an index holds the item at the same index.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.items: list[Any] = []
        self.holders: list[Any] = []
        self._tensors = tensors
        self._own = {id(each) for each in (tensors, self.items, self.holders, vars(self), self)}
        level, visited = list(tensors), set[int]()
        for _ in range(_DEPTH):
            level = self._above(level, visited)
            if not level:
                break

    def _above(self, level: list[Any], visited: set[int]) -> list[Any]:
        """Note the holders of some objects; return those that may be a part of something else."""
        containers: list[Any] = []
        found = gc.get_referrers(*level)
        self._own |= {id(level), id(found), id(containers)}
        wanted = {id(each) for each in level}
        for holder in found:
            if id(holder) in self._own or isinstance(holder, (FrameType, GeneratorType)):
                continue
            held = [each for each in gc.get_referents(holder) if id(each) in wanted]
            self.items += held
            self.holders += [holder] * len(held)
            if id(holder) not in visited and _may_be_a_part(holder):
                containers.append(holder)
            visited.add(id(holder))
        return containers

    def descriptions(self) -> list[str]:
        """A sentence about every direct holder of a tensor, without repetitions."""
        direct = {id(each) for each in self._tensors}
        pairs = zip(self.items, self.holders, strict=True)
        return list(dict.fromkeys(self._description(item, holder) for item, holder in pairs if id(item) in direct))

    def _description(self, item: Any, holder: Any, depth: int = 0) -> str:
        above = [self.holders[k] for k, each in enumerate(self.items) if each is holder]
        owner = next((each for each in above if _attributes(each) is holder or isinstance(each, type)), None)
        if isinstance(holder, dict) and (owner is not None or _file(holder)):
            name = next((str(name) for name, value in list(holder.items()) if value is item), "?")
            return f"the global {name} of {_file(holder)}" if owner is None else _attribute(name, owner)
        text = _place(item, holder)
        if not above or depth == _DEPTH:
            return text
        return f"{text}, {self._description(holder, min(above, key=_rank), depth + 1)}"


def _may_be_a_part(holder: Any) -> bool:
    if isinstance(holder, dict):
        return not _file(holder)
    return isinstance(holder, _CONTAINERS) or type(holder).__name__ == "_lru_list_elem"


def _rank(holder: Any) -> int:
    """Which of several holders to name: globals, then attributes and containers, then anything else."""
    if isinstance(holder, dict):
        return 0 if _file(holder) else 1
    return 1 if isinstance(holder, _CONTAINERS) or isinstance(_attributes(holder), dict) else 2


def _file(names: dict[Any, Any]) -> str:
    """The name of the Python module whose globals these are, or an empty string."""
    name = names.get("__name__")
    file = sys.modules.get(name) if isinstance(name, str) else None
    return str(name) if file is not None and vars(file) is names else ""


def _attributes(each: Any) -> Any:
    try:
        return object.__getattribute__(each, "__dict__")
    except AttributeError:
        return None


def _attribute(name: str, owner: Any) -> str:
    if isinstance(owner, type):
        return f"the class attribute {name} of {owner.__qualname__}"
    return f"the attribute {name} of a {type(owner).__qualname__}"


def _place(item: Any, holder: Any) -> str:
    """Where in a holder an item is."""
    kind = type(holder).__qualname__
    if isinstance(holder, dict):
        key = next((key for key, value in list(holder.items()) if value is item), None)
        return f"a key of a {kind}" if key is None else f"key {str(key)[:60]!r} of a {kind}"
    if isinstance(holder, (list, tuple, deque)):
        return f"item {next((k for k, each in enumerate(holder) if each is item), '?')} of a {kind}"
    attributes = _attributes(holder)
    name = next((n for n, value in attributes.items() if value is item), "") if isinstance(attributes, dict) else ""
    return _attribute(name, holder) if name else f"a {kind}"
