"""The options of the power tests, and the table that closes their run.

Without them, as in a run of all tests, every mutant is searched for from one seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from power import EXAMPLES_OF_CORRECT, SEEDS

from spec.reference import cache_compilations_in


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("power", "how well the suite finds mutants")
    group.addoption("--seeds", default=SEEDS, type=int, help="seeds from which every mutant is searched for")
    group.addoption("--examples", default=EXAMPLES_OF_CORRECT, type=int, help="examples of each correct implementation")
    group.addoption("--naive", action="store_true", help="also run what most projects have for a test, to compare")


@pytest.fixture(scope="session", autouse=True)
def _compiled(pytestconfig: pytest.Config) -> None:
    cache = getattr(pytestconfig, "cache", None)
    cache_compilations_in(str(cache.mkdir("jax")) if cache else "")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    config = terminalreporter.config
    rows = sorted(_recorded(terminalreporter, "mutant"), key=lambda row: row["name"])
    if not rows:
        return
    terminalreporter.section(f"mutants, from {config.getoption('--seeds')} seeds")
    for line in table(rows, naive=config.getoption("--naive")):
        terminalreporter.write_line(line)
    for control in _recorded(terminalreporter, "control"):
        terminalreporter.write_line(f"correct: {control['name']}, {control['examples']} examples judged")


def _recorded(terminalreporter: Any, kind: str) -> Iterator[dict[str, Any]]:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            yield from (value for name, value in report.user_properties if name == kind)


def table(rows: list[dict[str, Any]], naive: bool) -> list[str]:
    """Mutant, examples that the worst seed needed, what a naive test says; clause, case, diagnosis of each bug."""
    width = max(len(row["name"]) for row in rows)
    lines: list[str] = []
    for row in rows:
        found = f"{row['worst']:>3} examples" if row["worst"] else "NOT FOUND"
        beside = ("finds it" if row["naive"] else "passes") if naive else ""
        lines.append(f"{row['name']:<{width}}  {found}  {f'naive test: {beside}' if naive else ''}")
        for report in row["reports"]:
            lines.append(f"    {report['clause']}: {report['case']}")
            lines += [f"        {text}" for text in report["said"] or ("no diagnosis",)]
    reports = [report for row in rows for report in row["reports"]]
    verdicts = Counter(report["verdict"] for report in reports)
    killed, worst = sum(bool(row["worst"]) for row in rows), max(row["worst"] for row in rows)
    lines.append(f"found {killed} of {len(rows)}, at worst after {worst} examples")
    counts = ", ".join(f"{word} {verdicts[word]}" for word in ("right", "wrong", "none"))
    lines.append(f"diagnosis {counts} of {len(reports)} bugs")
    if naive:
        lines.append(f"naive test: finds {sum(row['naive'] for row in rows)} of {len(rows)}")
    return lines
