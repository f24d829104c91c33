"""What the terminal says before the first test and after the last."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

from conformance.coverage.summary import summary, write_cells
from conformance.known import Known
from conformance.plugin.collection import deviations_of, items_of, not_looked_for
from conformance.plugin.profiles import is_deep
from conformance.plugin.stash import COLLECTOR, REPORTER, SUITE
from conformance.reporting.session.tables import closing_table, header


def pytest_report_header(config: pytest.Config) -> list[str]:
    suite = config.stash[SUITE]
    profile = settings.get_current_profile_name()
    seed = str(config.getoption("--hypothesis-seed"))
    lines = header(suite.options, suite, profile, seed)
    if suite.options.known:
        lines.append(f"  known deviations: {len(Known.read(suite.options.known).deviations)}, {suite.options.known}")
    return [*lines, "  small cases: every one, but for precision; larger ones are drawn"] if is_deep() else lines


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    options = config.stash[SUITE].options
    not_run = [f"world size {size}: not in --world-sizes" for size in (1, 2, 4) if size not in options.world_sizes]
    if options.clauses:
        not_run.append(f"clauses that do not begin with {' or '.join(options.clauses)}: --clause")
    for entry in deviations_of(options):
        if reason := not_looked_for(options, entry):
            not_run.append(f"known deviation from {entry.clause} ({entry.case}): {reason}")
    terminalreporter.section(f"conformance of {config.stash[SUITE].declaration.name}")
    tally, reachable = config.stash[COLLECTOR].tally, items_of(config.stash[SUITE])
    strict = config.stash[SUITE].declaration.strict
    laws = config.stash[COLLECTOR].laws.lines(options.world_sizes)
    known = [sighting.line() for sighting in config.stash[COLLECTOR].sightings]
    table = closing_table(tally, options.world_sizes, not_run, strict)
    for line in [*table, *known, *laws, *summary(tally, reachable)]:
        terminalreporter.write_line(line)
    file = config.getoption("--cells")
    if file:
        write_cells(file, tally, reachable)
        terminalreporter.write_line(f"cells written to {file}")
    for line in config.stash[REPORTER].lines:
        terminalreporter.write_line(line)
