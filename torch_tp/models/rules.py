"""What the rules of operators are made of: operands, one call of an operator, and meetings of shards.

A rule takes a call and returns the cuts of its results, in order. Where a sharded dimension meets one that is not, or
where an operator runs along a sharded dimension, the rule says which labels are lost; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch_tp.models.cuts import Cuts, Place, ViewNotes

Labels = Mapping[str, Place]


class Notes(ViewNotes, Protocol):
    """Where rules note what they find out about labels."""

    def meet(self, places: Sequence[tuple[str, Place]]) -> None:
        """These are sharded together, in the same manner."""

    def contract(self, places: Sequence[tuple[str, Place]]) -> None:
        """These are sharded together, in even shards, and a sum runs over them."""

    def sliced(self, label: str, place: Place, size: int, start: int, stop: int) -> Place | None:
        """The place of a slice along a label's dimension of `size` entries, if there can be one."""


@dataclass(frozen=True)
class Operand:
    """A tensor that an operator takes.

    Attributes:
        number: of its value.
        shape: its shape.
        cuts: how it is sharded.
        spread: dimensions along which all its entries are equal.
        entries: its entries, where the code itself writes them down.
    """

    number: int
    shape: tuple[int, ...]
    cuts: Cuts = field(default_factory=dict[int, Labels])
    spread: frozenset[int] = frozenset()
    entries: tuple[Any, ...] | None = None

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def at(self, dim: int) -> Labels:
        """The labels along a dimension."""
        return self.cuts.get(dim, {})


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments, in which tensors are `Operand`, and the shapes of its results."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    operands: Sequence[Operand]
    shapes: Sequence[tuple[int, ...]]
    notes: Notes

    @property
    def first(self) -> Operand:
        """The first argument."""
        found: Operand = self.args[0]
        return found

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, however it was given."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def dimension(self, position: int = 1, name: str = "dim", default: int = 0, extra: int = 0) -> int:
        """An argument that is a dimension of the first one, counted from the front."""
        index: int = self.argument(position, name, default)
        return index % max(1, self.first.dim + extra)

    def without(self, cuts: Cuts, dims: Collection[int], why: str) -> dict[int, Labels]:
        """Cuts without these dimensions, whose labels are lost."""
        for dim in dims:
            self.notes.lose(cuts.get(dim, {}), why)
        return {dim: labels for dim, labels in cuts.items() if dim not in dims}


Rule = Callable[[Call], Sequence[Cuts]]


def united(notes: Notes, parts: Sequence[Labels], why: str) -> Labels:
    """The common labels of dimensions that meet: all are sharded alike, or none is."""
    places = [(label, place) for part in parts for label, place in part.items()]
    if not places:
        return {}
    if not all(parts) or len({place.outer for _, place in places}) > 1:
        notes.lose([label for label, _ in places], why)
        return {}
    notes.meet(places)
    return dict(places)


def contracted(notes: Notes, a: Labels, b: Labels, why: str) -> None:
    """A sum runs over a dimension of two values: both are sharded along it, alike, or neither is."""
    places = [*a.items(), *b.items()]
    if a and b and len({place.outer for _, place in places}) == 1:
        notes.contract(places)
    else:
        notes.lose([label for label, _ in places], why)


def spread(notes: Notes, labels: Labels, size: int) -> Labels:
    """One block of which all ranks have a copy, repeated: each rank has its share of the repetitions."""
    found = {label: replace(place, held=False) for label, place in labels.items()}
    for label, place in found.items():
        notes.blocks(label, place, size)
    return found


def repeated(notes: Notes, labels: Labels, before: int, after: int) -> Labels:
    """Blocks of which each is used for `after / before` neighbours: ranks with copies of one share its neighbours."""
    found: dict[str, Place] = {}
    for label, place in labels.items():
        copies = notes.blocks(label, place, before // place.outer)
        if copies > 1 and (after // before) % copies == 0:
            place = replace(place, held=False)
            notes.blocks(label, place, after // place.outer)
        found[label] = place
    return found
