"""What an item, or a run, has judged, so that a worker can hand it to the one that reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from conformance.coverage.cells import Cell, cell_of
from conformance.coverage.worth import miss_probability, value_count
from spec import Case, Finding

_COUNTERS = ("judged", "broken", "blamed", "unsupported", "declined")
Clauses = tuple[str, ...]
Place = tuple[str, int, str]


@dataclass(frozen=True)
class Weakest:
    """The least that the passes of one cell are worth.

    Attributes:
        miss: the largest probability that one of its examples misses a fault (see `conformance.coverage.worth`).
        values: the smallest number of values that one was drawn from.
    """

    miss: float
    values: int

    def or_weaker(self, other: Weakest | None) -> Weakest:
        """The weaker of both, in each respect."""
        return self if other is None else Weakest(max(self.miss, other.miss), min(self.values, other.values))


@dataclass
class Tally:
    """Counts of one item, or of several added up.

    Attributes:
        judged: (clause, world size, layer) -> examples in which the clause could have failed.
        broken: the same -> examples in which it did.
        blamed: the same -> examples in which that failed the run.
        unsupported: the same -> examples in which it could have failed, but which were declined, or not observed.
        declined: (reason, layer, world size) -> examples.
        examples: world size -> examples judged.
        intermittent: failures that did not come back, as text.
        visited: (cell, the clauses that could have failed) -> examples.
        weakest: cell -> what its passes are worth, where a bound is stated.
    """

    judged: Counter[Place] = field(default_factory=Counter[Place])
    broken: Counter[Place] = field(default_factory=Counter[Place])
    blamed: Counter[Place] = field(default_factory=Counter[Place])
    unsupported: Counter[Place] = field(default_factory=Counter[Place])
    declined: Counter[tuple[str, str, int]] = field(default_factory=Counter[tuple[str, str, int]])
    examples: Counter[int] = field(default_factory=Counter[int])
    intermittent: list[str] = field(default_factory=list[str])
    visited: Counter[tuple[Cell, Clauses]] = field(default_factory=Counter[tuple[Cell, Clauses]])
    weakest: dict[Cell, Weakest] = field(default_factory=dict[Cell, Weakest])

    def count(
        self,
        case: Case,
        clauses: Iterable[str],
        failing: frozenset[str],
        blamed: Sequence[Finding],
        unseen: Iterable[str] = (),
    ) -> None:
        """One judged example; `unseen` are clauses that could have failed, about what cannot be observed."""
        names, cell = tuple(clauses), cell_of(case)
        self.examples[case.world] += 1
        self.visited[cell, names] += 1
        for name in names:
            self.judged[name, case.world, case.layer] += 1
        for name in failing:
            self.broken[name, case.world, case.layer] += 1
        for name in {finding.clause.name for finding in blamed}:
            self.blamed[name, case.world, case.layer] += 1
        for name in unseen:
            self.unsupported[name, case.world, case.layer] += 1
        miss, values = miss_probability(case), value_count(case)
        if miss is not None and values is not None:
            self.weakest[cell] = Weakest(miss, values).or_weaker(self.weakest.get(cell))

    def decline(self, case: Case, reason: str, clauses: Iterable[str] = ()) -> None:
        """One example that the implementation does not have, and the clauses that could have failed in it."""
        self.declined[reason, case.layer, case.world] += 1
        for name in clauses:
            self.unsupported[name, case.world, case.layer] += 1

    @property
    def totals(self) -> dict[tuple[str, int], tuple[int, int, int, int]]:
        """(clause, world size) -> examples judged, broken, blamed and unsupported, in any layer."""
        found: dict[tuple[str, int], tuple[int, int, int, int]] = {}
        for name, world, layer in {**self.judged, **self.broken, **self.blamed, **self.unsupported}:
            counts = (each[name, world, layer] for each in (self.judged, self.broken, self.blamed, self.unsupported))
            before = found.get((name, world), (0, 0, 0, 0))
            judged, broken, blamed, unsupported = (a + b for a, b in zip(before, counts, strict=True))
            found[name, world] = (judged, broken, blamed, unsupported)
        return found

    @property
    def cells(self) -> Counter[Cell]:
        """Cell -> examples."""
        found: Counter[Cell] = Counter()
        for (cell, _), n in self.visited.items():
            found[cell] += n
        return found

    @property
    def judged_in(self) -> dict[Cell, Counter[str]]:
        """Cell -> clause -> examples in which it could have failed."""
        found: dict[Cell, Counter[str]] = {}
        for (cell, names), n in self.visited.items():
            found.setdefault(cell, Counter()).update(dict.fromkeys(names, n))
        return found

    def add(self, other: Tally) -> None:
        """Add another worker's counts."""
        for name in (*_COUNTERS, "examples", "visited"):
            getattr(self, name).update(getattr(other, name))
        self.intermittent += other.intermittent
        for cell, weakest in other.weakest.items():
            self.weakest[cell] = weakest.or_weaker(self.weakest.get(cell))

    def as_data(self) -> dict[str, Any]:
        """Plain lists, for the way from a worker to the reporter; cells and sets of clauses once, then by number."""
        data: dict[str, Any] = {name: [[*key, n] for key, n in getattr(self, name).items()] for name in _COUNTERS}
        cells = {cell: number for number, cell in enumerate(dict.fromkeys([*self.cells, *self.weakest]))}
        clauses = {names: number for number, names in enumerate(dict.fromkeys(names for _, names in self.visited))}
        return data | {
            "examples": [[world, n] for world, n in self.examples.items()],
            "intermittent": list(self.intermittent),
            "cells": [list(astuple(cell)) for cell in cells],
            "clauses": [list(names) for names in clauses],
            "visited": [[cells[cell], clauses[names], n] for (cell, names), n in self.visited.items()],
            "weakest": [[cells[cell], entry.miss, entry.values] for cell, entry in self.weakest.items()],
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Tally:
        """The inverse of `as_data`."""
        made = cls(**{name: Counter({tuple(entry[:-1]): entry[-1] for entry in data[name]}) for name in _COUNTERS})
        made.examples = Counter(dict(data["examples"]))
        made.intermittent = list(data["intermittent"])
        cells = [Cell(*entry) for entry in data["cells"]]
        clauses = [tuple(entry) for entry in data["clauses"]]
        made.visited = Counter({(cells[cell], clauses[names]): n for cell, names, n in data["visited"]})
        made.weakest = {cells[cell]: Weakest(miss, values) for cell, miss, values in data["weakest"]}
        return made
