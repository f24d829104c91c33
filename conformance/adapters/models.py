"""What an adapter has besides, if its implementation can parallelise whole models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class ParallelisesModels(Protocol):
    """An adapter whose implementation takes a model as it is; one without these methods has no items about models.

    In PyTorch alone, and called inside ranks.
    """

    def parallelize(self, model: Any, group: Any, example: Mapping[str, Any]) -> Any:
        """The model cut over a ProcessGroup, in place or not, every parameter under the name that it had.

        `example` are the keyword arguments of one forward.
        """
        ...

    def part(self, parameter: Any, whole: Any, rank: int, size: int) -> Any:
        """What rank `rank` of `size` holds of a whole tensor that lies as this parameter lies; all if replicated."""
        ...

    def clip_grad_norm_(self, model: Any, max_norm: float) -> Any:
        """Scale the gradients as torch.nn.utils.clip_grad_norm_ does those of the dense model; the norm it had."""
        ...
