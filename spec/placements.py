"""Where a tensor lives: replicated, sharded or partial; shard and unshard as pure index arithmetic on NumPy arrays.

The truth of a replicated tensor is what every rank holds; of a sharded one the concatenation of the ranks' slices; of a
partial one the sum of the ranks' terms. spmd_types writes I, V and P for these three values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Replicated:
    """R: every rank holds the whole value, bit for bit the same."""

    def __str__(self) -> str:
        return "R"


@dataclass(frozen=True)
class Sharded:
    """S(dim): rank r holds the r-th of P equal slices along `dim`."""

    dim: int

    def __str__(self) -> str:
        return f"S({self.dim})"


@dataclass(frozen=True)
class Partial:
    """P: every rank holds a term; the value is the sum over the group."""

    def __str__(self) -> str:
        return "P"


Placement = Replicated | Sharded | Partial


@dataclass(frozen=True)
class Edge:
    """The placements of a value and of its gradient, which need not agree."""

    value: Placement
    gradient: Placement

    def __str__(self) -> str:
        return f"{self.value}/{self.gradient}"


def bounds(size: int, P: int, r: int) -> slice:
    """The indices of the r-th of P equal slices of a dimension of `size` elements.

    Raises:
        ValueError: P does not divide the size.
    """
    if size % P:
        raise ValueError(f"a dimension of size {size} has no {P} equal slices")
    width = size // P
    return slice(r * width, (r + 1) * width)


def local(placement: Placement, value: Floats, P: int, r: int) -> Floats:
    """What rank r of P holds.

    Args:
        value: the whole tensor; for a partial one the stacked terms `[P, ...]`.
    """
    if isinstance(placement, Replicated):
        return value
    if isinstance(placement, Partial):
        term: Floats = value[r]
        return term
    index: list[slice] = [slice(None)] * value.ndim
    index[placement.dim] = bounds(value.shape[placement.dim], P, r)
    return value[tuple(index)]


def unshard(placement: Placement, parts: Sequence[Floats]) -> Floats:
    """The whole value of what the ranks hold, in the order of their ranks; the first rank's where it is replicated."""
    if isinstance(placement, Replicated):
        return parts[0]
    if isinstance(placement, Partial):
        total: Floats = np.sum(parts, axis=0)
        return total
    return np.concatenate(parts, axis=placement.dim)
