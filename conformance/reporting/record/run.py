"""One run: who was examined and how, which items were run, and what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from conformance.items import items
from conformance.reporting.record.failure import Failure, Sighting
from conformance.reporting.record.verdict import Verdict, verdict
from spec import REGISTER
from spec.case import FUSED

WORLDS: Final = (1, 2, 4)


@dataclass(frozen=True)
class Implementation:
    """Who was examined.

    Attributes:
        impl: what --impl said, a file without its folder.
        semantics: what it does otherwise on purpose, as sentences.
        fused: which of the layers of several parts it has; of others there are no items.
    """

    name: str
    impl: str
    strict: bool
    versions: dict[str, str]
    flags: dict[str, str]
    semantics: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunOptions:
    """How it was examined; of runs that were added up, profile and seed of each."""

    world_sizes: tuple[int, ...]
    backend: str
    device: str
    clauses: tuple[str, ...]
    profile: str
    seed: str


@dataclass(frozen=True)
class ItemsRun:
    """Which items were run.

    Attributes:
        collected, ran: how many were to be run, and how many told what they found.
        names: the latter. left: those that were to be run and told nothing.
        reasons: why others were left out or came to nothing, such as "-k 'row'" or "interrupted".
    """

    collected: int
    ran: int
    names: tuple[str, ...]
    left: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """Examples in which a clause could have failed, did, failed the run, and such as were declined."""

    clause: str
    world: int
    layer: str
    judged: int
    broken: int
    blamed: int
    declined: int


@dataclass(frozen=True)
class Coverage:
    """What stands behind a matrix cell; there is one for every world size that a clause applies in.

    Attributes:
        visited: cells in which the clause was judged, of `reachable` in which it could have been.
        values, miss: the weakest bound of those (see `conformance.coverage.worth`), None where none is stated.
    """

    clause: str
    world: int
    visited: int
    reachable: int
    values: int | None
    miss: float | None


@dataclass(frozen=True)
class Declined:
    """Examples that the implementation does not have."""

    reason: str
    layer: str
    world: int
    examples: int


@dataclass(frozen=True)
class Run:
    """One implementation over one backend on one device.

    Attributes:
        missing: why it is not all of the suite, as sentences; none where it is complete.
        examples: world size, as text, to examples judged.
        intermittent: failures that did not come back, as text.
        sightings: of the known deviations that depend on the machine, each that was looked for.
    """

    implementation: Implementation
    options: RunOptions
    complete: bool
    missing: tuple[str, ...]
    items: ItemsRun
    counts: tuple[Count, ...]
    examples: dict[str, int]
    cells: tuple[Coverage, ...]
    declined: tuple[Declined, ...]
    intermittent: tuple[str, ...]
    failures: tuple[Failure, ...]
    sightings: tuple[Sighting, ...] = ()

    @property
    def verdicts(self) -> dict[tuple[str, int], Verdict]:
        """(clause, world size) -> verdict, for every world size that the clause applies in."""
        totals: dict[tuple[str, int], list[int]] = {(cell.clause, cell.world): [0] * 4 for cell in self.cells}
        for n in self.counts:
            total = totals.setdefault((n.clause, n.world), [0] * 4)
            total[:] = [a + b for a, b in zip(total, (n.judged, n.broken, n.blamed, n.declined), strict=True)]
        should = {name for name, clause in REGISTER.items() if clause.level == "SHOULD"}
        strict = self.implementation.strict
        return {key: verdict(key[0] in should and not strict, *total) for key, total in totals.items()}


def missing(options: RunOptions, done: ItemsRun, fused: Sequence[str] = FUSED) -> tuple[str, ...]:
    """Why a run is not all of the suite, as sentences; none where it is."""
    lines: list[str] = []
    ran, partly = set(done.names), False
    for world in WORLDS:
        whole = [str(item) for item in items((world,), fused)]
        there = sum(name in ran for name in whole)
        if world not in options.world_sizes:
            lines.append(f"world size {world} was not run: not in --world-sizes")
        elif there < len(whole):
            partly = True
            lines.append(f"world size {world}: {there} of {len(whole)} items were run")
    if options.clauses:
        lines.append(f"clauses that do not begin with {' or '.join(options.clauses)} were not judged: --clause")
    if done.left:
        lines.append(f"{done.ran} of {done.collected} items that were to be run told what they found")
    if partly or done.left:
        lines += [f"the reason: {reason}" for reason in done.reasons or ("not known; --deselect, perhaps",)]
    return tuple(lines)
