"""A run's verdicts beside those that are kept."""

from __future__ import annotations

from pathlib import Path

from conformance.reporting.record import Report, Run
from conformance.reporting.record.read import Unusable
from conformance.reporting.results.kept import file_name, place_of, read_results, verdicts_on_any_machine


def check_results(report: Report, folder: Path) -> list[str]:
    """One line for every verdict that is not the committed one; none where all are. Counts are not compared."""
    return [line for run in report.runs for line in _differences(run, folder / file_name(run))]


def _differences(run: Run, path: Path) -> list[str]:
    name = run.implementation.name
    try:
        committed = read_results(path)
    except Unusable as error:
        return [f"{name}: {error}; python -m conformance report REPORT --results {path.parent} writes it"]
    before, now = committed.verdicts, verdicts_on_any_machine(run)
    lines = [
        f"  {clause} at world size {world}: {before.get((clause, world), 'nothing')} in {path.name},"
        f" {now.get((clause, world), 'nothing')} in this run"
        for clause, world in sorted({*before, *now}, key=place_of)
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
