"""How one tensor lies on the ranks of a group: sharded along a dimension, or replicated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Rank r has the r-th of P equal shards along dimension `dim`.

    With `sizes` the dimension consists of several parts, one after the other. Each part is sharded by itself, and a
    rank has its shards of all parts, joined. With `copies` too, part i has P / copies[i] different shards, and each of
    them lies on that many neighbouring ranks.

    Sizes are those of the unsharded dimension, in elements.
    """

    dim: int
    sizes: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()

    @property
    def copied(self) -> bool:
        """Whether several ranks have the same shard of some part."""
        return max(self.copies, default=1) > 1

    def widths(self, size: int, world_size: int) -> tuple[int, ...]:
        """How many elements of each part a rank has, where the unsharded dimension has `size` elements."""
        sizes = self.sizes or (size,)
        copies = self.copies or (1,) * len(sizes)
        return tuple(part * c // world_size for part, c in zip(sizes, copies, strict=True))

    def ranges(self, size: int, world_size: int, rank: int) -> tuple[range, ...]:
        """The indices of the unsharded dimension, of `size` elements, that one rank of `world_size` has, in order."""
        sizes, widths = self.sizes or (size,), self.widths(size, world_size)
        ranges, start = [], 0
        for part, width, copies in zip(sizes, widths, self.copies or (1,) * len(sizes), strict=True):
            first = start + rank // copies * width
            ranges.append(range(first, first + width))
            start += part
        return tuple(ranges)


@dataclass(frozen=True)
class Replicate:
    """Every rank has all values, bit for bit the same."""


Placement = Shard | Replicate


def own_slice(x: Tensor, placement: Placement, world_size: int, rank: int) -> Tensor:
    """The part of an unsharded tensor that one rank has under a placement; a view unless parts must be joined."""
    if not isinstance(placement, Shard):
        return x
    if not placement.sizes:
        width = x.shape[placement.dim] // world_size
        return x.narrow(placement.dim, rank * width, width)
    ranges = placement.ranges(x.shape[placement.dim], world_size, rank)
    return torch.cat([x.narrow(placement.dim, one.start, len(one)) for one in ranges], placement.dim)
