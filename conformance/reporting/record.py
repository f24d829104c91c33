"""A run as a record: what `--report` writes, what `python -m conformance report` reads, adds up and compares.

All of it is frozen data, as JSON by `conformance.reporting.plain`. A matrix cell has one verdict, for the page, for the
closing table and for committed results alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib import metadata
from typing import Any, Final, Literal

from conformance.items import items
from spec import REGISTER
from spec.case import LAYERS

FORMAT: Final = 1
FILE: Final = "report.json"
WORLDS: Final = (1, 2, 4)
Verdict = Literal["fail", "known", "should", "pass", "unsupported", "not run"]
VERDICTS: Final[tuple[Verdict, ...]] = ("fail", "known", "should", "pass", "unsupported", "not run")


@dataclass(frozen=True)
class SuiteVersion:
    """Which suite judged.

    Attributes:
        contract: a hash of the clauses (name, level, title, text) and of the items' names.
    """

    version: str
    contract: str


@dataclass(frozen=True)
class ClauseText:
    """A clause of the register.

    Attributes:
        group: the first word of its name; layer: the same where that is a layer, else empty.
    """

    name: str
    level: str
    title: str
    text: str
    group: str
    layer: str


@dataclass(frozen=True)
class Implementation:
    """Who was examined.

    Attributes:
        impl: what --impl said, a file without its folder.
        semantics: what it does otherwise on purpose, as sentences.
    """

    name: str
    impl: str
    strict: bool
    versions: dict[str, str]
    flags: dict[str, str]
    semantics: tuple[str, ...] = ()


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
class KnownReason:
    """Why a deviation is known."""

    reason: str
    link: str


@dataclass(frozen=True)
class ViolationText:
    """One reason why a clause does not hold, as `spec.Violation` has it."""

    rank: int | None
    step: str
    what: str
    expected: str
    got: str


@dataclass(frozen=True)
class DiagnosisText:
    """What a failure looks like, as the terminal shows it; `probe` is a case line or empty."""

    looks: tuple[str, ...]
    next: str
    passes: tuple[str, ...]
    probe: str
    rounding: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """One failure, as small as it got, or one known deviation.

    Attributes:
        also: the other clauses that its case broke.
        lost: what is known of lost ranks. text: all of it as the terminal shows it.
        evidence: expected and seen tensors of the clause's group (see `conformance.reporting.evidence`).
    """

    clause: str
    world: int
    layer: str
    item: str
    case: str
    replay: str
    known: KnownReason | None
    violations: tuple[ViolationText, ...]
    also: tuple[str, ...]
    diagnosis: DiagnosisText
    lost: tuple[str, ...]
    text: str
    evidence: dict[str, Any] | None


@dataclass(frozen=True)
class Run:
    """One implementation over one backend on one device.

    Attributes:
        missing: why it is not all of the suite, as sentences; none where it is complete.
        examples: world size, as text, to examples judged.
        intermittent: failures that did not come back, as text.
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


@dataclass(frozen=True)
class Report:
    """Everything in one report.json."""

    format: int
    suite: SuiteVersion
    clauses: tuple[ClauseText, ...]
    runs: tuple[Run, ...]


def verdict(lenient: bool, judged: int, broken: int, blamed: int, declined: int) -> Verdict:
    """The verdict of a matrix cell from its examples; `lenient`: of a SHOULD, and the implementation is not strict."""
    if blamed:
        return "fail"
    if broken:
        return "should" if lenient else "known"
    if judged:
        return "pass"
    return "unsupported" if declined else "not run"


# What is the same in every report of one suite


def new_report(runs: Sequence[Run]) -> Report:
    """A report of this suite about these runs."""
    clauses = tuple(ClauseText(c.name, c.level, c.title, c.text, *_place(c.name)) for c in REGISTER.values())
    return Report(FORMAT, suite_version(), clauses, tuple(runs))


def _place(name: str) -> tuple[str, str]:
    first = name.partition(".")[0]
    return first, first if first in LAYERS else ""


@lru_cache(maxsize=1)
def suite_version() -> SuiteVersion:
    """The version of this suite; of a checkout that is not installed it is unknown."""
    try:
        version = metadata.version("torch-tp")
    except metadata.PackageNotFoundError:
        version = "unknown"
    texts = [[c.name, c.level, c.title, c.text] for c in REGISTER.values()]
    whole = json.dumps([texts, [str(item) for item in items(WORLDS)]])
    return SuiteVersion(version, blake2b(whole.encode(), digest_size=8).hexdigest())


def missing(options: RunOptions, done: ItemsRun) -> tuple[str, ...]:
    """Why a run is not all of the suite, as sentences; none where it is."""
    lines: list[str] = []
    ran, partly = set(done.names), False
    for world in WORLDS:
        whole = [str(item) for item in items((world,))]
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
