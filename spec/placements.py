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
class Parts(Sharded):
    """S(dim) of several parts, one behind the other, each cut by itself: rank r holds its slice of each, joined.

    Part i, of size sizes[i], is cut into P / copies[i] equal slices, of which copies[i] neighbouring ranks hold each.
    """

    sizes: tuple[int, ...]
    copies: tuple[int, ...]

    def __str__(self) -> str:
        parts = (
            f"{size}" if c == 1 else f"{size} in {c} copies" for size, c in zip(self.sizes, self.copies, strict=True)
        )
        return f"S({self.dim}: {', '.join(parts)})"

    def slices(self, P: int, r: int) -> list[slice]:
        """The indices along dim that rank r holds, part by part.

        Raises:
            ValueError: a part cannot be cut like this.
        """
        held, start = [], 0
        for size, copies in zip(self.sizes, self.copies, strict=True):
            mine = bounds(size, P // copies, r // copies)
            held.append(slice(start + mine.start, start + mine.stop))
            start += size
        return held

    def expanded(self, P: int) -> Parts:
        """How values that the holders of one slice need not have in common lie on the ranks: a slice for each rank."""
        sizes = tuple(size * c for size, c in zip(self.sizes, self.copies, strict=True))
        return Parts(self.dim, sizes, (1,) * len(sizes))


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
    if isinstance(placement, Parts):
        before = (slice(None),) * (placement.dim % value.ndim)
        return np.concatenate([value[(*before, mine)] for mine in placement.slices(P, r)], placement.dim)
    index: list[slice] = [slice(None)] * value.ndim
    index[placement.dim] = bounds(value.shape[placement.dim], P, r)
    return value[tuple(index)]


def unshard(placement: Placement, parts: Sequence[Floats]) -> Floats:
    """The whole value of what the ranks hold, in the order of their ranks; of replicas and copies the first rank's."""
    if isinstance(placement, Replicated):
        return parts[0]
    if isinstance(placement, Partial):
        total: Floats = np.sum(parts, axis=0)
        return total
    if isinstance(placement, Parts):
        P, widths = len(parts), [mine.stop - mine.start for mine in placement.slices(len(parts), 0)]
        cut = [np.split(part, np.cumsum(widths)[:-1], placement.dim) for part in parts]
        own = [cut[r][i] for i, copies in enumerate(placement.copies) for r in range(0, P, copies)]
        return np.concatenate(own, axis=placement.dim)
    return np.concatenate(parts, axis=placement.dim)
