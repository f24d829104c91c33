"""What a run says of labels: which are lost, which are cut together, in what parts and with how many copies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import gcd

from torch_tp.models.cuts import Place

# The parts of a dimension as shares of it, each with its number of copies.
Layout = tuple[tuple[Fraction, int], ...]
_EVEN: Layout = ((Fraction(1), 1),)


@dataclass
class Ledger:
    """Everything that is noted of labels.

    Attributes:
        P: the number of ranks.
        sizes: label -> size of the parameter's dimension.
        alone: labels that are to be seen as one block, with copies on all ranks, where they can be.
        doubtful: labels that can be.
        inside: labels of which each of several outer parts is sharded, where the outer parts could be shared out.
        nested: labels that can be seen so.
        lost: label -> why it cannot be cut.
        started: labels that a product's free dimension has, with which a cut can start.
        reduced: module -> labels over which its results are summed when it returns.
        exclusive: pairs of which not both can be cut.
    """

    P: int
    sizes: dict[str, int]
    alone: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    doubtful: set[str] = field(default_factory=set[str])
    nested: set[str] = field(default_factory=set[str])
    lost: dict[str, str] = field(default_factory=dict[str, str])
    started: set[str] = field(default_factory=set[str])
    reduced: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    exclusive: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    taken: set[str] = field(default_factory=set[str])
    _alike: dict[str, str] = field(default_factory=dict[str, str])
    _blocks: dict[tuple[str, tuple[int, int] | None], int] = field(
        default_factory=dict[tuple[str, tuple[int, int] | None], int]
    )
    _intervals: dict[str, set[tuple[int, int]]] = field(default_factory=dict[str, set[tuple[int, int]]])
    _meets: set[tuple[tuple[str, Place], ...]] = field(default_factory=set[tuple[tuple[str, Place], ...]])
    _contracts: set[tuple[tuple[str, Place], ...]] = field(default_factory=set[tuple[tuple[str, Place], ...]])
    _now: set[str] = field(default_factory=set[str])

    def root(self, label: str) -> str:
        """The same for all labels that must be cut together."""
        while (up := self._alike.setdefault(label, label)) != label:
            label = up
        return label

    def lose(self, labels: Collection[str], why: str) -> None:
        """These cannot be cut; the first reason counts."""
        for label in labels:
            self.lost.setdefault(label, why)

    def meet(self, places: Sequence[tuple[str, Place]]) -> None:
        """These are cut together, in the same manner."""
        (first, _), *others = places
        for label, _ in others:
            self._alike[self.root(label)] = self.root(first)
        if others:
            self._meets.add(tuple(places))

    def contract(self, places: Sequence[tuple[str, Place]]) -> None:
        """These are cut together, in even slices, and a sum runs over them."""
        self.meet(places)
        labels = [label for label, _ in places]
        self._contracts.add(tuple(places))
        self._now.update(labels)
        self.taken.update(labels)

    def take_contracted(self) -> frozenset[str]:
        """The labels over which a sum has run since this was last asked."""
        taken, self._now = frozenset(self._now), set()
        return taken

    def single(self, label: str) -> bool:
        """Whether a label that could be one block alone is to be seen so."""
        self.doubtful.add(label)
        return label in self.alone

    def inner(self, label: str, place: Place, outer: int, blocks: int) -> Place | None:
        """The place of a label as `outer` equal parts of `blocks` blocks each; None: its outer parts are sharded."""
        size = self.sizes[label]
        if place.part is not None or not place.held or size % outer:
            return None
        if not (outer % self.P and self.P % outer):  # the ranks could share the outer parts
            self.nested.add(label)
            if label not in self.inside:
                return None
        each = size // outer
        for k in range(outer):
            part = replace(place, part=(k * each, (k + 1) * each))
            self._intervals.setdefault(label, set()).add((k * each, (k + 1) * each))
            self.blocks(label, part, blocks)
        return replace(place, part=(0, each))

    def blocks(self, label: str, place: Place, count: int) -> int:
        """So many blocks lie in a dimension; returns how many copies of each the ranks hold."""
        if not place.held:
            if count % self.P:
                self.lose([label], self._undivided(label, count))
            return 1
        key = (label, place.part)
        self._blocks[key] = gcd(count, self._blocks.get(key, count))
        return self._copies(self._blocks[key]) or 1

    def sliced(self, label: str, place: Place, size: int, start: int, stop: int) -> Place | None:
        """The place of a slice along a label's dimension of `size` entries, if there can be one."""
        low, high = place.part or (0, self.sizes[label])
        if place.outer != 1 or not place.held or (high - low) % size:
            return None
        scale = (high - low) // size
        part = (low + start * scale, low + stop * scale)
        self._intervals.setdefault(label, set()).add(part)
        found = replace(place, part=part)
        self.blocks(label, found, stop - start)
        return found

    def parts(self, label: str) -> list[tuple[int, int]]:
        """The parts of a dimension, each of which is cut by itself: those slices that hold no others."""
        given = sorted(self._intervals.get(label, ()))
        found = [(a, b) for a, b in given if not any((a, b) != other and _inside(other, (a, b)) for other in given)]
        return found or [(0, self.sizes[label])]

    def copies(self, label: str) -> list[int]:
        """How many neighbouring ranks hold each slice of each part; 0 where they cannot share its blocks."""
        return [self._copies(self._count(label, part)) for part in self.parts(label)]

    def _count(self, label: str, part: tuple[int, int]) -> int:
        """How many blocks lie in a part, also of what holds it; 0 if the part does not begin and end with one."""
        low, high = part
        count = high - low
        for (other, held), blocks in self._blocks.items():
            start, stop = held or (0, self.sizes[label])
            if other == label and start <= low and high <= stop:
                each = (stop - start) // blocks
                if (low - start) % each or (high - low) % each:
                    return 0
                count = gcd(count, (high - low) // each)
        return count

    def judge(self) -> None:
        """Lose what cannot be cut after all, now that everything is noted."""
        for label, size in self.sizes.items():
            parts = self.parts(label)
            ends = [0, *(stop for _, stop in parts)]
            if [start for start, _ in parts] != ends[:-1] or ends[-1] != size:
                self.lose([label], "a slice is taken along its sharded dimension")
            elif 0 in self.copies(label):
                count = min(self._count(label, part) for part in parts)
                self.lose([label], self._undivided(label, count or self._blocks.get((label, None), size)))
        for together in self._contracts:
            for label, place in together:
                if label not in self.lost and self.layout(label, place) != _EVEN:
                    why = self._undivided(label, self._blocks.get((label, place.part), self.sizes[label]))
                    self.lose([label], why)
                    self.lose([other for other, _ in together], f"{label}: {why}")
        for together in self._meets:
            if len({self.layout(label, place) for label, place in together}) > 1:
                self.lose([label for label, _ in together], "its output meets what is sharded in other shards")

    def layout(self, label: str, place: Place) -> Layout:
        """In what shares a value with this label at this place is cut."""
        if not place.held or label in self.lost:
            return _EVEN
        low, high = place.part or (0, self.sizes[label])
        parts = zip(self.parts(label), self.copies(label), strict=True)
        return tuple((Fraction(b - a, high - low), c) for (a, b), c in parts if _inside((a, b), (low, high)))

    def share(self, label: str, place: Place) -> Fraction:
        """Which share of a cut dimension one rank holds."""
        return sum((share * copies for share, copies in self.layout(label, place)), Fraction(0)) / self.P

    def entries(self, label: str, place: Place, size: int, rank: int) -> list[int]:
        """Which entries of a dimension of `size`, with this label at this place, a rank holds."""
        width, found = size // place.outer, list[int]()
        for outer in range(place.outer):
            start = outer * width
            for share, copies in self.layout(label, place):
                piece = int(width * share * copies / self.P)
                first = start + rank // copies * piece
                found += range(first, first + piece)
                start += int(width * share)
        return found

    def groups(self) -> Iterator[list[str]]:
        """The labels that are cut together, each set once."""
        found: dict[str, list[str]] = {}
        for label in self.sizes:
            found.setdefault(self.root(label), []).append(label)
        yield from found.values()

    def _undivided(self, label: str, count: int) -> str:
        if count == self.sizes[label]:
            return f"P = {self.P} does not divide its {count} features"
        return f"its output is used as {count} blocks, such as heads, which P = {self.P} does not divide"

    def _copies(self, count: int) -> int:
        if not count:
            return 0
        return 1 if count % self.P == 0 else self.P // count if self.P % count == 0 else 0


def _inside(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


class Told:
    """What rules tell a ledger, of whoever has one."""

    ledger: Ledger

    def meet(self, places: Sequence[tuple[str, Place]]) -> None:
        """See `Ledger.meet`."""
        self.ledger.meet(places)

    def contract(self, places: Sequence[tuple[str, Place]]) -> None:
        """See `Ledger.contract`."""
        self.ledger.contract(places)

    def single(self, label: str) -> bool:
        """See `Ledger.single`."""
        return self.ledger.single(label)

    def blocks(self, label: str, place: Place, count: int) -> int:
        """See `Ledger.blocks`."""
        return self.ledger.blocks(label, place, count)

    def sliced(self, label: str, place: Place, size: int, start: int, stop: int) -> Place | None:
        """See `Ledger.sliced`."""
        return self.ledger.sliced(label, place, size, start, stop)

    def inner(self, label: str, place: Place, outer: int, blocks: int) -> Place | None:
        """See `Ledger.inner`."""
        return self.ledger.inner(label, place, outer, blocks)
