"""Cuts: along which dimension a value lies in slices, and of which parameters' dimensions these are the slices.

A label names a dimension of a parameter, `name@dim`. Where a value has a label, rank r holds of it what follows from
the r-th slice of that dimension.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True)
class Place:
    """How the slices of a label lie within a dimension.

    Attributes:
        outer: the n blocks that are shared out lie as `[outer, n, inner]`; a rank has its blocks of every outer index.
        part: start and stop of the parameter's indices that this value comes from; None: all of them.
        held: as the parameter is held, of which blocks fewer than P have copies. False: in P slices without copies.
    """

    outer: int = 1
    part: tuple[int, int] | None = None
    held: bool = True


# dimension -> label -> place
Cuts = Mapping[int, Mapping[str, Place]]
NONE: Cuts = {}


def label_of(name: str, dim: int) -> str:
    """The label of a parameter's dimension."""
    return f"{name}@{dim}"


def split_label(label: str) -> tuple[str, int]:
    """The parameter's name and the dimension."""
    name, _, dim = label.rpartition("@")
    return name, int(dim)


def moved(cuts: Cuts, dims: Mapping[int, int]) -> Cuts:
    """The cuts of a value whose dimensions were renumbered, old to new."""
    return {dims[dim]: labels for dim, labels in cuts.items()}


class ViewNotes(Protocol):
    """What a view notes, and asks, about labels."""

    def lose(self, labels: Collection[str], why: str) -> None:
        """These dimensions cannot be sharded."""

    def blocks(self, label: str, place: Place, count: int) -> int:
        """So many blocks lie in a dimension; returns how many copies of each the ranks hold."""

    def single(self, label: str) -> bool:
        """Whether a label whose blocks could be one alone, in a dimension of one entry, is to be seen so."""

    def inner(self, label: str, place: Place, outer: int, blocks: int) -> Place | None:
        """The place of a label as `outer` equal parts of `blocks` blocks each; None: its outer parts are sharded."""


def through_view(
    cuts: Cuts, before: Sequence[int], after: Sequence[int], notes: ViewNotes, spread: frozenset[int] = frozenset()
) -> Cuts:
    """The cuts of a view of a shape as another; `spread` are dimensions along which all entries are equal."""
    seen: dict[int, dict[str, Place]] = {}
    origin: dict[int, int] = {}
    mixes = f"a view of {list(before)} as {list(after)} mixes what is sharded with what is not"
    joins = f"a view of {list(before)} as {list(after)} joins it with another dimension that is sharded"
    for old, new in _groups(before, after) if cuts else ():
        for dim in sorted(cuts.keys() & set(old)):
            ahead = math.prod(before[k] for k in old if k < dim)
            repeats = _repeated(dim, old, before, spread)
            for label, place in cuts[dim].items():
                dims = [(k, after[k]) for k in new]
                found = _seen(label, place, ahead, dims, before[dim], repeats, notes)
                if found is None:
                    notes.lose([label], mixes)
                    continue
                own, moved_place, lone = found
                seen.setdefault(own, {})[label] = moved_place
                if lone:
                    continue
                origin.setdefault(own, dim)
                if origin[own] != dim:  # of two dimensions that become one, the first goes on
                    notes.lose([label], joins)
                    del seen[own][label]
    return seen


def _seen(
    label: str, place: Place, ahead: int, dims: Sequence[tuple[int, int]], size: int, repeats: int, notes: ViewNotes
) -> tuple[int, Place, bool] | None:
    """The dimension in which a label is after a view, its place there, and whether it is one block alone."""
    position, sizes = ahead * place.outer, dict(dims)
    lone = size == 1
    alone = _single(position, dims, lone) if place.held else None
    if alone is not None and (lone or notes.single(label)):
        notes.blocks(label, place, 1)
        return alone, replace(place, outer=1), True
    where = _placed(position, dims)
    if where is None:
        return None
    own, outer = where
    parts = sizes[own] // outer
    behind = [(k, n) for k, n in dims if k > own]
    if outer == 1 and place.outer == 1 and parts > 1 and behind and parts < size:
        inner = notes.inner(label, place, parts, behind[0][1])
        if inner is not None:
            return behind[0][0], inner, False
    found = replace(place, outer=outer)
    # Of blocks with copies, each repeated in a row: the ranks with copies of one share the repetitions.
    copies = notes.blocks(label, place, size // place.outer)
    if copies > 1 and repeats % copies == 0:
        found = replace(found, held=False)
    notes.blocks(label, found, parts)
    return own, found, False


def _repeated(dim: int, old: Sequence[int], before: Sequence[int], spread: frozenset[int]) -> int:
    """How often entries along a dimension are repeated by the next one in the same run of dimensions."""
    return before[dim + 1] if dim + 1 in old and dim + 1 in spread else 1


def _single(position: int, dims: Sequence[tuple[int, int]], lone: bool) -> int | None:
    """The dimension of one entry in which one block lies that follows `position` outer indices."""
    ahead = 1
    for dim, size in dims:
        if ahead == position and size == 1 and (lone or len(dims) > 1):
            return dim
        ahead *= size
    return None


def _placed(position: int, dims: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The dimension in which blocks lie that follow `position` outer indices, and how many of these are in it."""
    ahead = 1
    for dim, size in dims:
        if position < ahead * size and position % ahead == 0:
            outer = position // ahead
            return None if size % outer else (dim, outer)
        ahead *= size
    return None


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
