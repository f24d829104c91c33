"""Cuts: along which dimension a value lies in slices, and of which linears' output features.

The `n` blocks of a cut lie within their dimension as `[outer, n, inner]`; rank r holds the r-th of P equal slices of
them, for every index of `outer`. A linear's own output has `outer = 1`; views move cuts about and change it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

# dimension -> linear (by its weight's name) -> outer
Cuts = Mapping[int, Mapping[str, int]]
NONE: Cuts = {}


class Unprovable(Exception):
    """What becomes of a cut value cannot be said; the text is the reason."""


def moved(cuts: Cuts, dims: Mapping[int, int]) -> Cuts:
    """The cuts of a value whose dimensions were renumbered, old to new."""
    return {dims[dim]: labels for dim, labels in cuts.items()}


def through_view(cuts: Cuts, before: Sequence[int], after: Sequence[int], P: int) -> Cuts:
    """The cuts of a view of a shape as another.

    Raises:
        Unprovable: a cut ends up across dimensions, or in fewer blocks than P can share.
    """
    seen: dict[int, dict[str, int]] = {}
    for old, new in _groups(before, after) if cuts else ():
        for dim in cuts.keys() & set(old):
            ahead = math.prod(before[k] for k in old if k < dim)
            for label, outer in cuts[dim].items():
                place, within = _placed(ahead * outer, [(k, after[k]) for k in new], P, (before, after))
                seen.setdefault(place, {})[label] = within
    return seen


def _placed(position: int, dims: Sequence[tuple[int, int]], P: int, view: tuple[Sequence[int], ...]) -> tuple[int, int]:
    """The dimension in which blocks lie that follow `position` outer indices, and how many of these are in it."""
    text = f"a view of {list(view[0])} as {list(view[1])}"
    ahead = 1
    for dim, size in dims:
        if position < ahead * size and position % ahead == 0:
            outer = position // ahead
            if size % outer or (size // outer) % P:
                raise Unprovable(f"{text} leaves {size // outer} blocks, which P = {P} does not divide")
            return dim, outer
        ahead *= size
    raise Unprovable(f"{text} mixes what is cut with what is not")


def _groups(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions of equal product, side by side; of tensors that are not empty."""
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [i][: len(before) - i], [j][: len(after) - j]
        a, b = (before[i] if old else 1), (after[j] if new else 1)
        i, j = i + len(old), j + len(new)
        while a != b:
            if a < b:
                old.append(i)
                a, i = a * before[i], i + 1
            else:
                new.append(j)
                b, j = b * after[j], j + 1
        yield old, new
