"""Which name each argument of a call has, by the signature of the module's forward."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import nn


def positional_names(module: nn.Module, count: int) -> Sequence[str]:
    """The names of the first `count` positional arguments of a module's forward.

    Arguments that the signature collects (`*args`) are named by their position: "*0", "*1".
    """
    kind: Any = type(module)
    names = _declared(kind)
    return [names[k] if k < len(names) else f"*{k - len(names)}" for k in range(count)]


@cache
def _declared(kind: type[nn.Module]) -> tuple[str, ...]:
    try:
        parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    except (TypeError, ValueError):  # a forward that Python knows no signature of
        return ()
    taken = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(each.name for each in parameters if each.kind in taken)
