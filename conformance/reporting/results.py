"""Committed results: one small JSON file per implementation, compared with a run, and the README's table made of them.

They hold what should change only if an implementation, the contract or what is known changes: no dates, no paths, no
tensors. Verdicts are compared; examples differ from seed to seed, so their numbers are not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conformance.adapters.find import OURS
from conformance.reporting.merge import Unusable, loaded
from conformance.reporting.plain import DoesNotFit, data, record_of, write_text
from conformance.reporting.record import (
    FORMAT,
    VERDICTS,
    Declined,
    Implementation,
    KnownReason,
    Report,
    Run,
    RunOptions,
    SuiteVersion,
)
from spec import REGISTER
from spec.case import FUNCTIONS, LINEAR

Key = tuple[str, int]
WRITE: Final = "python -m conformance report --readme README.md"
BEGIN: Final = f"<!-- Made by `{WRITE}` from conformance/results/. -->"
END: Final = "<!-- End of what was made. -->"


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    verdict: str
    judged: int
    broken: int


@dataclass(frozen=True)
class Told:
    """A failure or known deviation without its numbers."""

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
    for key, verdict in sorted(run.verdicts.items(), key=lambda entry: _order(entry[0])):
        matrix.setdefault(key[0], {})[str(key[1])] = Cell(verdict, judged[key], broken[key])
    told = [
        Told(f.clause, f.world, f.layer, f.item, f.case, f.known, f.diagnosis.looks)
        for f in sorted(run.failures, key=lambda f: (*_order((f.clause, f.world)), f.item))
    ]
    return Results(FORMAT, suite, run.implementation, run.options, run.examples, matrix, run.declined, tuple(told))


def _order(key: Key) -> tuple[int, str, int]:
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


def check_results(report: Report, folder: Path) -> list[str]:
    """One line for every verdict that is not the committed one; none where all are. Counts are not compared."""
    return [line for run in report.runs for line in _differences(run, folder / file_name(run))]


def _differences(run: Run, path: Path) -> list[str]:
    name = run.implementation.name
    try:
        committed = read_results(path)
    except Unusable as error:
        return [f"{name}: {error}; python -m conformance report REPORT --results {path.parent} writes it"]
    before, now = committed.verdicts, {key: str(value) for key, value in run.verdicts.items()}
    lines = [
        f"  {clause} at world size {world}: {before.get((clause, world), 'nothing')} in {path.name},"
        f" {now.get((clause, world), 'nothing')} in this run"
        for clause, world in sorted({*before, *now}, key=_order)
        if before.get((clause, world)) != now.get((clause, world))
    ]
    if not lines:
        return []
    lines = [f"{name}: {len(lines)} verdicts are not those in {path} (verdicts are compared, counts are not)", *lines]
    lines += [f"  this run is not complete: {text}" for text in run.missing]
    return lines + _other_versions(committed.implementation.versions, run.implementation.versions)


def _other_versions(before: dict[str, str], now: dict[str, str]) -> list[str]:
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return [f"  {name} is {now.get(name, 'absent')}, and was {before.get(name, 'absent')}" for name in names]


# The README's table


def group_of(clause: str) -> str:
    """The row of the table that a clause is counted in."""
    first, *rest = clause.split(".")
    if first in FUNCTIONS:
        return ", ".join(FUNCTIONS)
    if first in LINEAR:
        return f"{first}.{rest[0]}" if rest[0] in ("forward", "backward") else f"{first}.weight, {first}.bias"
    return first


def table(results: Sequence[Results]) -> str:
    """Clauses that hold by group and implementation, as Markdown."""
    names = [_title(entry) for entry in results]
    rows = [f"| clauses | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for group in dict.fromkeys(map(group_of, REGISTER)):
        clauses = [name for name in REGISTER if group_of(name) == group]
        rows.append(f"| {group} | {' | '.join(_cell(entry, clauses) for entry in results)} |")
    about = [f"- {_title(entry)}: {_about(entry)}" for entry in results]
    return "\n".join([*rows, "", *about])


def _title(entry: Results) -> str:
    options, name = entry.options, entry.implementation.name
    return name if (options.backend, options.device) == ("gloo", "cpu") else f"{name}, {options.backend}"


def _about(entry: Results) -> str:
    versions = ", ".join(f"{name} {text}" for name, text in entry.implementation.versions.items())
    return f"{versions}, {entry.options.backend} on {entry.options.device}, {sum(entry.examples.values())} examples"


def _cell(entry: Results, clauses: Iterable[str]) -> str:
    """How many of the clauses hold at every world size; of the others the worst verdict of each."""
    worst = Counter(_worst(cell.verdict for cell in entry.matrix.get(name, {}).values()) for name in clauses)
    if not sum(n for verdict, n in worst.items() if verdict not in ("unsupported", "not run")):
        return "-"
    others = [f"{worst[verdict]} {verdict}" for verdict in VERDICTS if verdict != "pass" and worst[verdict]]
    return ", ".join([f"{worst['pass']} of {worst.total()}", *others])


def _worst(verdicts: Iterable[str]) -> str:
    return min(verdicts, key=lambda verdict: VERDICTS.index(verdict), default="not run")  # type: ignore[arg-type]


def committed_in(folder: Path) -> list[Results]:
    """All results in a folder, ours first and the others by name.

    Raises:
        Unusable: a file that holds none.
    """
    order = list(OURS)
    paths = sorted(folder.glob("*.json"), key=lambda p: (order.index(p.stem) if p.stem in OURS else len(order), p.stem))
    return [read_results(path) for path in paths]


def with_table(text: str, results: Sequence[Results]) -> str:
    """A README's text with the table between its two markers made anew.

    Raises:
        Unusable: the markers are not there, each once and in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise Unusable(f"the table stands between these two lines, each there once:\n{BEGIN}\n{END}")
    return f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}"
