"""What the truth costs: 300 cases drawn from all items, first with compilations, then warm."""

from __future__ import annotations

import argparse
import statistics
from typing import Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.table import print_table, seconds_of
from conformance.items import items
from conformance.strategies import cases
from spec import Case

CASES: Final = 300


def drawn() -> list[Case]:
    """The same cases in every run."""
    found: list[Case] = []

    @seed(1)
    @settings(
        max_examples=CASES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),  # what is slow here is what is measured
    )
    @given(st.sampled_from(items()).flatmap(cases))
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found


def main(chosen: argparse.Namespace) -> None:
    from spec.reference import compilations, truth

    found = drawn()
    cold = [seconds_of(lambda: truth(case)) * 1000 for case in found]
    compiled = compilations()
    warm = [seconds_of(lambda: truth(case)) * 1000 for case in found]
    print_table(
        f"the truth of {len(found)} cases drawn from all items, in one process without a cache on disk",
        ["pass", "mean ms", "median ms", "worst ms", "compilations", "goal"],
        [
            [name, *(f"{value:.2f}" for value in (statistics.mean(times), statistics.median(times), max(times))), *rest]
            for name, times, rest in (
                ("first", cold, [str(compiled), "< 60 compilations"]),
                ("warm", warm, [str(compilations() - compiled), "mean < 2 ms"]),
            )
        ],
    )
