"""The README's table, between its two markers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from conformance.reporting.record import VERDICTS
from conformance.reporting.record.read import Unusable
from conformance.reporting.results.kept import Results
from spec import REGISTER
from spec.case import FUNCTIONS

WRITE: Final = "python -m conformance report --readme README.md"
BEGIN: Final = f"<!-- Made by `{WRITE}` from conformance/results/. -->"
END: Final = "<!-- End of what was made. -->"


def group_of(clause: str) -> str:
    """The row of the table that a clause is counted in."""
    first, *rest = clause.split(".")
    if first in FUNCTIONS:
        return ", ".join(FUNCTIONS)
    if first in ("column", "row"):
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
