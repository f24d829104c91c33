"""How one tensor lies on the ranks of a group: sharded along a dimension, or replicated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Rank r holds the r-th of P equal slices along dimension `dim`.

    With `sizes` the dimension is several parts, one behind the other, and rank r holds its slice of each, joined. With
    `copies` too, part i is cut into P / copies[i] slices, and each is held by that many neighbouring ranks.

    Sizes are those of the whole dimension, in elements.
    """

    dim: int
    sizes: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()

    def ranges(self, size: int, world_size: int, rank: int) -> tuple[range, ...]:
        """Which indices of the whole dimension, of `size` elements, rank `rank` of `world_size` holds, in its order."""
        sizes = self.sizes or (size,)
        held, start = [], 0
        for part, copies in zip(sizes, self.copies or (1,) * len(sizes), strict=True):
            width = part * copies // world_size
            first = start + rank // copies * width
            held.append(range(first, first + width))
            start += part
        return tuple(held)


@dataclass(frozen=True)
class Replicate:
    """Every rank holds the whole value, bit for bit the same."""


Placement = Shard | Replicate
