"""How one tensor lies on the ranks of a group: sharded along a dimension, or replicated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Rank r holds the r-th of P equal slices along dimension `dim`."""

    dim: int


@dataclass(frozen=True)
class Replicate:
    """Every rank holds the whole value, bit for bit the same."""


Placement = Shard | Replicate
