"""The results of a run as they are kept: made of a report, written, and read again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.adapters.find import OURS
from conformance.reporting.record import (
    FORMAT,
    Declined,
    Implementation,
    KnownReason,
    Report,
    Run,
    RunOptions,
    SuiteVersion,
)
from conformance.reporting.record.plain import DoesNotFit, data, record_of, write_text
from conformance.reporting.record.read import Unusable, loaded
from spec import REGISTER

Key = tuple[str, int]


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    verdict: str
    judged: int
    broken: int


@dataclass(frozen=True)
class Told:
    """A failure or known deviation without its numbers; of what depends on the machine, what is the same on all."""

    clause: str
    world: int
    layer: str
    item: str
    case: str
    known: KnownReason | None
    looks: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """What is committed of one run; `matrix` is clause -> world size -> cell."""

    format: int
    suite: SuiteVersion
    implementation: Implementation
    options: RunOptions
    examples: dict[str, int]
    matrix: dict[str, dict[str, Cell]]
    declined: tuple[Declined, ...]
    failures: tuple[Told, ...]

    @property
    def verdicts(self) -> dict[Key, str]:
        """(clause, world size) -> verdict."""
        return {(name, int(world)): cell.verdict for name, row in self.matrix.items() for world, cell in row.items()}


def results_of(report: Report) -> dict[str, Results]:
    """File name -> what it is to hold, for every run of a report.

    Raises:
        Unusable: a run that is not complete, or two that would go into one file.
    """
    found: dict[str, Results] = {}
    for run in report.runs:
        if not run.complete:
            raise Unusable(f"{run.implementation.name}: not a complete run, {'; '.join(run.missing)}")
        if file_name(run) in found:
            raise Unusable(f"{file_name(run)}: two of the runs would be written there")
        found[file_name(run)] = _results(report.suite, run)
    return found


def file_name(run: Run) -> str:
    """Where the results of a run are kept."""
    impl, options = run.implementation.impl, run.options
    name = impl if impl in OURS else re.sub(r"\W+", "_", run.implementation.name)
    plain = (options.backend, options.device) == ("gloo", "cpu")
    return f"{name}.json" if plain else f"{name}-{options.backend}-{options.device}.json"


def _results(suite: SuiteVersion, run: Run) -> Results:
    judged: Counter[Key] = Counter()
    broken: Counter[Key] = Counter()
    for count in run.counts:
        judged[count.clause, count.world] += count.judged
        broken[count.clause, count.world] += count.broken
    matrix: dict[str, dict[str, Cell]] = {}
    for key, verdict in sorted(verdicts_on_any_machine(run).items(), key=lambda entry: place_of(entry[0])):
        matrix.setdefault(key[0], {})[str(key[1])] = Cell(verdict, judged[key], broken[key])
    told = tuple(sorted(_told(run), key=lambda f: (*place_of((f.clause, f.world)), f.item)))
    return Results(FORMAT, suite, run.implementation, run.options, run.examples, matrix, run.declined, told)


def verdicts_on_any_machine(run: Run) -> dict[Key, str]:
    """(clause, world size) -> verdict, and *known* where a run on another machine would have seen a known deviation."""
    depends = {(sighting.clause, sighting.world) for sighting in run.sightings}
    return {
        key: "known" if verdict == "pass" and key in depends else str(verdict) for key, verdict in run.verdicts.items()
    }


def _told(run: Run) -> Iterator[Told]:
    """What depends on the machine is told from its entry alone, whether it was seen or not."""
    for f in run.failures:
        if not (f.known and f.known.machine):
            yield Told(f.clause, f.world, f.layer, f.item, f.case, f.known, f.diagnosis.looks)
    for s in run.sightings:
        yield Told(s.clause, s.world, s.layer, s.item, s.case, s.known, ())


def place_of(key: Key) -> tuple[int, str, int]:
    """What (clause, world size) is sorted by: the register's order."""
    names = list(REGISTER)
    return names.index(key[0]) if key[0] in REGISTER else len(names), *key


def write_results(report: Report, folder: Path) -> list[Path]:
    """Write the file of every run; returns them.

    Raises:
        Unusable: as of `results_of`.
    """
    texts = {folder / name: text_of(results) for name, results in results_of(report).items()}
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def text_of(results: Results) -> str:
    """Results as JSON with a line for every clause, decline and failure, so that a difference is one of lines."""
    parts = [f"{json.dumps(key)}: {_lines(value)}" for key, value in data(results).items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, dict) and value and all(isinstance(entry, dict) for entry in value.values()):
        return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items()) + "\n}"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in value) + "\n]"
    return json.dumps(value)


def read_results(path: Path) -> Results:
    """The results in a file.

    Raises:
        Unusable: no such file, no JSON, no results of this format.
    """
    content = loaded(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        held = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise Unusable(f"{path}: has format {held}; {FORMAT} is needed")
    try:
        made: Results = record_of(Results, content)
    except DoesNotFit as error:
        raise Unusable(f"{path}: these are no results: {error}") from None
    return made


def committed_in(folder: Path) -> list[Results]:
    """All results in a folder, ours first and the others by name.

    Raises:
        Unusable: a file that holds none.
    """
    order = list(OURS)
    paths = sorted(folder.glob("*.json"), key=lambda p: (order.index(p.stem) if p.stem in OURS else len(order), p.stem))
    return [read_results(path) for path in paths]
