"""What the page shows of a report: its columns, and for every clause the cell in each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from conformance.reporting.record import ClauseText, Coverage, Failure, Report, Run, Verdict

SYMBOLS: dict[Verdict, str] = {
    "fail": "\u2717",
    "known": "\u25c6",
    "should": "\u25b3",
    "pass": "\u2713",
    "unsupported": "\u2013",
    "not run": "\u25cb",
}
MEANINGS: dict[Verdict, str] = {
    "fail": "broken, and the run failed for it",
    "known": "broken, and listed by the implementation as a known deviation",
    "should": "broken, but the clause is only a SHOULD",
    "pass": "judged and never broken; what that is worth stands in the cell",
    "unsupported": "the implementation declined every example, or hides what would have to be seen",
    "not run": "no example came to it",
}


@dataclass(frozen=True)
class Column:
    """One implementation at one world size; `first` of its implementation's columns."""

    number: int
    run: Run
    slug: str
    world: int
    first: bool


@dataclass(frozen=True)
class Counts:
    """Examples of a clause at a world size, added up over layers."""

    judged: int = 0
    broken: int = 0
    blamed: int = 0
    declined: int = 0


@dataclass(frozen=True)
class Cell:
    """A clause in a column."""

    clause: ClauseText
    column: Column
    verdict: Verdict
    counts: Counts
    coverage: Coverage | None
    failures: tuple[Failure, ...]

    @property
    def address(self) -> str:
        """What follows the # in a link to it."""
        return f"{self.clause.name}@{self.column.world}@{self.column.slug}"


@dataclass(frozen=True)
class Model:
    """A report, read for the page."""

    report: Report

    @cached_property
    def worlds(self) -> tuple[int, ...]:
        return tuple(sorted({world for run in self.report.runs for world in run.options.world_sizes}))

    @cached_property
    def slugs(self) -> tuple[str, ...]:
        """A name for each run that can stand in a link, no two alike."""
        found: list[str] = []
        for run in self.report.runs:
            name = _slug(run.implementation.name)
            if sum(_slug(other.implementation.name) == name for other in self.report.runs) > 1:
                name = _slug(f"{name}-{run.options.backend}-{run.options.device}")
            while name in found:
                name += "-again"
            found.append(name)
        return tuple(found)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        return tuple(
            Column(number, run, slug, world, world == self.worlds[0])
            for number, (run, slug) in enumerate(zip(self.report.runs, self.slugs, strict=True))
            for world in self.worlds
        )

    @cached_property
    def groups(self) -> dict[str, list[ClauseText]]:
        """Clauses by the first word of their names, in the register's order."""
        found: dict[str, list[ClauseText]] = {}
        for clause in self.report.clauses:
            found.setdefault(clause.group, []).append(clause)
        return found

    @cached_property
    def cells(self) -> dict[tuple[str, int, int], Cell]:
        """(clause, number of the run, world size) -> cell, where the clause applies."""
        return {
            (cell.clause.name, cell.column.number, cell.column.world): cell
            for column in self.columns
            for cell in self._of(column)
        }

    def row(self, clause: ClauseText) -> Iterator[Cell | None]:
        """A clause's cells in the order of the columns; None where it does not apply."""
        for column in self.columns:
            yield self.cells.get((clause.name, column.number, column.world))

    def in_run(self, number: int) -> list[Cell]:
        return [cell for (_, run, _), cell in self.cells.items() if run == number]

    def name(self, number: int) -> str:
        """An implementation's name; with backend and device where it was examined on more than one."""
        run = self.report.runs[number]
        name = run.implementation.name
        alike = sum(other.implementation.name == name for other in self.report.runs)
        return name if alike == 1 else f"{name} ({run.options.backend}, {run.options.device})"

    @cached_property
    def _applies(self) -> set[tuple[str, int]]:
        return {key for run in self.report.runs for key in run.verdicts}

    def _of(self, column: Column) -> Iterator[Cell]:
        run, world = column.run, column.world
        coverage = {cell.clause: cell for cell in run.cells if cell.world == world}
        verdicts, counts = run.verdicts, _counts(run, world)
        failures: dict[str, list[Failure]] = {}
        for failure in run.failures:
            if failure.world == world:
                failures.setdefault(failure.clause, []).append(failure)
        for clause in self.report.clauses:
            if (clause.name, world) in self._applies:
                yield Cell(
                    clause,
                    column,
                    verdicts.get((clause.name, world), "not run"),
                    counts.get(clause.name, Counts()),
                    coverage.get(clause.name),
                    tuple(failures.get(clause.name, ())),
                )


def _counts(run: Run, world: int) -> dict[str, Counts]:
    found: dict[str, Counts] = {}
    for n in run.counts:
        if n.world == world:
            old = found.get(n.clause, Counts())
            found[n.clause] = Counts(
                old.judged + n.judged, old.broken + n.broken, old.blamed + n.blamed, old.declined + n.declined
            )
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-") or "run"


def css(verdict: Verdict) -> str:
    """The class of a verdict."""
    return verdict.replace(" ", "-")


def plural(n: int, word: str, words: str = "") -> str:
    """A number with its noun."""
    return f"{n} {word if n == 1 else words or word + 's'}"


def listed(words: Sequence[object]) -> str:
    """1, 2 and 4."""
    *rest, last = map(str, words) if words else ("",)
    return f"{', '.join(rest)} and {last}" if rest else last
