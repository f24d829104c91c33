"""What a module is, kept while something is tried with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Kept:
    """What a module and all that it holds are, to be put back.

    Args:
        data: keep the values of its buffers too.
    """

    def __init__(self, module: nn.Module, data: bool = True) -> None:
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for each in module.modules():
            hooks = [value for name, value in vars(each).items() if "_hooks" in name and isinstance(value, dict)]
            mine: list[dict[str, Any]] = [vars(each), each._parameters, each._buffers, each._modules, *hooks]
            self._attributes += [(held, dict(held)) for held in mine]
        self._data = [(buffer, buffer.detach().clone()) for buffer in module.buffers() if data]

    def put_back(self) -> None:
        """Attributes, training mode, hooks, children, parameters, and buffers with their values."""
        for held, was in self._attributes:
            held.clear()
            held.update(was)
        with torch.no_grad():
            for buffer, values in self._data:
                buffer.copy_(values)
