"""`python -m conformance report`: reports put together, kept as results, compared with them, shown in the README."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conformance.reporting.output import UnusableFolder, make_folder, write_report
from conformance.reporting.record import Report
from conformance.reporting.record.merge import merged
from conformance.reporting.record.plain import write_text
from conformance.reporting.record.read import Unusable
from conformance.reporting.results.compare import check_results
from conformance.reporting.results.kept import committed_in, write_results
from conformance.reporting.results.table import with_table

RESULTS: Final = Path(__file__).parents[1] / "results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be asked for; several at once, too."""
    parser.add_argument("reports", nargs="*", metavar="REPORT", help="a report.json, or the folder that holds one")
    parser.add_argument("--out", metavar="FOLDER", help="write them all as one report there: report.json, index.html")
    parser.add_argument("--results", metavar="FOLDER", help="keep the results there, one small file for each run")
    parser.add_argument("--check", metavar="FOLDER", help="compare the verdicts with the results there")
    parser.add_argument("--readme", metavar="FILE", help="put a table of the results (--results, ours) into this file")


def report(chosen: argparse.Namespace) -> int:
    """Do what was asked for: 0; 1 where verdicts differ; 2 where something cannot be used."""
    try:
        _check(chosen)
        differences = list(_done(chosen))
    except (Unusable, UnusableFolder) as error:
        print(error, file=sys.stderr)
        return 2
    for line in differences:
        print(line)
    return 1 if differences else 0


def _check(chosen: argparse.Namespace) -> None:
    """Of no report there is nothing to do but the table of results that are kept."""
    given = {flag: value for flag in ("out", "results", "check") if (value := getattr(chosen, flag))}
    if not chosen.reports and given and not (chosen.readme and list(given) == ["results"]):
        flag, value = next(iter(given.items()))
        raise Unusable(f"--{flag} {value}: of which report? Give a report.json, or its folder")
    if not given and (chosen.reports or not chosen.readme):
        raise Unusable("what to do? Give --out FOLDER, --results FOLDER or --check FOLDER, or --readme FILE alone")


def _done(chosen: argparse.Namespace) -> Iterator[str]:
    """Does it; yields what differs from the results to compare with."""
    if chosen.reports:
        yield from _with(merged(chosen.reports), chosen)
    if chosen.readme:
        file = Path(chosen.readme)
        results = committed_in(Path(chosen.results) if chosen.results else RESULTS)
        if not file.is_file():
            raise Unusable(f"--readme {file}: there is no such file")
        write_text(file, with_table(file.read_text(encoding="utf-8"), results))
        print(f"the table of {len(results)} results is in {file}")


def _with(report: Report, chosen: argparse.Namespace) -> Iterator[str]:
    for run in report.runs:
        print(f"{run.implementation.name}: {'complete' if run.complete else 'not complete, ' + '; '.join(run.missing)}")
    if chosen.out:
        for path in write_report(make_folder("--out", chosen.out), report):
            print(f"report written to {path}")
    if chosen.results:
        for path in write_results(report, _folder("--results", chosen.results)):
            print(f"results written to {path}")
    if chosen.check:
        differences = check_results(report, _folder("--check", chosen.check))
        yield from differences
        if not differences:
            print(f"every verdict is as in {chosen.check}")


def _folder(flag: str, path: str) -> Path:
    if not Path(path).is_dir():
        raise Unusable(f"{flag} {path}: there is no such folder")
    return Path(path)
